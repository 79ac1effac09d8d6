"""A slot is held by what the engine runs, while it runs: hits pass, nothing can lock up, nothing is left behind."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from expert_router.caching.memory import MemoryStore
from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.errors import ExpertRouterError, OverloadedError
from expert_router.types import Abstention, ChatRequest, Chunk, GenerationParams, Message, Scores, Usage
from support import BENZ, BOTH_QUESTION, CARS, SLEEP, STAGES, FixedKnowledge, FixedRouter, build, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from expert_router.types import Answer, CacheUse, Expert

KNOWLEDGE = FixedKnowledge({"sleep": [STAGES], "cars": [BENZ]})
DOUBTING: Mapping[str, Expert] = {
    each.name: replace(each, knowledge=Path(each.name), abstention={"echo": Abstention("ab12", -9.0, 1.0, 0.0)})
    for each in (SLEEP, CARS)
}
"""They are asked for their first token alone before they answer."""
HANG = EchoScript(hang_after_tokens=0)
SLEEP_ONLY = Scores({"sleep": 0.9, "cars": 0.1}, 0.05)
NONE = Scores({"sleep": 0.1, "cars": 0.1}, 0.9)
UNSURE = Scores({"sleep": 0.45, "cars": 0.45}, 0.1)


class TwoStepEngine(EchoEngine):
    """Tells its first token's probability, and takes a few turns of the event loop for each run."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[tuple[str, bool]] = []
        """Each one's question, and whether it was for the first token alone."""
        self.most = 0

    async def stream(
        self,
        expert: Expert,  # noqa: ARG002
        messages: Sequence[Message],
        params: GenerationParams,
    ) -> AsyncGenerator[Chunk]:
        self.runs.append((messages[-1].content.split()[0], params.probability))
        with self._slots.slot():
            self.most = max(self.most, self._slots.running)
            for word in ("[", "1]"):
                for _ in range(3):
                    await asyncio.sleep(0)
                yield Chunk(word, probability=0.9 if params.probability and word == "[" else None)
        yield Chunk("", "stop", Usage(1, 2))


