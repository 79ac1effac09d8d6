"""A bounded door before the engine: so many run, so many wait, the rest are refused at once.

Who waits is let in by turns, client by client (``fair_queue``). How fast slots come free is measured: it says who would
wait in vain, and when another try makes sense.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, contextmanager
from math import ceil, exp, inf
from typing import TYPE_CHECKING

from expert_router.errors import OverloadedError
from expert_router.serving.fair_queue import FairQueue, Place
from expert_router.types import Ticket, Wait

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

KEPT_S = 0.5
"""So long a slot waits for what follows a first token: longer than a look at the kept answers takes."""
SOONEST_S = 1.0
"""Nobody is told to come back earlier."""


class Admission:
    """Made for one event loop.

    ``queue_timeout_s`` bounds the wait. One client may take ``client_share`` of the places that others leave, so that
    there is one for the next client however many ask for more; 1 lets it take all (Choudhury and Hahne, "Dynamic queue
    length thresholds for shared-memory packet switches", 1998).
    """

    def __init__(self, max_running: int, max_queue: int, queue_timeout_s: float, client_share: float = 1.0) -> None:
        self._max_running = max_running
        self._max_queue = max_queue
        self._queue_timeout_s = queue_timeout_s
        self._client_share = client_share
        self._queue = FairQueue()
        self._drain = DrainRate()
        self.running = 0

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @contextmanager
    def request(self, client: str = "", wait_s: float | None = None) -> Iterator[Ticket]:
        """A ticket for the runs of one request, worth to wait ``wait_s`` from now; what is kept for it ends with it."""
        ticket = Ticket(client, inf if wait_s is None else time.monotonic() + wait_s)
        try:
            yield ticket
        finally:
            for expert in tuple(ticket.kept):
                self._give_up(ticket, expert)

    @asynccontextmanager
    async def slot(
        self, expert: str = "", ticket: Ticket | None = None, *, asks_on: bool = False
    ) -> AsyncIterator[None]:
        """For one run. Raises ``OverloadedError``: at once, or when the wait was too long.

        A run that ``asks_on`` keeps its slot for ``KEPT_S``, for the ticket's next one by this expert. A request with a
        place is not refused for what its other runs need, but they wait for their turn like any.
        """
        if ticket is None:
            ticket, asks_on = Ticket(), False
        await self._enter(expert, ticket)
        kept = False
        try:
            yield
            kept = asks_on and expert not in ticket.kept
        finally:
            if kept:
                loop = asyncio.get_running_loop()
                ticket.kept[expert] = loop.call_later(KEPT_S, self._give_up, ticket, expert)
            else:
                self._leave()

    def _give_up(self, ticket: Ticket, expert: str) -> None:
        ticket.kept.pop(expert).cancel()
        self._leave()

    async def _enter(self, expert: str, ticket: Ticket) -> None:
        if expert in ticket.kept:
            ticket.kept.pop(expert).cancel()
            return
        now = time.monotonic()
        if self.running < self._max_running:
            self.running += 1
            if self.running == self._max_running:
                self._drain.begin(now)
            ticket.waits.append(Wait(expert, now, now))
        else:
            try:
                await self._wait(expert, ticket, now)
            finally:
                ticket.waits.append(Wait(expert, now, time.monotonic()))
        ticket.placed = True

    async def _wait(self, expert: str, ticket: Ticket, now: float) -> None:
        patience_s = min(self._queue_timeout_s, ticket.deadline - now)
        if not ticket.placed:
            self._refuse_in_vain(ticket.client, patience_s, now)
        ticket.placed = True
        place = Place(ticket.client, expert, asyncio.get_running_loop().create_future())
        self._queue.push(place)
        try:
            async with asyncio.timeout(patience_s):  # wait_for may lose a cancellation at handover
                await asyncio.shield(place.turn)
        except TimeoutError:
            self._withdraw(place)
            raise self._refusal(f"no slot came free within {max(patience_s, 0):.3g} s") from None
        except asyncio.CancelledError:
            self._withdraw(place)
            raise

    def _refuse_in_vain(self, client: str, patience_s: float, now: float) -> None:
        if self.waiting >= self._max_queue:
            raise self._refusal("too many requests are waiting")
        left = self._max_queue - self.waiting + self._queue.of(client)
        if self._queue.of(client) >= ceil(self._client_share * left):
            raise self._refusal("too many of your requests are waiting")
        gap_s = self._drain.gap_s(now)
        if patience_s <= 0 or (gap_s is not None and self._queue.ahead_of(client) * gap_s > patience_s):
            raise self._refusal(f"no slot would come free within {max(patience_s, 0):.3g} s")

    def _withdraw(self, place: Place) -> None:
        """Leave the queue; a slot handed over in the same moment goes to the next."""
        if place.turn.done():
            self._leave()
        else:
            self._queue.remove(place)

    def _leave(self) -> None:
        """Hand the slot to whose turn it is, or give it back."""
        self._drain.count(time.monotonic(), goes_on=bool(self._queue))
        if self._queue:
            self._queue.pop().turn.set_result(None)
        else:
            self.running -= 1

    def _refusal(self, why: str) -> OverloadedError:
        """Come back once those who wait now are in, by the measured rate; or at the latest when their time is over."""
        gap_s = self._drain.gap_s(time.monotonic())
        drained_s = self._queue_timeout_s if gap_s is None else min((self.waiting + 1) * gap_s, self._queue_timeout_s)
        after_s = ceil(max(drained_s, SOONEST_S))
        return OverloadedError(f"The server is busy: {why}. Try again in {after_s} s.", retry_after_s=after_s)


class DrainRate:
    """How fast slots come free while all are taken; while some are free that says nothing of how fast it could be.

    Slots and seconds fade alike, by a factor e in ``FADES_S`` such seconds: their quotient is right from the first on.
    """

    FADES_S = 60.0

    def __init__(self) -> None:
        self._freed = 0.0
        self._seconds = 0.0
        self._since: float | None = None
        """Seconds until here are counted; ``None`` while not all slots are taken."""

    def begin(self, now: float) -> None:
        """All slots are taken from now on."""
        self._since = now

    def count(self, now: float, *, goes_on: bool) -> None:
        """One came free; it ``goes_on`` when it is taken again at once."""
        if self._since is not None:
            seconds = now - self._since
            fades = exp(-seconds / self.FADES_S)
            self._freed = self._freed * fades + 1
            self._seconds = self._seconds * fades + seconds
        self._since = now if goes_on else None

    def gap_s(self, now: float) -> float | None:
        """Seconds from one to the next, what has passed since the last included; ``None`` before the first."""
        if not self._freed:
            return None
        return (self._seconds + (0.0 if self._since is None else now - self._since)) / self._freed
