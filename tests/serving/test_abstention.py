"""Who refuses, the expert or its rule: asked of an engine that leans as it is told."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from expert_router.engines.echo import EchoEngine
from expert_router.knowledge.grounding import UNKNOWN, grounded_question, is_unknown
from expert_router.serving.abstention import ask_doubt, doubt, match
from expert_router.types import Abstention, ChatRequest, Chunk, Done, Found, GenerationParams, Message, Scores, Usage
from support import BENZ, CARS, NAPS, SLEEP, STAGES, FixedKnowledge, FixedRouter, build

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from expert_router.types import Expert

ANSWER = "[1] The eyes dart about under closed lids."
BY_DOUBT = Abstention(bias=0.0, doubt=1.0, match=0.0)
BRAVE = Abstention(bias=-3.0, doubt=1.0, match=0.0)
SHY = Abstention(bias=3.0, doubt=1.0, match=0.0)
KNOWLEDGE = FixedKnowledge({"sleep": [STAGES, NAPS], "cars": [BENZ]})
BOTH = Scores({"sleep": 0.9, "cars": 0.8}, 0.05)


@dataclass
class LeaningEngine(EchoEngine):
    """Refuses with a probability, by expert, and answers else; a given beginning it goes on from."""

    leaning: Mapping[str, float]
    tells: bool = True
    says: str = ""
    asked: list[tuple[str, GenerationParams]] = field(default_factory=list)
    read: list[str] = field(default_factory=list)
    left: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    async def stream(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        self.asked.append((expert.name, params))
        self.read.append(messages[-1].content)
        refusing = self.leaning[expert.name]
        refuses = is_unknown(params.begin) or (not params.begin and refusing > 0.5)
        text = self.says or (UNKNOWN if refuses else ANSWER)
        told = max(refusing, 1 - refusing) if params.probability and self.tells else None
        first, rest = text[:1], text[1:]
        finished = False
        try:
            yield Chunk("")
            yield Chunk(first, probability=told)
            for word in rest.split(" "):
                yield Chunk(f"{word} ")
            finished = True
        finally:
            self.left += not finished
        yield Chunk("", "stop", Usage(10, 1 + len(rest.split(" "))))


def experts(rule: Abstention | None, base: str = "echo") -> dict[str, Expert]:
    rules = {} if rule is None else {base: rule}
    return {e.name: replace(e, knowledge=Path(e.name), abstention=rules) for e in (SLEEP, CARS)}


async def said(engine: LeaningEngine, rule: Abstention | None, *, base: str = "echo") -> str:
    dispatcher = build(engine, experts=experts(rule, base), knowledge=KNOWLEDGE)
    answer = await dispatcher.ask(ChatRequest((Message("user", "What do the eyes do?"),), "sleep"))
    return answer.text.strip()


@pytest.mark.parametrize(("leaning", "text"), [(0.3, ANSWER), (0.7, UNKNOWN)])
async def test_where_the_rule_agrees_the_expert_is_asked_once_and_heard_out(leaning: float, text: str) -> None:
    engine = LeaningEngine({"sleep": leaning})
    assert await said(engine, BY_DOUBT) == text
    assert [params.begin for _, params in engine.asked] == [""]
    assert engine.left == 0


async def test_an_expert_that_is_too_brave_is_made_to_refuse() -> None:
    engine = LeaningEngine({"sleep": 0.3})
    assert await said(engine, SHY) == UNKNOWN
    assert [params.begin for _, params in engine.asked] == ["", "I don't know"]
    assert engine.left == 1, "the answer it had begun goes on in nobody's slot"


async def test_an_expert_that_is_too_shy_is_made_to_answer() -> None:
    engine = LeaningEngine({"sleep": 0.9})
    assert await said(engine, BRAVE) == ANSWER
    assert [params.begin for _, params in engine.asked] == ["", "["]
    assert engine.left == 1


async def test_the_rule_is_of_degree_not_of_kind() -> None:
    said_at = {leaning: await said(LeaningEngine({"sleep": leaning}), BRAVE) for leaning in (0.6, 0.9, 0.96, 0.99)}
    assert said_at == {0.6: ANSWER, 0.9: ANSWER, 0.96: UNKNOWN, 0.99: UNKNOWN}  # log-odds of 3 are 0.953


async def test_what_was_found_counts_too() -> None:
    by_match = Abstention(bias=1.0, doubt=0.0, match=-1.0)
    good = await said(LeaningEngine({"sleep": 0.99}), by_match)  # scores of 1.2 and 1.1
    poor = await said(LeaningEngine({"sleep": 0.01}), replace(by_match, bias=1.2))
    assert (good, poor) == (ANSWER, UNKNOWN)
    assert match([Found(STAGES, 1.2), Found(NAPS, 1.1)]) == pytest.approx(1.15)


async def test_without_a_rule_the_expert_has_its_own_way() -> None:
    engine = LeaningEngine({"sleep": 0.9})
    assert await said(engine, None) == UNKNOWN
    assert [params.probability for _, params in engine.asked] == [False]


async def test_the_rule_of_another_bases_adapter_is_not_used() -> None:
    assert await said(LeaningEngine({"sleep": 0.9}), BRAVE, base="another") == UNKNOWN


async def test_an_engine_that_tells_no_probabilities_is_not_overruled() -> None:
    engine = LeaningEngine({"sleep": 0.9}, tells=False)
    assert await said(engine, BRAVE) == UNKNOWN
    assert len(engine.asked) == 1


async def test_who_says_something_else_is_not_overruled() -> None:
    engine = LeaningEngine({"sleep": 0.1}, says="Hello there.")
    assert await said(engine, SHY) == "Hello there."
    assert len(engine.asked) == 1


async def test_an_expert_that_found_nothing_to_read_is_not_overruled() -> None:
    engine = LeaningEngine({"sleep": 0.1})
    dispatcher = build(engine, experts=experts(SHY), knowledge=FixedKnowledge({}))
    answer = await dispatcher.ask(ChatRequest((Message("user", "Why?"),), "sleep"))
    assert answer.text.strip() == ANSWER


async def test_the_usage_is_that_of_the_answer_given() -> None:
    dispatcher = build(LeaningEngine({"sleep": 0.3}), experts=experts(SHY), knowledge=KNOWLEDGE)
    request = ChatRequest((Message("user", "Why?"),), "sleep")
    *_, done = [event async for event in dispatcher.stream(request)]
    assert isinstance(done, Done)
    assert done.usage == Usage(10, 1 + UNKNOWN.count(" ") + 1)


async def test_of_two_experts_each_has_its_own_doubt() -> None:
    engine = LeaningEngine({"sleep": 0.9, "cars": 0.99})
    dispatcher = build(engine, FixedRouter(BOTH), experts=experts(BRAVE), knowledge=KNOWLEDGE)
    text = (await dispatcher.ask(ChatRequest((Message("user", "Why?"),)))).text
    sleep, cars = text.split(f"**{CARS.title}**")
    assert ANSWER in sleep
    assert UNKNOWN in cars


def test_doubt_is_the_log_odds_of_refusing_whatever_the_expert_begins() -> None:
    assert doubt(Chunk("I", probability=0.9)) == pytest.approx(doubt(Chunk("[", probability=0.1)))
    assert doubt(Chunk("[1", probability=0.9)) == pytest.approx(-2.197, abs=0.001)
    assert doubt(Chunk("I don't know: ", probability=0.5)) == pytest.approx(0.0)
    assert doubt(Chunk("I", probability=1.0)) == pytest.approx(13.8, abs=0.1)


def test_nothing_is_known_of_another_beginning_or_without_a_probability() -> None:
    assert doubt(Chunk("It", probability=0.9)) is None
    assert doubt(Chunk("I am", probability=0.9)) is None
    assert doubt(Chunk("[")) is None


async def test_an_expert_is_asked_for_its_doubt_with_the_prompt_it_answers_from() -> None:
    engine = LeaningEngine({"sleep": 0.9})
    found = KNOWLEDGE.search("sleep", "Why?")
    assert await ask_doubt(engine, SLEEP, "Why?", found) == pytest.approx(2.197, abs=0.001)
    ((_, params),) = engine.asked
    assert params == GenerationParams(max_tokens=1, probability=True)
    assert engine.read == [grounded_question("Why?", found)]
