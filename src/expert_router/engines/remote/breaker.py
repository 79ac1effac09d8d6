"""When a server that keeps failing is asked again: a circuit breaker, and how much may be asked twice at all.

The breaker is Nygard's (Release It!, 2007): closed, open after failures in a row, half-open while one request tries
whether it is over. The budget bounds what retries add to a load under which servers fail, as Finagle's does.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from expert_router.engines.backoff import doubled, jittered

if TYPE_CHECKING:
    from collections.abc import Callable

FAILURES_IN_A_ROW = 3
LONGEST_PAUSE_S = 30.0
RETRY_SHARE = 0.2
"""So many requests in one may be asked a second time, over a longer time."""
RETRY_BURST = 10.0


class Breaker:
    """Of one server, as its requests went. ``clock`` counts seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._in_a_row = 0
        self._pauses = 0
        self._due: float | None = None
        """When a probe may go; ``None`` while it is closed."""
        self._probing = False

    @property
    def state(self) -> str:
        if self._due is None:
            return "closed"
        return "half_open" if self._probing else "open"

    @property
    def closed(self) -> bool:
        return self._due is None

    @property
    def admits(self) -> bool:
        """Whether a request may go now; only one does while it is open and due."""
        return self._due is None or (not self._probing and self._clock() >= self._due)

    @property
    def wait_s(self) -> float:
        """Until it may admit one."""
        return 0.0 if self._due is None else max(0.0, self._due - self._clock())

    def begin(self) -> bool:
        """A request goes that was admitted; whether it is the probe."""
        self._probing = self._probing or not self.closed
        return not self.closed

    def answered(self, *, probe: bool) -> None:
        """The server began to answer."""
        if probe and self._probing:
            self._due, self._probing = None, False

    def succeeded(self) -> None:
        """An answer was whole."""
        if self.closed:
            self._in_a_row = self._pauses = 0

    def failed(self, *, probe: bool) -> None:
        """What began before it opened says nothing new."""
        if not self.closed and not probe:
            return
        self._in_a_row += 1
        if probe or self._in_a_row >= FAILURES_IN_A_ROW:
            pause_s = doubled(self._pauses, longest_s=LONGEST_PAUSE_S)
            self._due, self._probing = self._clock() + jittered(pause_s), False
            self._pauses += 1

    def left(self, *, probe: bool) -> None:
        """The request ended without telling anything: another may be the probe."""
        if probe and not self.closed:
            self._probing = False

    def try_now(self) -> None:
        """Something else tells that the server is back."""
        if self._due is not None:
            self._due = self._clock()


class RetryBudget:
    """Each request earns a share of a retry; what is saved is a burst at most."""

    def __init__(self) -> None:
        self._saved = RETRY_BURST

    def earn(self) -> None:
        self._saved = min(RETRY_BURST, self._saved + RETRY_SHARE)

    def take(self) -> bool:
        """Whether something may be asked again."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True