class AcceptingEcho(EchoEngine):
    """Says that it took the prompt before it reads it, as the engines do that compute."""

    async def stream(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        yield Chunk("")
        async for chunk in super().stream(expert, messages, params):
            yield chunk


class GatedEcho(EchoEngine):
    """Ends no answer before the gate is open."""

    def __init__(self, script: EchoScript) -> None:
        super().__init__(script)
        self.gate = asyncio.Event()

    async def stream(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        async for chunk in super().stream(expert, messages, params):
            yield chunk
            await self.gate.wait()


def ask(
    question: str, *, model: str = "sleep", client: str = "", wait_s: float | None = None, cache: CacheUse = "use"
) -> ChatRequest:
    return ChatRequest((Message("user", question),), model, GenerationParams(cache=cache), client, wait_s)


async def test_an_answer_that_is_kept_is_given_while_all_slots_are_taken() -> None:
    engine = EchoEngine(by_expert={"cars": HANG})
    dispatcher = build(engine, max_running=1, max_queue=0, answers=MemoryStore(10**6, 60.0))
    assert (await dispatcher.ask(ask("Why?"))).cache == {"sleep": "miss"}
    hanging = asyncio.create_task(dispatcher.ask(ask("Why?", model="cars")))
    await until(lambda: dispatcher.admission.running == 1)
    assert (await dispatcher.ask(ask("Why?"))).cache == {"sleep": "hit"}
    with pytest.raises(OverloadedError):
        await dispatcher.ask(ask("Why not?"))
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)
    assert (dispatcher.admission.running, dispatcher.admission.waiting) == (0, 0)


@pytest.mark.parametrize("max_queue", [0, 8])
async def test_two_experts_answer_one_question_though_only_one_may_run(max_queue: int) -> None:
    engine = TwoStepEngine()
    dispatcher = build(engine, experts=DOUBTING, knowledge=KNOWLEDGE, max_running=1, max_queue=max_queue)
    answer = await dispatcher.ask(ask(BOTH_QUESTION, model="auto"))
    assert [(part.expert, part.error) for part in answer.parts] == [("cars", None), ("sleep", None)]
    assert (engine.most, len(engine.runs), dispatcher.admission.running) == (1, 4, 0)


async def test_a_request_whose_answer_has_begun_goes_on_before_others_come_in() -> None:
    engine = TwoStepEngine()
    dispatcher = build(engine, experts=DOUBTING, knowledge=KNOWLEDGE, max_running=1)
    await asyncio.gather(*(dispatcher.ask(ask(f"Q{number} is what?", client=str(number))) for number in range(4)))
    questions = [question for question, _ in engine.runs]
    assert questions[::2] == questions[1::2]
    assert [first for _, first in engine.runs] == [True, False] * 4


async def test_a_slot_that_is_kept_in_vain_comes_free() -> None:
    door = build(EchoEngine(), max_running=1).admission
    with door.request() as ticket:
        async with door.slot("sleep", ticket, asks_on=True):
            pass
        assert door.running == 1
        async with asyncio.timeout(5), door.slot("cars", ticket):  # of another expert, so it is not its slot
            assert not ticket.kept
        async with door.slot("sleep", ticket, asks_on=True):
            pass
    assert door.running == 0


async def test_who_listens_to_a_run_that_is_not_let_in_asks_for_itself() -> None:
    engine = EchoEngine(by_expert={"cars": HANG})
    dispatcher = build(engine, max_running=1, answers=MemoryStore(10**6, 60.0))
    holder = asyncio.create_task(dispatcher.ask(ask("Why?", model="cars")))
    await until(lambda: dispatcher.admission.running == 1)
    hurried = asyncio.create_task(dispatcher.ask(ask("Why?", wait_s=0.05)))
    await until(lambda: dispatcher.admission.waiting == 1)
    patient = asyncio.create_task(dispatcher.ask(ask("Why?")))
    with pytest.raises(OverloadedError, match=r"within 0\.0"):
        await hurried
    await until(lambda: dispatcher.admission.waiting == 1)
    holder.cancel()
    assert (await patient).cache == {"sleep": "miss"}
    await asyncio.gather(holder, return_exceptions=True)


async def test_at_four_times_what_may_run_and_wait_the_rest_is_refused_before_anybody_is_done() -> None:
    """A refusal waits for no answer, and those that are let in are as many at once as without the rest."""
    engine = GatedEcho(EchoScript(max_slots=4))
    dispatcher = build(engine, max_running=4, max_queue=4)
    tasks = [asyncio.create_task(dispatcher.ask(ask(f"Q{number}", client=str(number % 5)))) for number in range(32)]
    await until(lambda: sum(task.done() for task in tasks) == 24)
    assert engine.status()["finished"] == 0
    for task in tasks:
        if task.done():
            assert isinstance(task.exception(), OverloadedError)
    engine.gate.set()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(not isinstance(each, BaseException) for each in ended) == 8
    assert (engine.status()["finished"], dispatcher.admission.running, dispatcher.admission.waiting) == (8, 0, 0)


@pytest.mark.parametrize("tokens", [0, 1])
async def test_a_prompt_is_read_until_the_first_token(tokens: int) -> None:
    engine = AcceptingEcho(by_expert={"cars": EchoScript(hang_after_tokens=tokens)})
    dispatcher = build(engine, max_running=4, max_prefills=1)
    hanging = asyncio.create_task(dispatcher.ask(ask("Why?", model="cars")))
    await until(lambda: engine.status()["running"] == 1)
    other = asyncio.create_task(dispatcher.ask(ask("Why?")))
    await until(lambda: other.done() if tokens else dispatcher.admission.waiting == 1)
    hanging.cancel()
    assert (await other).answered_by == ("sleep",)
    await asyncio.gather(hanging, return_exceptions=True)
    assert (dispatcher.admission.running, dispatcher.admission.waiting) == (0, 0)


async def test_what_is_refused_was_neither_routed_nor_looked_up() -> None:
    engine, router, knowledge = GatedEcho(EchoScript()), FixedRouter(SLEEP_ONLY), FixedKnowledge({"sleep": [STAGES]})
    dispatcher = build(engine, router, knowledge=knowledge, max_running=2, max_queue=2)
    tasks = [asyncio.create_task(dispatcher.ask(ask(f"Q{number}", model="auto"))) for number in range(16)]
    await until(lambda: dispatcher.admission.waiting == 2)
    await until(lambda: sum(task.done() for task in tasks) == 12)
    engine.gate.set()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(each, OverloadedError) for each in ended] == [False] * 4 + [True] * 12
    assert (len(router.asked), len(knowledge.asked)) == (4, 4)


