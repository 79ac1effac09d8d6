"""What an answer has come to while it streams, and its record for the observers once it is over.

One clock for what the caller is told (``Timings``) and for what is observed: nothing is measured twice. The observers
are told before the caller has the last event.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Self

from expert_router.errors import error_code
from expert_router.observability import request_id, trace
from expert_router.records import PartRecord, Period, RequestRecord
from expert_router.types import Done, Timings, Usage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from expert_router.ports import RequestObserver
    from expert_router.records import Outcome
    from expert_router.types import (
        AnsweredPart,
        CacheResult,
        ChatRequest,
        Chunk,
        Decision,
        FinishReason,
        Found,
        Served,
        Ticket,
    )

logger = logging.getLogger(__name__)


class Progress:
    """Of one request, in a ``with`` block: however that is left, each of ``observers`` gets the record, once."""

    def __init__(self, request: ChatRequest, observers: Sequence[RequestObserver]) -> None:
        self._request = request
        self._observers = observers
        self._arrived = time.time()
        self._started = time.monotonic()
        self._parts: list[PartProgress] = []
        self._told = False
        self.trace = trace.get()
        self.decision: Decision | None = None
        self.route_s: float | None = None
        self.served: Mapping[str, Served] = {}
        self.ticket: Ticket | None = None
        self.first_token_s: float | None = None

    @property
    def queue_s(self) -> float | None:
        return self.ticket.waited_s if self.ticket else None

    def elapsed_s(self) -> float:
        return self.at_s(time.monotonic())

    def at_s(self, moment: float) -> float:
        """``moment`` is by ``time.monotonic``."""
        return moment - self._started

    def part(self, expert: str) -> PartProgress:
        """What ``expert`` does from now on."""
        part = PartProgress(self, expert, self.served[expert])
        self._parts.append(part)
        return part

    def done(self, parts: tuple[AnsweredPart, ...]) -> Done:
        """The last event; the record is out when this returns."""
        total_s = self.elapsed_s()
        searches = [part.retrieval.seconds for part in self._parts if part.retrieval is not None]
        timings = Timings(
            route_s=self.route_s,
            queue_s=self.queue_s,
            retrieve_s=max(searches, default=None),
            first_token_s=self.first_token_s,
            total_s=total_s,
        )
        whole = [part.usage for part in self._parts if part.usage is not None]
        usage = Usage(sum(each.prompt_tokens for each in whole), sum(each.completion_tokens for each in whole))
        cache = {part.expert: part.cache for part in self._parts if part.cache is not None}
        similar_to = {part.expert: part.similar_to for part in self._parts if part.similar_to is not None}
        reason: FinishReason = "length" if any(part.finish_reason == "length" for part in self._parts) else "stop"
        self._tell(total_s, reason)
        return Done(reason, usage, timings, parts, cache, similar_to)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not self._told:
            outcome, code = _end(error)
            self._tell(self.elapsed_s(), outcome, code)

    def _tell(self, total_s: float, outcome: Outcome, error: str | None = None) -> None:
        self._told = True
        if not self._observers:
            return
        record = RequestRecord(
            request=self._request,
            request_id=request_id.get(),
            arrived=self._arrived,
            total_s=total_s,
            outcome=outcome,
            error=error,
            decision=self.decision,
            route_s=self.route_s,
            first_token_s=self.first_token_s,
            parts=tuple(part.record() for part in self._parts),
            trace=self.trace,
        )
        for observer in self._observers:
            try:
                observer.observe(record)
            except Exception:
                logger.exception("a request was not observed")


class PartProgress:
    """Of one expert's answer, in a ``with`` block."""

    def __init__(self, progress: Progress, expert: str, served: Served) -> None:
        self.expert = expert
        self.trace = progress.trace and progress.trace.child()
        self.retrieval: Period | None = None
        self.usage: Usage | None = None
        self.cache: CacheResult | None = None
        self.similar_to: str | None = None
        self.finish_reason: FinishReason | None = None
        self._progress = progress
        self._served = served
        self._began_s = progress.elapsed_s()
        self._ended_s: float | None = None
        self._passages = 0
        self._first_s: float | None = None
        self._latest_s = 0.0
        self._gaps_s: list[float] = []
        self._outcome: Outcome = "abort"
        self._error: str | None = None

    def retrieved(self, asked_s: float, found: Sequence[Found]) -> None:
        """The search, which began at ``asked_s``, is over."""
        self.retrieval = Period(asked_s, self.elapsed_s())
        self._passages = len(found)

    def elapsed_s(self) -> float:
        return self._progress.elapsed_s()

    def heard(self, chunk: Chunk) -> None:
        """As it comes from the engine, however long it then waits for its turn to be shown."""
        if chunk.text:
            now_s = self.elapsed_s()
            if self._first_s is None:
                self._first_s = now_s
            else:
                self._gaps_s.append(now_s - self._latest_s)
            self._latest_s = now_s
        self.usage = chunk.usage or self.usage
        self.cache = chunk.cache or self.cache
        self.finish_reason = chunk.finish_reason or self.finish_reason

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended_s = self.elapsed_s()
        self._outcome, self._error = _end(error) if error is not None else (self.finish_reason or "stop", None)

    def record(self) -> PartRecord:
        progress, ticket = self._progress, self._progress.ticket
        waits = ticket.waits if ticket is not None else ()
        return PartRecord(
            expert=self.expert,
            served=self._served,
            period=Period(self._began_s, progress.elapsed_s() if self._ended_s is None else self._ended_s),
            outcome=self._outcome,
            error=self._error,
            retrieval=self.retrieval,
            passages=self._passages,
            queue=tuple(
                Period(progress.at_s(wait.began), progress.at_s(wait.ended))
                for wait in waits
                if wait.expert == self.expert
            ),
            first_token_s=self._first_s,
            gaps_s=tuple(self._gaps_s),
            usage=self.usage,
            cache=self.cache,
            trace=self.trace,
        )


def _end(error: BaseException | None) -> tuple[Outcome, str | None]:
    """How a block ended that was left by it; without one it was not finished either."""
    if error is None or isinstance(error, GeneratorExit | asyncio.CancelledError):
        return "abort", None
    return "error", error_code(error)
