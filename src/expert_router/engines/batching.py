"""One loaded OpenVINO pipeline and the thread that steps it: requests join and leave a running batch.

The pipeline is touched by its own thread only. Callers hand it commands and read events from an asyncio queue, so
many event loops may use one batcher. It knows nothing of chat, text or experts: token ids in, token ids out.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from expert_router.engines.slots import SlotCounters
from expert_router.errors import EngineError, ExpertRouterError, OverloadedError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from expert_router.types import FinishReason


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """New tokens of one request; the last batch has ``finish_reason``.

    ``log_prob`` is that of the first of them; 0 unless the request's configuration asks for it.
    """

    ids: list[int]
    finish_reason: FinishReason | None = None
    log_prob: float = 0.0


@dataclass(slots=True)
class Counters(SlotCounters):
    """Changed by the batcher's thread only."""

    generated_tokens: int = 0


Event = TokenBatch | ExpertRouterError


@dataclass(eq=False, slots=True)
class _Request:
    number: int
    input_ids: Any  # int64 tensor of shape (1, tokens)
    config: Any
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    handle: Any = None


class Batcher:
    """``pipeline`` is an ``openvino_genai.ContinuousBatchingPipeline``; the batcher owns it from here on."""

    def __init__(self, pipeline: Any, name: str) -> None:
        self._pipeline = pipeline
        self._numbers = itertools.count()
        self._commands: queue.SimpleQueue[tuple[str, _Request | None]] = queue.SimpleQueue()
        self._active: dict[int, _Request] = {}
        self._leaving: list[_Request] = []
        self._closed = False
        self._door = threading.Lock()  # no request comes in behind the command to close, where nobody would see it
        self.counters = Counters()
        self.error: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"batcher-{name}", daemon=True)
        self._thread.start()

    async def generate(self, input_ids: Any, config: Any) -> AsyncGenerator[TokenBatch]:
        """Generate until the model ends or the caller leaves; leaving frees the slot before the next step."""
        request = _Request(next(self._numbers), input_ids, config, asyncio.get_running_loop())
        with self._door:
            if self._closed:
                raise EngineError("The engine is shutting down.")
            self._commands.put(("add", request))
        finished = False
        try:
            while not finished:
                event = await request.events.get()
                finished = isinstance(event, ExpertRouterError) or event.finish_reason is not None
                if isinstance(event, ExpertRouterError):
                    raise event
                yield event
        finally:
            if not finished:
                self._commands.put(("cancel", request))

    def close(self) -> None:
        """Fail what still runs and give the pipeline's memory back."""
        with self._door:
            self._closed = True
            self._commands.put(("close", None))
        self._thread.join()
        self._pipeline = None

    def _run(self) -> None:
        while True:
            if not self._obey(block=not self._active):
                break
            if not self._active and not self._leaving:
                continue
            try:
                self._pipeline.step()
            except Exception as error:  # noqa: BLE001 - a C++ library: whatever it throws ends these requests
                self.error = f"{type(error).__name__}: {error}"
                self._fail_all(EngineError(f"The engine failed while generating ({self.error})."))
                continue
            self._count_out_leavers()
            self._deliver()
        self._fail_all(EngineError("The engine was shut down while generating."))

    def _obey(self, *, block: bool) -> bool:
        """Take all waiting commands; wait for one when there is nothing else to do. False when asked to close."""
        with suppress(queue.Empty):
            while True:
                command, request = self._commands.get(block=block)
                block = False
                if request is None:
                    return False
                if command == "add":
                    self._add(request)
                elif self._active.pop(request.number, None):
                    with suppress(Exception):  # the pipeline may be broken; the next step will say so
                        request.handle.cancel()
                    self._leaving.append(request)
        return True

    def _count_out_leavers(self) -> None:
        """A cancelled request gives its cache blocks back during the step after, also when nothing else runs."""
        self.counters.running -= len(self._leaving)
        self.counters.cancelled += len(self._leaving)
        self._leaving.clear()

    def _add(self, request: _Request) -> None:
        try:
            request.handle = self._pipeline.add_request(request.number, request.input_ids, request.config)
        except Exception as error:  # noqa: BLE001 - the same C++ library
            self.counters.failed += 1
            self._send([(request, EngineError(f"The engine refused the request ({error})."))])
            return
        self._active[request.number] = request
        self.counters.running += 1

    def _deliver(self) -> None:
        """After a step: hand every request its new tokens, all in one wake-up per event loop."""
        outbox: list[tuple[_Request, Event]] = []
        for request in list(self._active.values()):
            event = _read(request.handle)
            if event is None:
                continue
            if isinstance(event, TokenBatch):
                self.counters.generated_tokens += len(event.ids)
            if isinstance(event, ExpertRouterError) or event.finish_reason is not None:
                del self._active[request.number]
                self.counters.running -= 1
                self.counters.finished += isinstance(event, TokenBatch)
                self.counters.failed += isinstance(event, ExpertRouterError)
            outbox.append((request, event))
        self._send(outbox)

    def _fail_all(self, error: EngineError) -> None:
        requests, self._active = list(self._active.values()), {}
        for request in requests:
            with suppress(Exception):  # the pipeline may be broken; the request ends all the same
                request.handle.cancel()
        self._count_out_leavers()
        self.counters.running = 0
        self.counters.failed += len(requests)
        self._send([(request, error) for request in requests])

    @staticmethod
    def _send(outbox: list[tuple[_Request, Event]]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Request, Event]]] = {}
        for request, event in outbox:
            by_loop.setdefault(request.loop, []).append((request, event))
        for loop, events in by_loop.items():
            with suppress(RuntimeError):  # that loop was closed: nobody waits there any more
                loop.call_soon_threadsafe(_put_all, events)


def _put_all(events: list[tuple[_Request, Event]]) -> None:
    for request, event in events:
        request.events.put_nowait(event)


def _read(handle: Any) -> Event | None:
    """What a step produced for one request, or ``None`` when nothing (its prompt is still being read)."""
    try:
        return _new_event(handle)
    except Exception as error:  # noqa: BLE001 - the same C++ library; the other requests' tokens are not lost with it
        with suppress(Exception):
            handle.cancel()
        return EngineError(f"The engine failed to hand over what it generated ({error}).")


def _new_event(handle: Any) -> Event | None:
    ids: list[int] = []
    log_probs: list[float] = []
    finish_reason: FinishReason | None = None
    while handle.can_read():
        for output in handle.read().values():
            ids.extend(output.generated_ids)
            log_probs.extend(output.generated_log_probs)
            if output.finish_reason.name in {"STOP", "LENGTH"}:
                finish_reason = "stop" if output.finish_reason.name == "STOP" else "length"
    status = handle.get_status().name
    if status == "IGNORED":
        return OverloadedError("The engine has no memory left for a conversation this long.", retry_after_s=5.0)
    if status not in {"RUNNING", "FINISHED"}:
        return EngineError(f"The engine ended the request with status {status}.")
    if status == "FINISHED" and finish_reason is None:
        finish_reason = "stop"
    return TokenBatch(ids, finish_reason, *log_probs[:1]) if ids or finish_reason else None
