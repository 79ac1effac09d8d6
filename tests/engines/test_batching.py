"""The batcher around a pipeline that fails as its script says, which the real one cannot be made to do."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.engines.batching import Batcher
from expert_router.engines.child import FAILED_STEPS
from expert_router.engines.stepping import Stepper, TokenBatch
from expert_router.errors import EngineError, EngineTimeoutError, OverloadedError
from support import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

END = 0
"""The token that ends an answer."""
STEP_S = 0.0005


@dataclass
class ScriptedHandle:
    """One request: each item of ``script`` is what a step makes of it: tokens, an error on reading, or a status."""

    script: list[list[int] | Exception | str]
    unread: list[list[int] | Exception] = field(default_factory=list)
    status: str = "RUNNING"
    fail_to_cancel: bool = False
    cancelled: bool = False

    def advance(self) -> None:
        if self.cancelled or self.status != "RUNNING" or not self.script:
            return
        item = self.script.pop(0)
        if isinstance(item, str):
            self.status = item
            return
        self.unread.append(item)
        if isinstance(item, list) and END in item:
            self.status = "FINISHED"

    def can_read(self) -> bool:
        return bool(self.unread)

    def read(self) -> dict[int, Any]:
        item = self.unread.pop(0)
        if isinstance(item, Exception):
            raise item
        reason = "STOP" if END in item else "NONE"
        log_probs = [-0.5 * token for token in item]
        output = SimpleNamespace(
            generated_ids=item, generated_log_probs=log_probs, finish_reason=SimpleNamespace(name=reason)
        )
        return {0: output}

    def get_status(self) -> SimpleNamespace:
        return SimpleNamespace(name=self.status)

    def cancel(self) -> None:
        self.cancelled = True
        if self.fail_to_cancel:
            raise RuntimeError("cannot cancel")


class ScriptedPipeline:
    """``add_request`` and ``step`` of openvino-genai's pipeline; a request's "prompt" is its script."""

    def __init__(self) -> None:
        self.handles: list[ScriptedHandle] = []
        self.steps = 0
        self.fail_steps: list[Exception | None] = []
        self.may_step = threading.Event()
        self.may_step.set()

    def add_request(self, number: int, script: list[Any] | Exception, config: object) -> ScriptedHandle:  # noqa: ARG002 - the library's signature
        if isinstance(script, Exception):
            raise script
        self.handles.append(ScriptedHandle(list(script)))
        return self.handles[-1]

    def step(self) -> None:
        self.may_step.wait(5)
        time.sleep(STEP_S)
        self.steps += 1
        if self.fail_steps and (error := self.fail_steps.pop(0)) is not None:
            raise error
        for handle in self.handles:
            handle.advance()


@pytest.fixture
async def pipeline() -> ScriptedPipeline:
    return ScriptedPipeline()


def start(pipeline: ScriptedPipeline, step_timeout_s: float = 5.0, ends: list[str] | None = None) -> Batcher:
    """As in the real engine, but for the process: a thread steps the pipeline at the other end of the connection."""
    ours, theirs = Pipe()

    def serve() -> None:
        with theirs:
            Stepper(pipeline, theirs).run()

    def stop() -> str:
        with suppress(OSError), socket.socket(fileno=os.dup(theirs.fileno())) as end:  # it has ended by itself
            end.shutdown(socket.SHUT_RDWR)
        stepping.join()
        return "stopped"

    stepping = threading.Thread(target=serve)
    stepping.start()
    died = (lambda _: None) if ends is None else ends.append
    return Batcher(ours, stop, "scripted", step_timeout_s=step_timeout_s, died=died)


@pytest.fixture
async def batcher(pipeline: ScriptedPipeline) -> AsyncIterator[Batcher]:
    batcher = start(pipeline)
    yield batcher
    pipeline.may_step.set()
    await asyncio.to_thread(batcher.close)


async def answer(batcher: Batcher, *script: list[int] | Exception | str) -> list[int]:
    """All tokens; fails when nothing comes for five seconds."""
    async with asyncio.timeout(5):
        return [token async for batch in batcher.generate(list(script), None) for token in batch.ids]


def counts(batcher: Batcher) -> tuple[int, ...]:
    counters = batcher.counters
    return counters.running, counters.finished, counters.cancelled, counters.failed


def paused(pipeline: ScriptedPipeline) -> None:
    pipeline.may_step.clear()


async def test_tokens_come_as_they_are_generated_and_the_last_says_why(batcher: Batcher) -> None:
    batches = [batch async for batch in batcher.generate([[1], [], [2, 3], [END]], None)]
    assert batches == [TokenBatch([1], None, -0.5), TokenBatch([2, 3], None, -1.0), TokenBatch([END], "stop")]
    assert counts(batcher) == (0, 1, 0, 0)
    assert batcher.counters.generated_tokens == 4


async def test_requests_share_steps(batcher: Batcher, pipeline: ScriptedPipeline) -> None:
    paused(pipeline)
    answers = [asyncio.create_task(answer(batcher, *[[n]] * 20, [END])) for n in range(1, 9)]
    await until(lambda: pipeline.handles != [])
    pipeline.may_step.set()
    assert await asyncio.gather(*answers) == [[n] * 20 + [END] for n in range(1, 9)]
    assert pipeline.steps < 40  # not 168


async def test_a_step_that_throws_fails_all_requests_and_the_next_is_answered(
    batcher: Batcher, pipeline: ScriptedPipeline
) -> None:
    paused(pipeline)
    running = [asyncio.create_task(answer(batcher, [1], [END])) for _ in range(3)]
    await until(lambda: len(pipeline.handles) > 0)
    pipeline.fail_steps = [RuntimeError("bad alloc")]
    await asyncio.sleep(0.02)
    pipeline.may_step.set()
    outcomes = await asyncio.gather(*running, return_exceptions=True)
    failed = [outcome for outcome in outcomes if isinstance(outcome, EngineError)]
    assert failed
    assert all("RuntimeError: bad alloc" in str(error) for error in failed)
    assert all(outcome == [1, END] for outcome in outcomes if outcome not in failed)  # came after the bad step
    assert all(handle.cancelled for handle in pipeline.handles[: len(failed)])
    assert counts(batcher) == (0, 3 - len(failed), 0, len(failed))
    assert await answer(batcher, [7], [END]) == [7, END]


async def test_a_pipeline_that_stays_broken_is_given_up_and_each_request_has_an_error(
    pipeline: ScriptedPipeline,
) -> None:
    ends: list[str] = []
    batcher = start(pipeline, ends=ends)
    pipeline.fail_steps = [RuntimeError(f"failure {number}") for number in range(1000)]
    for number in range(FAILED_STEPS):
        with pytest.raises(EngineError, match=f"failure {number}"):
            await answer(batcher, [1], [END])
    await until(lambda: ends == ["stopped"])
    assert (batcher.alive, counts(batcher), pipeline.steps) == (False, (0, 0, 0, FAILED_STEPS), FAILED_STEPS)


async def test_steps_that_fail_now_and_then_are_no_reason_to_give_it_up(
    batcher: Batcher, pipeline: ScriptedPipeline
) -> None:
    for _ in range(2 * FAILED_STEPS):
        pipeline.fail_steps = [RuntimeError("once")]
        with pytest.raises(EngineError, match="once"):
            await answer(batcher, [1], [END])
        assert await answer(batcher, [1], [END]) == [1, END]


async def test_a_refused_request_fails_alone(batcher: Batcher) -> None:
    outcomes = await asyncio.gather(
        answer(batcher, [1], [END]),
        anext(batcher.generate(ValueError("too odd"), None)),  # type: ignore[arg-type]
        answer(batcher, [2], [END]),
        return_exceptions=True,
    )
    assert outcomes[::2] == [[1, END], [2, END]]
    assert isinstance(outcomes[1], EngineError)
    assert "too odd" in str(outcomes[1])
    assert counts(batcher) == (0, 2, 0, 1)


async def test_a_request_whose_tokens_cannot_be_read_fails_alone_also_beside_one_that_ends(
    batcher: Batcher, pipeline: ScriptedPipeline
) -> None:
    paused(pipeline)
    good = [asyncio.create_task(answer(batcher, [], [END]))]
    bad = asyncio.create_task(answer(batcher, [], RuntimeError("torn"), [1], [END]))
    good.append(asyncio.create_task(answer(batcher, [], [END])))
    await until(lambda: pipeline.handles != [])
    pipeline.may_step.set()
    assert await asyncio.gather(*good) == [[END], [END]]
    with pytest.raises(EngineError, match="torn"):
        await bad
    assert [handle.cancelled for handle in pipeline.handles].count(True) == 1
    assert counts(batcher) == (0, 2, 0, 1)


@pytest.mark.parametrize(
    ("status", "error", "text"), [("IGNORED", OverloadedError, "no memory left"), ("CANCEL", EngineError, "CANCEL")]
)
async def test_a_request_that_the_pipeline_gives_up_ends_with_an_error(
    batcher: Batcher, status: str, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        await answer(batcher, [1], status)
    assert counts(batcher) == (0, 0, 0, 1)


async def test_leaving_cancels_in_the_pipeline_and_frees_the_slot_when_nothing_else_runs(
    batcher: Batcher, pipeline: ScriptedPipeline
) -> None:
    async with aclosing(batcher.generate([[1]] * 10_000, None)) as stream:
        await anext(stream)
        assert counts(batcher)[0] == 1
    await until(lambda: counts(batcher) == (0, 0, 1, 0))
    assert pipeline.handles[0].cancelled
    steps = pipeline.steps
    await asyncio.sleep(0.02)
    assert pipeline.steps == steps


async def test_leaving_before_the_pipeline_was_told_leaves_nothing_behind(
    batcher: Batcher, pipeline: ScriptedPipeline
) -> None:
    paused(pipeline)
    first = asyncio.create_task(answer(batcher, [1], [END]))
    await until(lambda: len(pipeline.handles) == 1)  # now the thread waits in its step
    second = asyncio.create_task(answer(batcher, [2], [END]))
    await asyncio.sleep(0.01)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    pipeline.may_step.set()
    assert await first == [1, END]
    await until(lambda: counts(batcher) == (0, 1, 1, 0))


async def test_a_cancellation_that_throws_does_not_stop_the_batcher(
    batcher: Batcher, pipeline: ScriptedPipeline
) -> None:
    async with aclosing(batcher.generate([[1]] * 10_000, None)) as stream:
        await anext(stream)
        pipeline.handles[0].fail_to_cancel = True
    assert await answer(batcher, [2], [END]) == [2, END]
    await until(lambda: counts(batcher) == (0, 1, 1, 0))


async def test_who_left_is_counted_as_such_also_when_the_next_step_throws(
    batcher: Batcher, pipeline: ScriptedPipeline
) -> None:
    async with aclosing(batcher.generate([[1]] * 10_000, None)) as stream:
        await anext(stream)
        paused(pipeline)
        await asyncio.sleep(0.01)  # now the thread waits in its step
    pipeline.fail_steps = [None, RuntimeError("bad alloc")]
    pipeline.may_step.set()
    await until(lambda: counts(batcher) == (0, 0, 1, 0))


async def test_a_closed_event_loop_does_not_disturb_the_others(batcher: Batcher, pipeline: ScriptedPipeline) -> None:
    paused(pipeline)

    def leave_without_a_word() -> None:
        loop = asyncio.new_event_loop()
        stream = batcher.generate([[1]] * 50 + [[END]], None)
        waiting = loop.create_task(stream.__anext__())  # type: ignore[arg-type]
        loop.run_until_complete(asyncio.sleep(0))
        waiting.cancel()
        loop.run_until_complete(asyncio.gather(waiting, return_exceptions=True))
        loop.close()

    await asyncio.to_thread(leave_without_a_word)
    pipeline.may_step.set()
    assert await answer(batcher, [2], [END]) == [2, END]


async def test_two_event_loops_get_their_own_tokens(batcher: Batcher) -> None:
    other = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(answer(batcher, *[[5]] * 50, [END]))))
    assert await answer(batcher, *[[6]] * 50, [END]) == [6] * 50 + [END]
    assert await other == [5] * 50 + [END]


async def test_closing_fails_what_runs_and_refuses_what_comes(batcher: Batcher) -> None:
    stream = batcher.generate([[1]] * 10_000, None)
    await anext(stream)
    await asyncio.to_thread(batcher.close)
    with pytest.raises(EngineError, match="shut down"):
        _ = [batch async for batch in stream]
    with pytest.raises(EngineError, match="shut down"):
        await answer(batcher, [1], [END])
    assert counts(batcher) == (0, 0, 0, 1)


async def test_no_request_hangs_that_comes_while_it_closes() -> None:
    for _ in range(30):
        batcher = start(ScriptedPipeline())
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        outcomes = await asyncio.gather(
            *(asyncio.to_thread(lambda: asyncio.run(answer(batcher, [1], [END]))) for _ in range(6)),  # noqa: B023 - awaited here
            return_exceptions=True,
        )
        await closing
        assert all(outcome == [1, END] or isinstance(outcome, EngineError) for outcome in outcomes)


# A step that is never over


HANGS = r"hangs \(a step took longer than 0\.2 s\)"


async def test_a_step_that_takes_too_long_ends_the_pipeline_and_all_its_requests(pipeline: ScriptedPipeline) -> None:
    ends: list[str] = []
    batcher = start(pipeline, 0.2, ends)
    paused(pipeline)
    running = [asyncio.create_task(answer(batcher, [1], [END])) for _ in range(3)]
    pipeline_goes_on_once_it_is_stopped = asyncio.get_running_loop().call_later(0.5, pipeline.may_step.set)
    outcomes = await asyncio.gather(*running, return_exceptions=True)
    assert all(isinstance(outcome, EngineTimeoutError) for outcome in outcomes)
    with pytest.raises(EngineTimeoutError, match=HANGS):
        await answer(batcher, [1], [END])
    assert (batcher.alive, counts(batcher), ends) == (False, (0, 0, 0, 3), ["hung: a step took longer than 0.2 s"])
    pipeline_goes_on_once_it_is_stopped.cancel()


async def test_many_steps_without_a_word_are_no_hang_and_neither_is_rest(pipeline: ScriptedPipeline) -> None:
    """As while a long prompt is read: each step is said to be over, though it gave nothing."""
    ends: list[str] = []
    batcher = start(pipeline, 0.2, ends)
    silence = [[] for _ in range(int(0.6 / STEP_S))]
    assert await answer(batcher, *silence, [END]) == [END]
    assert pipeline.steps * STEP_S > 0.4
    await asyncio.sleep(0.3)
    assert await answer(batcher, [7], [END]) == [7, END]
    await asyncio.to_thread(batcher.close)
    assert ends == []


async def test_who_left_does_not_hide_that_a_step_hangs(pipeline: ScriptedPipeline) -> None:
    batcher = start(pipeline, 0.2)
    async with aclosing(batcher.generate([[1]] * 10_000, None)) as stream:
        await anext(stream)
        paused(pipeline)
        await asyncio.sleep(0.01)  # now the thread waits in its step
    asyncio.get_running_loop().call_later(0.5, pipeline.may_step.set)
    await until(lambda: not batcher.alive)
