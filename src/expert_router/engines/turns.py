"""Who may run at once where only requests of one kind can share a batch.

llama.cpp never computes two adapters together: it goes on with the first slot that generates and leaves those of other
adapters where they are, so that a stream of requests for one expert would keep all others waiting without end. Here the
kinds take turns. While none waits for another kind, whoever comes runs; otherwise those that run go on to their end,
and then all that wait for the kind of the longest waiting begin together.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from expert_router.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(eq=False, slots=True)
class Ticket:
    """One request: its kind, and the tokens of memory that it may come to need."""

    kind: str | None
    tokens: int


T = TypeVar("T", bound=Ticket)


class Turns(Generic[T]):
    """At most ``slots`` run at once, with ``tokens`` together; one that asks for more than that runs alone.

    ``begin`` is called when a request's turn comes, with nothing admitted meanwhile: it must not block. Thread-safe.
    """

    def __init__(self, slots: int, tokens: int, begin: Callable[[T], None]) -> None:
        self._slots = slots
        self._tokens = tokens
        self._begin = begin
        self._lock = threading.Lock()
        self._waiting: list[T] = []
        self._running: list[T] = []
        self._closed = False

    def enter(self, ticket: T) -> None:
        """Begin it now or later. Raises ``EngineError`` once closed."""
        with self._lock:
            if self._closed:
                raise EngineError("The engine is shutting down.")
            self._waiting.append(ticket)
            self._admit()

    def withdraw(self, ticket: T) -> None:
        """It no longer wants to begin; one that runs goes on until it leaves."""
        with self._lock:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self._admit()

    def leave(self, ticket: T) -> None:
        """It has ended."""
        with self._lock:
            self._running.remove(ticket)
            self._admit()

    def close(self) -> list[T]:
        """Begin nothing any more; returns those that waited."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, []
        return waiting

    def _admit(self) -> None:
        if not self._waiting:
            return
        kind = (self._running or self._waiting)[0].kind
        if self._running and any(ticket.kind != kind for ticket in self._waiting):
            return
        for ticket in [ticket for ticket in self._waiting if ticket.kind == kind]:
            if self._running and not self._has_room(ticket):
                return
            self._waiting.remove(ticket)
            self._running.append(ticket)
            self._begin(ticket)

    def _has_room(self, ticket: T) -> bool:
        tokens = ticket.tokens + sum(running.tokens for running in self._running)
        return len(self._running) < self._slots and tokens <= self._tokens
