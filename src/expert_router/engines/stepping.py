"""The process that one pipeline runs in, and the loop that steps it: requests join and leave a running batch.

The library holds Python's lock while it computes, so whoever shares a process with it stands still for whole steps.
Requests come in and tokens go out over one connection; when that ends, also because the server was killed, so does the
process. One thread does everything, as a second one would wait for the lock. Token ids in, token ids out: text is the
server's.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_router.engines.child import BROKEN, FAILED_STEPS, OUT_OF_MEMORY, begin
from expert_router.engines.lookup import LOOKUP, LookupRoom, lookup_settings
from expert_router.engines.slots import TokenCounters
from expert_router.errors import EngineError, ExpertRouterError, OverloadedError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from expert_router.types import FinishReason


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """New tokens of one request; the last batch has ``finish_reason``.

    ``log_prob`` is that of the first of them; 0 unless the request's configuration asks for it.
    """

    ids: list[int]
    finish_reason: FinishReason | None = None
    log_prob: float = 0.0


Event = TokenBatch | ExpertRouterError


def is_last(event: Event) -> bool:
    return isinstance(event, ExpertRouterError) or event.finish_reason is not None


class Stepper:
    """``pipeline`` has ``add_request`` and ``step`` as ``openvino_genai.ContinuousBatchingPipeline`` has.

    Where there is a ``room``, requests wait until it has some for them, in the order in which they came.

    It is sent ``("add", number, prompt, config)`` and ``("cancel", number)``, and sends its counters with the events
    of each step, also where there are none: ``(TokenCounters, [(number, event), ...])``. Who hears nothing knows that a
    step is not over.
    """

    def __init__(self, pipeline: Any, connection: Connection[Any, Any], room: LookupRoom | None = None) -> None:
        self._pipeline = pipeline
        self._connection = connection
        self._room = room
        self._waiting: dict[int, tuple[Any, Any]] = {}
        self._active: dict[int, Any] = {}
        self._leaving: list[int] = []
        self._failed_steps = 0
        self._counters = TokenCounters()
        self._reported = TokenCounters()

    def run(self) -> None:
        """Until the other side closes the connection, or the pipeline stays broken.

        Raises ``MemoryError`` once those who wait were told: what the pipeline holds may be half of what it should be.
        """
        with suppress(EOFError, OSError):
            while self._failed_steps < FAILED_STEPS:
                self._obey()
                if self._counters != self._reported:  # who has just come in
                    self._report([])
                try:
                    events = self._step()
                except MemoryError as error:
                    self._report(self._fail_all(f"The engine has no memory left ({error})."))
                    raise
                self._report(events)

    def _obey(self) -> None:
        """Take all waiting commands; wait for one when there is nothing else to do."""
        while self._connection.poll(0 if self._active or self._leaving else None):
            command, number, *request = self._connection.recv()
            if command == "add":
                self._waiting[number] = (request[0], request[1])
                self._counters.running += 1
                self._let_in()
            elif self._waiting.pop(number, None) is not None:
                self._leaving.append(number)
            elif (handle := self._active.pop(number, None)) is not None:
                with suppress(Exception):  # the pipeline may be broken; the next step will say so
                    handle.cancel()
                self._leaving.append(number)

    def _let_in(self) -> None:
        while self._waiting:
            number, (prompt, config) = next(iter(self._waiting.items()))
            if self._room is not None and (config := self._room.take(number, prompt.size, config)) is None:
                return
            del self._waiting[number]
            self._add(number, prompt, config)

    def _add(self, number: int, prompt: Any, config: Any) -> None:
        try:
            self._active[number] = self._pipeline.add_request(number, prompt, config)
        except Exception as error:  # noqa: BLE001 - a C++ library: whatever it throws ends this request
            self._give_back(number)
            self._counters.failed += 1
            self._report([(number, EngineError(f"The engine refused the request ({error})."))])

    def _step(self) -> list[tuple[int, Event]]:
        """Every request's new tokens."""
        try:
            self._pipeline.step()
            self._failed_steps = 0
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - the same C++ library
            self._failed_steps += 1
            events = self._fail_all(f"The engine failed while generating ({type(error).__name__}: {error}).")
        else:
            read = [(number, _read(handle)) for number, handle in self._active.items()]
            events = [(number, event) for number, event in read if event is not None]
            for number, event in events:
                self._count(number, event)
        # A cancelled request gives its cache blocks back during the step after, also when nothing else runs.
        for number in self._leaving:
            self._give_back(number)
        self._counters.cancelled += len(self._leaving)
        self._leaving = []
        self._let_in()
        return events

    def _give_back(self, number: int) -> None:
        self._counters.running -= 1
        if self._room is not None:
            self._room.give_back(number)

    def _count(self, number: int, event: Event) -> None:
        if isinstance(event, TokenBatch):
            self._counters.generated_tokens += len(event.ids)
        if is_last(event):
            del self._active[number]
            self._give_back(number)
            self._counters.finished += isinstance(event, TokenBatch)
            self._counters.failed += isinstance(event, ExpertRouterError)

    def _fail_all(self, message: str) -> list[tuple[int, Event]]:
        for handle in self._active.values():
            with suppress(Exception):  # the pipeline may be broken; the request ends all the same
                handle.cancel()
        events: list[tuple[int, Event]] = [(number, EngineError(message)) for number in self._active]
        for number, event in events:
            self._count(number, event)
        return events

    def _report(self, events: list[tuple[int, Event]]) -> None:
        self._connection.send((self._counters, events))
        self._reported = replace(self._counters)


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


class _Pipeline:
    """The library's pipeline, for prompts of shape (1, tokens) and configurations that can be sent."""

    def __init__(self, folder: str, scheduler: dict[str, Any], device: dict[str, Any]) -> None:
        import openvino as ov
        import openvino_genai as genai

        self._tensor, self._config = ov.Tensor, genai.GenerationConfig
        config = genai.SchedulerConfig()
        for name, value in scheduler.items():
            setattr(config, name, value)
        self._pipeline = genai.ContinuousBatchingPipeline(folder, config, "CPU", device)
        self.step = self._pipeline.step
        self.room: LookupRoom | None = None
        if device.get(LOOKUP):
            self.room = LookupRoom(config.max_num_batched_tokens, self._blocks(), config.max_num_seqs)

    def _blocks(self) -> int:
        """Of the attention cache: one token takes one of them, and the library says which share that is."""
        one = {"max_new_tokens": 1, "ignore_eos": True, **lookup_settings(1)}
        _handle = self.add_request(0, np.zeros((1, 1), np.int64), one)  # kept: a request whose handle goes is dropped
        self.step()
        blocks: int = round(100 / self._pipeline.get_metrics().cache_usage)
        return blocks

    def add_request(self, number: int, prompt: Any, config: dict[str, Any]) -> Any:
        return self._pipeline.add_request(number, self._tensor(prompt), self._config(**config))


def main() -> None:
    """The connection is the standard input. First comes what to load; the answer is ``None`` or why it cannot be."""
    connection = begin()
    status = 0
    with suppress(EOFError, OSError):
        try:
            pipeline = _Pipeline(*connection.recv())
        except RuntimeError as error:
            connection.send(str(error))
        except MemoryError:
            status = OUT_OF_MEMORY
        else:
            connection.send(None)
            status = _run(Stepper(pipeline, connection, pipeline.room))
    os._exit(status)  # nothing is left to save, and the library takes its time


def _run(stepper: Stepper) -> int:
    try:
        stepper.run()
    except MemoryError:
        return OUT_OF_MEMORY
    return BROKEN
