"""What observers are told of a request: once, when it is over, whichever way that is."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.caching.memory import MemoryStore
from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.errors import EngineError, OverloadedError, UnknownModelError
from expert_router.types import AUTO, ChatRequest, Message, Scores, Text
from support import (
    BOTH_QUESTION,
    SLEEP_QUESTION,
    STAGES,
    UNSURE_QUESTION,
    FixedKnowledge,
    FixedRouter,
    build,
    until,
)

if TYPE_CHECKING:
    from expert_router.ports import Engine
    from expert_router.records import RequestRecord
    from expert_router.serving.dispatcher import Dispatcher

BOTH = Scores({"sleep": 0.7, "cars": 0.8}, 0.05)
UNSURE = Scores({"sleep": 0.45, "cars": 0.42}, 0.4)


@dataclass
class Kept:
    """An observer that keeps what it is told."""

    records: list[RequestRecord] = field(default_factory=list)

    def observe(self, record: RequestRecord) -> None:
        self.records.append(record)

    def close(self) -> None: ...


def observed(engine: Engine, *args: Any, **changes: Any) -> tuple[Dispatcher, Kept]:
    dispatcher, kept = build(engine, *args, **changes), Kept()
    dispatcher.observers.append(kept)
    return dispatcher, kept


def asking(question: str = SLEEP_QUESTION, model: str = "sleep") -> ChatRequest:
    return ChatRequest((Message("user", question),), model)


async def test_a_whole_answer_is_told_with_the_times_that_the_caller_gets() -> None:
    knowledge = FixedKnowledge({"sleep": [STAGES]})
    dispatcher, kept = observed(EchoEngine(EchoScript(0.01, 0.002)), knowledge=knowledge)
    answer = await dispatcher.ask(asking(model=AUTO))
    (record,) = kept.records
    (part,) = record.parts
    assert (record.outcome, record.error, record.decision) == ("stop", None, answer.decision)
    assert (record.route_s, record.first_token_s) == (answer.timings.route_s, answer.timings.first_token_s)
    assert record.total_s == answer.timings.total_s
    assert (part.expert, part.served, part.outcome, part.usage) == (
        "sleep",
        answer.served["sleep"],
        "stop",
        answer.usage,
    )
    assert part.retrieval is not None
    assert part.retrieval.seconds == answer.timings.retrieve_s
    assert part.passages == 1
    assert len(part.gaps_s) == answer.usage.completion_tokens - 1
    assert all(gap >= 0.002 for gap in part.gaps_s)
    assert part.first_token_s is not None
    assert part.first_token_s + sum(part.gaps_s) <= part.period.ended_s <= record.total_s
    (queued,) = part.queue
    assert (queued.seconds, part.generation.began_s) == (0, queued.ended_s)


async def test_the_record_is_out_before_the_last_event() -> None:
    dispatcher, kept = observed(EchoEngine())
    async with aclosing(dispatcher.stream(asking())) as events:
        seen = [len(kept.records) async for _ in events]
    assert (seen[-2:], len(kept.records)) == ([0, 1], 1)


async def test_each_of_several_experts_has_a_part() -> None:
    slow = EchoScript(first_token_delay_s=0.05)
    dispatcher, kept = observed(EchoEngine(by_expert={"cars": slow}), FixedRouter(BOTH))
    await dispatcher.ask(asking(BOTH_QUESTION, AUTO))
    parts = {part.expert: part for part in kept.records[0].parts}
    assert set(parts) == {"sleep", "cars"}
    assert parts["sleep"].period.ended_s < 0.05 <= (parts["cars"].first_token_s or 0)


async def test_a_part_that_fails_beside_another_is_an_error_of_its_own() -> None:
    failing = EchoEngine(by_expert={"cars": EchoScript(fail_before=True)})
    dispatcher, kept = observed(failing, FixedRouter(BOTH))
    await dispatcher.ask(asking(BOTH_QUESTION, AUTO))
    (record,) = kept.records
    assert (record.outcome, record.error) == ("stop", None)
    assert {part.expert: (part.outcome, part.error) for part in record.parts} == {
        "sleep": ("stop", None),
        "cars": ("error", "engine_failed"),
    }


async def test_a_question_that_is_asked_back_has_no_part() -> None:
    dispatcher, kept = observed(EchoEngine(), FixedRouter(UNSURE))
    await dispatcher.ask(asking(UNSURE_QUESTION, AUTO))
    (record,) = kept.records
    assert record.decision is not None
    assert (record.decision.kind, record.parts, record.outcome) == ("clarify", (), "stop")


async def test_an_error_is_told_by_its_code() -> None:
    dispatcher, kept = observed(EchoEngine(EchoScript(fail_after_tokens=1)))
    with pytest.raises(EngineError):
        await dispatcher.ask(asking())
    with pytest.raises(UnknownModelError):
        await dispatcher.ask(asking(model="nobody"))
    failed, unknown = kept.records
    assert (failed.outcome, failed.error, failed.parts[0].error) == ("error", "engine_failed", "engine_failed")
    assert (unknown.outcome, unknown.error, unknown.decision) == ("error", "model_not_found", None)


async def test_a_client_that_leaves_is_no_error() -> None:
    dispatcher, kept = observed(EchoEngine(EchoScript(hang_after_tokens=1)))
    async with aclosing(dispatcher.stream(asking())) as events:
        async for event in events:
            if isinstance(event, Text):
                break
    waiting = asyncio.create_task(dispatcher.ask(asking()))
    await until(lambda: dispatcher.admission.running == 1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert [(record.outcome, record.error, record.parts[0].outcome) for record in kept.records] == [
        ("abort", None, "abort")
    ] * 2


async def test_who_waits_in_vain_waited() -> None:
    hanging = EchoEngine(EchoScript(hang_after_tokens=0))
    dispatcher, kept = observed(hanging, max_running=1, queue_timeout_s=0.05)
    running = asyncio.create_task(dispatcher.ask(asking()))
    await until(lambda: dispatcher.admission.running == 1)
    with pytest.raises(OverloadedError):
        await dispatcher.ask(asking())
    (record,) = kept.records
    assert record.error == "overloaded"
    assert record.parts[0].queue[0].seconds >= 0.05
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_an_answer_that_is_given_again_takes_no_slot_and_makes_no_tokens() -> None:
    dispatcher, kept = observed(EchoEngine(), answers=MemoryStore(10_000, 60))
    await dispatcher.ask(asking())
    await dispatcher.ask(asking())
    (made,), (again,) = (record.parts for record in kept.records)
    assert (made.cache, made.generated, len(made.queue)) == ("miss", made.usage, 1)
    assert (again.cache, again.generated, again.queue) == ("hit", None, ())
    assert again.usage == made.usage


async def test_an_observer_that_fails_is_said_and_fails_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Kept):
        def observe(self, record: RequestRecord) -> None:
            raise ValueError(record.outcome)

    dispatcher, kept = observed(EchoEngine())
    dispatcher.observers.insert(0, Broken())
    assert (await dispatcher.ask(asking())).text
    assert len(kept.records) == 1
    assert "a request was not observed" in caplog.text
