"""A bounded door before the engine: so many run, so many wait, the rest are refused at once."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from expert_router.errors import OverloadedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Admission:
    """First come, first served. Made for one event loop.

    ``queue_timeout_s`` bounds the wait; who is refused learns after how many seconds another try makes sense.
    """

    def __init__(self, max_running: int, max_queue: int, queue_timeout_s: float) -> None:
        self._max_running = max_running
        self._max_queue = max_queue
        self._queue_timeout_s = queue_timeout_s
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.running = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Raises ``OverloadedError`` when the queue is full or the wait too long."""
        await self._enter()
        try:
            yield
        finally:
            self._leave()

    async def _enter(self) -> None:
        if self.running < self._max_running:
            self.running += 1
            return
        if len(self._waiting) >= self._max_queue:
            raise self._refusal("too many requests are waiting")
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._queue_timeout_s):  # wait_for may lose a cancellation at handover
                await asyncio.shield(turn)
        except TimeoutError:
            self._withdraw(turn)
            raise self._refusal(f"no slot came free within {self._queue_timeout_s:g} s") from None
        except asyncio.CancelledError:
            self._withdraw(turn)
            raise

    def _withdraw(self, turn: asyncio.Future[None]) -> None:
        """Leave the queue; a slot handed over in the same moment goes to the next."""
        if turn.done():
            self._leave()
        else:
            self._waiting.remove(turn)

    def _leave(self) -> None:
        """Hand the slot to the longest-waiting request, or give it back."""
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self.running -= 1

    def _refusal(self, why: str) -> OverloadedError:
        return OverloadedError(f"The server is busy: {why}. Try again in a moment.", retry_after_s=1.0)
