"""Timing an engine under questions for experts drawn by chance: the same ones each time, all answered, none twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.evaluation.placement import Load, Placed, measure, summary
from support import CARS, SLEEP

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from expert_router.types import Chunk, Expert, GenerationParams, Message

LOAD = Load(count=12, at_once=3, max_tokens=4, seed=1)


class Noting(EchoEngine):
    """Keeps what it was asked, and how many at once."""

    def __init__(self, script: EchoScript = EchoScript()) -> None:  # noqa: B008 - frozen
        super().__init__(script)
        self.asked: list[tuple[str, str, int]] = []
        self.most = 0

    async def stream(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        self.asked.append((expert.name, messages[-1].content, params.max_tokens))
        async for chunk in super().stream(expert, messages, params):
            self.most = max(self.most, self._slots.running)
            yield chunk


async def test_every_question_is_asked_once_and_so_many_are_under_way() -> None:
    engine = Noting()
    placed = await measure(engine, [SLEEP, CARS], LOAD)
    assert (len(placed.first_token_s), engine.status()["finished"], engine.most) == (12, 12, 3)
    assert [f"Question {n}:" for n in range(12)] == [
        question[: question.index(":") + 1] for _, question, _ in engine.asked
    ]
    assert {name for name, _, _ in engine.asked} == {"sleep", "cars"}
    assert {tokens for _, _, tokens in engine.asked} == {4}


async def test_a_seed_asks_the_same_questions_of_each_engine() -> None:
    engines = Noting(), Noting(EchoScript(token_delay_s=0.001))
    for engine in engines:
        await measure(engine, [SLEEP, CARS], LOAD)
    assert engines[0].asked == engines[1].asked
    other = Noting()
    await measure(other, [SLEEP, CARS], Load(12, 3, 4, seed=2))
    assert other.asked != engines[0].asked


async def test_the_first_token_and_the_whole_are_timed() -> None:
    placed = await measure(EchoEngine(EchoScript(first_token_delay_s=0.02, token_delay_s=0.01)), [SLEEP], LOAD)
    assert min(placed.first_token_s) >= 0.02
    assert placed.total_s >= 4 * (0.02 + 3 * 0.01)


def test_a_summary_is_of_all_runs_together() -> None:
    told = summary("affine", [Placed((0.1, 0.2), 1.0), Placed((0.3, 0.4), 3.0)])
    assert (told.answers, told.answers_per_s) == (4, 1.0)
    assert (told.mean_ms, told.p50_ms) == pytest.approx((250, 250))
