"""What a replica sends, without Ray: pieces of an answer, signs of life, errors as they were."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING

import pytest

from expert_router.deploy import ray_replica
from expert_router.deploy.ray_replica import EngineReplica, Pieces
from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.errors import ContextLengthError, EngineError, OverloadedError
from expert_router.types import GenerationParams, Message
from support import SLEEP, SLEEP_QUESTION, until

if TYPE_CHECKING:
    from expert_router.types import Expert

PARAMS = GenerationParams()
MESSAGES = [Message("user", SLEEP_QUESTION)]


async def sent(engine: EchoEngine) -> list[Pieces]:
    return [pieces async for pieces in EngineReplica("a", engine).stream("key", SLEEP, MESSAGES, PARAMS)]


async def test_the_chunks_are_the_engines_and_each_pieces_says_whose() -> None:
    pieces = await sent(EchoEngine())
    chunks = [chunk for each in pieces for chunk in each.chunks]
    assert chunks == [chunk async for chunk in EchoEngine().stream(SLEEP, MESSAGES, PARAMS)]
    assert {each.replica for each in pieces} == {"a"}


async def test_chunks_that_are_ready_at_the_same_time_travel_together() -> None:
    engine = EchoEngine()
    stream = EngineReplica("a", engine).stream("key", SLEEP, MESSAGES, PARAMS)
    assert [len((await anext(stream)).chunks) for _ in range(2)] == [0, 1]
    await until(lambda: engine.status()["finished"] == 1)
    assert [len(pieces.chunks) async for pieces in stream] == [8]


async def test_it_says_that_it_lives_before_anything_and_in_every_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_replica, "BEAT_S", 0.01)
    engine = EchoEngine(EchoScript(hang_after_tokens=0))
    stream = EngineReplica("a", engine).stream("key", SLEEP, MESSAGES, PARAMS)
    assert [await anext(stream) for _ in range(3)] == [Pieces("a")] * 3
    await stream.aclose()


async def test_closing_it_ends_the_engines_run() -> None:
    engine = EchoEngine(EchoScript(hang_after_tokens=1))
    stream = EngineReplica("a", engine).stream("key", SLEEP, MESSAGES, PARAMS)
    assert (await anext(stream), (await anext(stream)).chunks[0].text) == (Pieces("a"), "[Sleep")
    await stream.aclose()
    assert (engine.status()["running"], engine.status()["cancelled"]) == (0, 1)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (EchoScript(context_length=3), ContextLengthError),
        (EchoScript(fail_before=True), EngineError),
        (EchoScript(max_slots=0), OverloadedError),
    ],
)
async def test_an_error_is_sent_last_and_survives_the_way_to_another_process(
    script: EchoScript, expected: type[EngineError]
) -> None:
    *_, last = await sent(EchoEngine(script))
    assert type(last.error) is expected
    there = pickle.loads(pickle.dumps(last)).error
    assert (type(there), vars(there)) == (expected, vars(last.error))


async def test_what_came_before_an_error_is_sent() -> None:
    first, *pieces = await sent(EchoEngine(EchoScript(fail_after_tokens=2)))
    assert first == Pieces("a")
    assert [chunk.text for each in pieces for chunk in each.chunks] == ["[Sleep", " science]"]
    assert "failed after 2 words" in pieces[-1].error.message


async def test_what_was_asked_of_an_engine_that_loads_nothing_counts_as_held() -> None:
    replica = EngineReplica("a", EchoEngine())
    assert await replica.warm_up("sleep@1", SLEEP) is None
    assert replica.held() == ["sleep@1"]


class Shelf(EchoEngine):
    """Holds what it was let."""

    def __init__(self) -> None:
        super().__init__()
        self.on_it: set[str] = set()

    def holds(self, expert: Expert) -> bool:
        return expert.name in self.on_it


async def test_what_an_engine_has_unloaded_counts_as_held_no_more() -> None:
    shelf = Shelf()
    replica = EngineReplica("a", shelf)
    await replica.warm_up("sleep@1", SLEEP)
    assert replica.held() == []
    stream = replica.stream("sleep@1", SLEEP, MESSAGES, PARAMS)
    await anext(stream)
    assert replica.held() == ["sleep@1"]  # it is being loaded
    await stream.aclose()
    assert replica.held() == []
    shelf.on_it.add("sleep")
    assert replica.held() == ["sleep@1"]


async def test_a_status_names_the_replica_and_its_process() -> None:
    status = EngineReplica("a", EchoEngine()).status()
    assert (status["replica"], status["pid"], status["running"]) == ("a", os.getpid(), 0)
