"""Decisions to the log, off the event loop: one thread writes, a bounded queue waits for it.

An answer never waits for the log and never fails for it: what cannot be taken or written is counted, and said once.
Feedback goes through the same queue, so that it finds a decision that was made just before.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import secrets
import sqlite3
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_router.decision_log import LoggedDecision, stamp
from expert_router.errors import ConfigError, NotReadyError, UnknownDecisionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from expert_router.decision_log import DecisionStore
    from expert_router.types import Decision, Feedback, Served

logger = logging.getLogger(__name__)

MAX_WAITING = 1024
MAX_CHARACTERS = 8000
"""Of a turn; more tells no router more."""
MAX_TURNS = 20
FEEDBACK_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 5.0
"""So long the end waits for what is still to be written."""


@dataclass(frozen=True, slots=True)
class _Rated:
    decision: str
    feedback: Feedback
    found: Future[bool]


class DecisionWriter:
    """A ``ports.DecisionLog``. The store is its own from here on."""

    def __init__(self, store: DecisionStore, max_waiting: int = MAX_WAITING) -> None:
        self._store = store
        self._waiting: queue.Queue[LoggedDecision | _Rated | None] = queue.Queue(max_waiting)
        self._counts = {"written": 0, "dropped": 0, "failed": 0}
        self._closed = False
        self._thread = threading.Thread(target=self._write_all, name="decision-log", daemon=True)
        self._thread.start()

    def record(
        self, turns: Sequence[str], decision: Decision, served: Mapping[str, Served], version: str
    ) -> str | None:
        *history, question = (turn[:MAX_CHARACTERS] for turn in turns[-MAX_TURNS - 1 :])
        forced = decision.kind == "forced"
        logged = LoggedDecision(
            secrets.token_hex(8),
            stamp(),
            question,
            tuple(history),
            decision.router,
            "" if forced else version,
            decision.scores,
            decision.kind,
            decision.experts,
            decision.experts[0] if forced else None,
            {name: each.adapter for name, each in served.items()},
        )
        return logged.id if self._put(logged) else None

    async def rate(self, decision: str, feedback: Feedback) -> None:
        rated = _Rated(decision, feedback, Future())
        if not self._put(rated):
            raise NotReadyError("The decision log has too much to write: send the feedback again in a moment.")
        try:
            found = await asyncio.wait_for(asyncio.wrap_future(rated.found), FEEDBACK_TIMEOUT_S)
        except (sqlite3.Error, OSError, ConfigError, TimeoutError) as error:
            raise NotReadyError(
                f"The decision log cannot be written now ({str(error) or 'it takes too long'})."
            ) from error
        if not found:
            raise UnknownDecisionError(
                f"The decision log has no decision {decision!r}: it was deleted for its age, or never written.",
                param="decision",
            )

    def status(self) -> dict[str, int]:
        return dict(self._counts)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._waiting.put(None, timeout=CLOSE_TIMEOUT_S)
        except queue.Full:
            logger.warning("the decision log was not written to its end", extra={"waiting": self._waiting.qsize()})
            return
        self._thread.join(CLOSE_TIMEOUT_S)

    def _put(self, item: LoggedDecision | _Rated) -> bool:
        try:
            if not self._closed:
                self._waiting.put_nowait(item)
                return True
        except queue.Full:
            self._missed("dropped", "more decisions come than can be written")
        return False

    def _write_all(self) -> None:
        try:
            self._store.prune()
        except (sqlite3.Error, OSError, ConfigError) as error:
            self._missed("failed", error)
        while (item := self._waiting.get()) is not None:
            try:
                self._write(item)
            except Exception as error:  # noqa: BLE001 - whatever it is, the thread goes on
                if isinstance(item, _Rated):
                    item.found.set_exception(error)
                self._missed("failed", error)
        self._store.close()

    def _write(self, item: LoggedDecision | _Rated) -> None:
        if isinstance(item, _Rated):
            if item.found.set_running_or_notify_cancel():
                item.found.set_result(self._store.rate(item.decision, item.feedback))
        else:
            self._store.add(item)
            self._counts["written"] += 1

    def _missed(self, why: str, error: object) -> None:
        """Counted each time, said the first time."""
        self._counts[why] += 1
        if self._counts[why] == 1:
            logger.warning(
                "the decision log misses decisions; answers go on without it", extra={"why": why, "error": str(error)}
            )
