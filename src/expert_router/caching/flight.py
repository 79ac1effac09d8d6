"""One run of an engine that any number of clients listen to. It belongs to none of them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from expert_router.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from expert_router.types import Chunk


class Flight:
    """``chunks`` are taken in a task of its own, however slowly they are listened to: an answer's length bounds them.

    When the last listener leaves before the answer is whole, the run is cancelled. What follows the last chunk is not
    waited for.
    """

    def __init__(self, chunks: AsyncGenerator[Chunk]) -> None:
        self._said: list[Chunk] = []
        self._news = asyncio.Event()
        self._over = False
        self._error: Exception | None = None
        self._listeners = 0
        self._abandoned = False
        self.task = asyncio.create_task(self._take(chunks))
        self.task.add_done_callback(self._end)

    @property
    def whole(self) -> bool:
        return bool(self._said) and self._said[-1].finish_reason is not None

    @property
    def joinable(self) -> bool:
        """Not when it failed, broke off or is being given up."""
        return self.whole or not (self._over or self._abandoned)

    async def listen(self) -> AsyncGenerator[Chunk]:
        """All of the answer: what was said so far at once, the rest as it comes. Raises what the run raises."""
        heard = 0
        self._listeners += 1
        try:
            while True:
                for chunk in self._said[heard:]:
                    heard += 1
                    yield chunk
                if heard == len(self._said):
                    if self._over:
                        break
                    await self._news.wait()
            if self._error is not None:
                raise self._error
        finally:
            self._listeners -= 1
            if not self._listeners and not self._over:
                await self._abandon()

    async def _abandon(self) -> None:
        self._abandoned = True
        self.task.cancel()
        await asyncio.wait({self.task})  # the engine's slot is free when this returns

    async def _take(self, chunks: AsyncGenerator[Chunk]) -> None:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    self._said.append(chunk)
                    self._over = self.whole
                    self._tell()
        except Exception as error:  # noqa: BLE001 - raised again where it is listened to
            self._error = error

    def _end(self, task: asyncio.Task[None]) -> None:
        """However it ended: a task that is cancelled before it began runs nothing of its own."""
        if task.cancelled():
            self._error = EngineError("The engine was closed.")
        self._over = True
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
