"""What a gateway makes of what comes from replicas, or does not come, without a cluster."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: make test-ray")

from ray.exceptions import RayActorError

from expert_router.deploy.ray_engine import RayEngine, ReplicaLostError
from expert_router.deploy.ray_replica import Pieces
from expert_router.engines.echo import EchoEngine
from expert_router.errors import ContextLengthError, NotReadyError
from expert_router.types import Chunk, GenerationParams, Message, Ticket, Usage
from support import SLEEP

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.ray

HELLO, WORLD, END = Chunk("Hello"), Chunk(" world"), Chunk("", "stop", Usage(1, 2))


class Answer:
    """As Ray's response to a call that streams: what is in the script comes, is raised, or is waited for."""

    def __init__(self, script: tuple[Pieces | BaseException | None, ...]) -> None:
        self.cancelled = False
        self.waits = asyncio.Event()
        self._coming = self._play(script)

    def __aiter__(self) -> AsyncIterator[Pieces]:
        return self

    async def __anext__(self) -> Pieces:
        return await anext(self._coming)

    async def _play(self, script: tuple[Pieces | BaseException | None, ...]) -> AsyncIterator[Pieces]:
        for each in script:
            if each is None:
                self.waits.set()
                await asyncio.Event().wait()
            elif isinstance(each, Pieces):
                yield each
            else:
                raise each

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """Gives the answers one after the other; keeps what was asked of it."""

    def __init__(self, *scripts: tuple[Pieces | BaseException | None, ...]) -> None:
        self.answers = [Answer(script) for script in scripts]
        self.asked: list[dict[str, Any]] = []
        self._left = iter(self.answers)

    def options(self, **options: Any) -> Handle:
        self.asked.append(options)
        return self

    def remote(self, *arguments: Any, **named: Any) -> Answer:
        self.asked[-1] |= {**named, "params": arguments[-1]}
        return next(self._left)


async def text_of(handle: Handle, silence_s: float = 5.0) -> str:
    engine = RayEngine(handle, EchoEngine(), silence_s)
    params = GenerationParams(ticket=Ticket())
    return "".join([chunk.text async for chunk in engine.stream(SLEEP, [Message("user", "Hi")], params)])


WHOLE = (Pieces("b"), Pieces("b", (HELLO,)), Pieces("b", (WORLD, END)))


async def test_an_answer_is_the_replicas_chunks_and_the_door_stays_here() -> None:
    handle = Handle(WHOLE)
    assert await text_of(handle) == "Hello world"
    (asked,) = handle.asked
    assert (asked["multiplexed_model_id"], asked["stream"], asked["avoid"]) == ("sleep@echo", True, "")
    assert asked["params"].ticket is None
    assert not handle.answers[0].cancelled


@pytest.mark.parametrize(
    "lost",
    [
        (Pieces("a"), RayActorError()),
        (Pieces("a"), None),
        (Pieces("a"), asyncio.CancelledError()),
        (Pieces("a"), Pieces("a", (Chunk(""),))),
    ],
    ids=["dead", "silent", "stopped", "cut off"],
)
async def test_a_replica_that_is_lost_before_any_text_is_made_good_by_another(lost: tuple[Any, ...]) -> None:
    handle = Handle(lost, WHOLE)
    assert await text_of(handle, silence_s=0.05) == "Hello world"
    assert [asked["avoid"] for asked in handle.asked] == ["", "a"]


async def test_one_that_is_lost_after_text_is_an_error_and_nobody_else_is_asked() -> None:
    handle = Handle((Pieces("a", (HELLO,)), RayActorError()), WHOLE)
    with pytest.raises(ReplicaLostError, match="died while it answered"):
        await text_of(handle)
    assert len(handle.asked) == 1


async def test_two_that_are_lost_are_an_error() -> None:
    handle = Handle((RayActorError(),), (RayActorError(),), WHOLE)
    with pytest.raises(ReplicaLostError):
        await text_of(handle)
    assert len(handle.asked) == 2


async def test_where_no_replica_takes_the_question_it_is_said_in_time() -> None:
    handle = Handle((None,), WHOLE)
    with pytest.raises(NotReadyError, match="No engine took the question"):
        await text_of(handle, silence_s=0.05)
    assert handle.answers[0].cancelled


async def test_a_replica_that_says_that_it_lives_may_take_its_time() -> None:
    assert await text_of(Handle((*[Pieces("b")] * 20, *WHOLE))) == "Hello world"


@pytest.mark.parametrize("error", [ContextLengthError("too long", param="messages"), NotReadyError("refused")])
async def test_what_the_replicas_engine_refuses_is_raised_as_it_was(error: Exception) -> None:
    handle = Handle((Pieces("a"), Pieces("a", error=error)), WHOLE)
    with pytest.raises(type(error)) as raised:
        await text_of(handle)
    assert raised.value is error
    assert len(handle.asked) == 1


async def test_who_leaves_cancels_the_run_and_is_not_taken_for_a_replica_that_stopped() -> None:
    handle = Handle((Pieces("a", (HELLO,)), None), WHOLE)
    reading = asyncio.create_task(text_of(handle))
    await handle.answers[0].waits.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert handle.answers[0].cancelled
    assert len(handle.asked) == 1