async def test_when_all_is_full_only_what_was_asked_before_is_looked_for_among_the_kept_answers() -> None:
    engine, router = EchoEngine(by_expert={"cars": HANG}), FixedRouter(SLEEP_ONLY)
    dispatcher = build(engine, router, max_running=1, max_queue=0, answers=MemoryStore(10**6, 60.0))
    await dispatcher.ask(ask("Why?", model="auto"))
    hanging = asyncio.create_task(dispatcher.ask(ask("Why?", model="cars")))
    await until(lambda: dispatcher.admission.running == 1)
    router.asked.clear()
    assert (await dispatcher.ask(ask("Why?", model="auto"))).cache == {"sleep": "hit"}
    assert len(router.asked) == 1
    for request in (ask("Why not?", model="auto"), ask("Why?", model="auto", cache="renew")):
        with pytest.raises(OverloadedError):
            await dispatcher.ask(request)
    assert len(router.asked) == 1
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)


@pytest.mark.parametrize(("scores", "kind"), [(NONE, "refused"), (UNSURE, "clarify")])
async def test_who_turns_out_to_need_no_slot_leaves_none_held(scores: Scores, kind: str) -> None:
    dispatcher = build(EchoEngine(), FixedRouter(scores), on_general="refuse", max_running=1, max_queue=0)
    for _ in range(3):
        assert (await dispatcher.ask(ask("Why?", model="auto"))).decision.kind == kind
    assert (await dispatcher.ask(ask("Why?"))).answered_by == ("sleep",)


async def test_who_listens_along_holds_no_slot_from_others() -> None:
    engine = EchoEngine(EchoScript(hang_after_tokens=1), by_expert={"cars": EchoScript()})
    dispatcher = build(engine, max_running=2, max_queue=0, answers=MemoryStore(10**6, 60.0))
    listening = [dispatcher.stream(ask("Why?")) for _ in range(2)]
    for events in listening:
        async for event in events:
            if event.text:
                break
    assert (await dispatcher.ask(ask("Why?", model="cars"))).text
    for events in listening:
        await events.aclose()
    assert dispatcher.admission.running == 0


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_a_crowd_asks_at_one_slot_each_gets_an_answer_or_a_refusal(seed: int) -> None:
    """Hits, shared runs, parts, first tokens, renewals and leavings, all through a door of one or two."""
    chance = random.Random(seed)
    engine = TwoStepEngine()
    answers = MemoryStore(10**6, 60.0)
    dispatcher = build(
        engine,
        experts=DOUBTING,
        knowledge=KNOWLEDGE,
        max_running=1 + seed % 2,
        max_queue=9,
        queue_timeout_s=3600,
        answers=answers,
    )
    tasks: list[asyncio.Task[Answer]] = []
    for _ in range(120):
        question = chance.choice([BOTH_QUESTION, "What is REM sleep?", "Which car came first?", "Does a car sleep?"])
        cache: CacheUse = chance.choice(["use", "renew", "bypass"])
        request = ask(question, model="auto", client=chance.choice("AB"), cache=cache)
        tasks.append(asyncio.create_task(dispatcher.ask(request)))
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        if chance.random() < 0.2:
            chance.choice(tasks).cancel()
    async with asyncio.timeout(300):  # the queue's time is an hour: nobody is let in or refused by that alone
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert engine.most == 1 + seed % 2
    assert not [e for e in ended if isinstance(e, Exception) and not isinstance(e, ExpertRouterError)]
    assert sum(not isinstance(each, BaseException) for each in ended) > 20
    await until(lambda: (dispatcher.admission.running, dispatcher.admission.waiting) == (0, 0))
    assert engine.status()["running"] == 0
