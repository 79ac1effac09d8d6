"""A bounded door before the engine: so many run, so many wait, the rest are refused at once.

Who waits is let in by turns, client by client (``fair_queue``). How fast slots come free is measured: it says who would
wait in vain, or longer than is good, and when another try makes sense. Who would be refused can be told so before
anything is done for the answer; whoever is not has a place from then on.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, contextmanager
from math import ceil, inf
from typing import TYPE_CHECKING

from expert_router.errors import OverloadedError
from expert_router.serving.drain_rate import DrainRate
from expert_router.serving.fair_queue import FairQueue, Place
from expert_router.types import Ticket, Wait

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

KEPT_S = 0.5
"""So long a slot waits for what follows a first token: longer than a look at the kept answers takes."""
PREFILL_S = 5.0
"""So long a run may count as one that reads its prompt: where an engine loads a model or hangs, others go on."""
SOONEST_S = 1.0
"""Nobody is told to come back earlier."""


class Admission:
    """Made for one event loop.

    ``queue_timeout_s`` bounds the wait. Of those that run ``max_prefills`` have no token yet: an engine reads prompts
    one after the other, so that more of them would wait in there, where nobody has turns; none of them counts for
    longer than ``prefill_s``. One client may take ``client_share`` of the places that others leave, so that there is
    one for the next client however many ask for more; 1 lets it take all (Choudhury and Hahne, "Dynamic queue length
    thresholds for shared-memory packet switches", 1998).
    """

    def __init__(
        self,
        max_running: int,
        max_queue: int,
        queue_timeout_s: float,
        client_share: float = 1.0,
        *,
        max_prefills: float = inf,
        prefill_s: float = PREFILL_S,
    ) -> None:
        self._max_running = max_running
        self._max_prefills = max_prefills
        self._prefill_s = prefill_s
        self._max_queue = max_queue
        self._queue_timeout_s = queue_timeout_s
        self._client_share = client_share
        self._queue = FairQueue()
        self._drain = DrainRate()
        """While nobody can come in."""
        self._pace = DrainRate()
        """While any is: slower than the engine could be, so it says when to come back and refuses nobody."""
        self._full_since: float | None = None
        self._prefills = 0
        self.running = 0

    @property
    def _free(self) -> float:
        """So many may come in."""
        return min(self._max_running - self.running, self._max_prefills - self._prefills)

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
        if self._queue.expected >= self._free:
            self._refuse_in_vain(ticket, now)
        ticket.placed = ticket.coming = True
        self._queue.expect(ticket.client)

    @asynccontextmanager
    async def slot(
        self, expert: str = "", ticket: Ticket | None = None, *, asks_on: bool = False
    ) -> AsyncIterator[Callable[[], None]]:
        """For one run, which tells when it has its first token. Raises ``OverloadedError``: at once, or after a wait.

        A run that ``asks_on`` keeps its slot for ``KEPT_S``, for the ticket's next one by this expert. A request with a
        place is not refused for what its other runs need, but they wait for their turn like any.
        """
        if ticket is None:
            ticket, asks_on = Ticket(), False
        prefill = _Prefill(self._end_prefill, self._prefill_s if await self._enter(expert, ticket) else None)
        kept = False
        try:
            yield prefill.end
            kept = asks_on and expert not in ticket.kept
        finally:
            prefill.end()
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

    async def _enter(self, expert: str, ticket: Ticket) -> bool:
        """Whether it reads its prompt now: one that comes back to its slot has."""
        if expert in ticket.kept:
            ticket.kept.pop(expert).cancel()
            return False
        self._arrived(ticket)
        now = time.monotonic()
        if self._free > 0:
            self._let_in(now)
            if self._free <= 0:
                self._full_since = now
                self._drain.begin(now)
            ticket.waits.append(Wait(expert, now, now))
        else:
            try:
                await self._wait(expert, ticket, now)
            finally:
                ticket.waits.append(Wait(expert, now, time.monotonic()))
        ticket.placed = True
        return True

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
        """Of those that are expected some can come in at once; the others are in the queue already, as it were."""
        queued = self.waiting + int(max(0, self._queue.expected - self._free))
        if queued >= self._max_queue:
            raise self._refusal("too many requests are waiting")
        own = min(self._queue.of(ticket.client), queued)
        if own >= ceil(self._client_share * (self._max_queue - queued + own)):
            raise self._refusal("too many of your requests are waiting")
        standing = self._full_since is not None and now - self._full_since > ticket.expected_wait_s
        within_s = min(self._queue_timeout_s, ticket.deadline - now, ticket.expected_wait_s if standing else inf)
        ahead, gap_s = min(self._queue.ahead_of(ticket.client), queued), self._drain.gap_s(now)
        if gap_s is None and standing and ahead >= self._max_running:
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
            self._end_prefill()
            self._leave()
        else:
            self._queue.remove(place)

    def _let_in(self, now: float) -> None:
        self.running += 1
        self._prefills += 1
        if self.running == 1:
            self._pace.begin(now)

    def _leave(self) -> None:
        now, full = time.monotonic(), self._free <= 0
        self.running -= 1
        self._pace.count(now, goes_on=self.running > 0)
        self._hand_over(now, full=full)

    def _end_prefill(self) -> None:
        full = self._free <= 0
        self._prefills -= 1
        self._hand_over(time.monotonic(), full=full)

    def _hand_over(self, now: float, *, full: bool) -> None:
        """To whose turn it is, where it was ``full`` and no longer is."""
        if full and self._free > 0:
            if self._queue:
                self._let_in(now)
                self._queue.pop().turn.set_result(None)
            self._drain.count(now, goes_on=self._free <= 0)
            self._full_since = self._full_since if self._free <= 0 else None

    def _refusal(self, why: str) -> OverloadedError:
        """Come back once those who wait now are in, by the measured rate; or at the latest when their time is over."""
        gap_s = self._gap_s(time.monotonic())
        drained_s = self._queue_timeout_s if gap_s is None else min((self.waiting + 1) * gap_s, self._queue_timeout_s)
        after_s = ceil(max(drained_s, SOONEST_S))
        return OverloadedError(f"The server is busy: {why}. Try again in {after_s} s.", retry_after_s=after_s)


class _Prefill:
    """A run from when it is let in to its first token, or to its end, or for so long; ``None``: it reads nothing."""

    def __init__(self, end: Callable[[], None], at_most_s: float | None) -> None:
        self._end = end
        loop = asyncio.get_running_loop()
        self._timer = None if at_most_s is None else loop.call_later(at_most_s, self.end)

    def end(self) -> None:
        """Told any number of times."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._end()
