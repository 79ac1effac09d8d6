"""A bounded door before the engine: so many run, so many wait, the rest are refused at once.

Who waits is let in by turns, client by client (``fair_queue``). How fast slots come free is measured: it says who would
wait in vain, or longer than is good, and when another try makes sense. Who would be refused can be told so before
anything is done for the answer; whoever is not has a place from then on.
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
        """While all slots are taken."""
        self._pace = DrainRate()
        """While any is: slower than the engine could be, for as long as nothing else is known."""
        self.running = 0

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @contextmanager
    def request(self, client: str = "", wait_s: float | None = None, expected_wait_s: float = inf) -> Iterator[Ticket]:
        """A ticket for the runs of one request, worth to wait ``wait_s`` from now; what is kept for it ends with it.

        See ``ChatRequest`` for ``expected_wait_s``.
        """
        ticket = Ticket(client, inf if wait_s is None else time.monotonic() + wait_s, expected_wait_s)
        try:
            yield ticket
        finally:
            self._arrived(ticket)
            for expert in tuple(ticket.kept):
                self._give_up(ticket, expert)

    def hold_place(self, ticket: Ticket) -> None:
        """For a request that will have a run: its first is not refused for others that come sooner.

        Raises ``OverloadedError`` where it would be now.
        """
        now = time.monotonic()
        if self.running + self._queue.expected >= self._max_running:
            self._refuse_in_vain(ticket, now)
        ticket.placed = ticket.coming = True
        self._queue.expect(ticket.client)

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

    def _arrived(self, ticket: Ticket) -> None:
        if ticket.coming:
            ticket.coming = False
            self._queue.arrived(ticket.client)

    def _give_up(self, ticket: Ticket, expert: str) -> None:
        ticket.kept.pop(expert).cancel()
        self._leave()

    async def _enter(self, expert: str, ticket: Ticket) -> None:
        if expert in ticket.kept:
            ticket.kept.pop(expert).cancel()
            return
        self._arrived(ticket)
        now = time.monotonic()
        if self.running < self._max_running:
            self.running += 1
            if self.running == 1:
                self._pace.begin(now)
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
        if not ticket.placed:
            self._refuse_in_vain(ticket, now)
        ticket.placed = True
        patience_s = min(self._queue_timeout_s, ticket.deadline - now)
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

    def _refuse_in_vain(self, ticket: Ticket, now: float) -> None:
        """Of those that are expected some have a slot that is free; the others are in the queue already, as it were."""
        queued = self.waiting + max(0, self._queue.expected - (self._max_running - self.running))
        if queued >= self._max_queue:
            raise self._refusal("too many requests are waiting")
        own = min(self._queue.of(ticket.client), queued)
        if own >= ceil(self._client_share * (self._max_queue - queued + own)):
            raise self._refusal("too many of your requests are waiting")
        within_s = min(self._queue_timeout_s, ticket.deadline - now, ticket.expected_wait_s)
        ahead, gap_s = min(self._queue.ahead_of(ticket.client), queued), self._gap_s(now)
        if gap_s is None and ticket.expected_wait_s < inf and ahead >= self._max_running:
            raise self._refusal("too many requests are waiting")
        if within_s <= 0 or (gap_s is not None and ahead * gap_s > within_s):
            raise self._refusal(f"no slot would come free within {max(within_s, 0):.3g} s")

    def _gap_s(self, now: float) -> float | None:
        """Seconds from one slot that comes free to the next; ``None`` before any did."""
        gap_s = self._drain.gap_s(now)
        return self._pace.gap_s(now) if gap_s is None else gap_s

    def _withdraw(self, place: Place) -> None:
        """Leave the queue; a slot handed over in the same moment goes to the next."""
        if place.turn.done():
            self._leave()
        else:
            self._queue.remove(place)

    def _leave(self) -> None:
        """Hand the slot to whose turn it is, or give it back."""
        now = time.monotonic()
        self._drain.count(now, goes_on=bool(self._queue))
        self._pace.count(now, goes_on=bool(self._queue) or self.running > 1)
        if self._queue:
            self._queue.pop().turn.set_result(None)
        else:
            self.running -= 1

    def _refusal(self, why: str) -> OverloadedError:
        """Come back once those who wait now are in, by the measured rate; or at the latest when their time is over."""
        gap_s = self._gap_s(time.monotonic())
        drained_s = self._queue_timeout_s if gap_s is None else min((self.waiting + 1) * gap_s, self._queue_timeout_s)
        after_s = ceil(max(drained_s, SOONEST_S))
        return OverloadedError(f"The server is busy: {why}. Try again in {after_s} s.", retry_after_s=after_s)


class DrainRate:
    """How fast slots come free in times that count, as those while all are taken.

    While some are free that says nothing of how fast it could be. Slots and seconds fade alike, by a factor e in
    ``FADES_S`` such seconds: their quotient is right from the first on.
    """

    FADES_S = 60.0

    def __init__(self) -> None:
        self._freed = 0.0
        self._seconds = 0.0
        self._since: float | None = None
        """Seconds until here are counted; ``None`` while they do not count."""

    def begin(self, now: float) -> None:
        """From now on it counts."""
        self._since = now

    def count(self, now: float, *, goes_on: bool) -> None:
        """One came free; it ``goes_on`` when what follows counts too, as where it is taken again at once."""
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
