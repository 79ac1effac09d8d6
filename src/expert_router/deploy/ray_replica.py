"""A replica of the engine deployment: the configured engine in a process of its own, somewhere in the cluster."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_router.errors import ExpertRouterError
from expert_router.ports import Holds

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

    from expert_router.ports import Engine
    from expert_router.types import Chunk, Expert, GenerationParams, Message

BEAT_S = 2.0
"""How often a replica says that it lives while there is nothing to send."""
AHEAD = 64
MOST_KEYS = 1000


@dataclass(frozen=True, slots=True)
class Pieces:
    """What a replica sends: the chunks that came together, none where it only says that it lives.

    ``error`` ends the answer. It is sent and not raised, as Ray would make another error of it.
    """

    replica: str
    chunks: tuple[Chunk, ...] = ()
    error: ExpertRouterError | None = None


class EngineReplica:
    """``name`` is the replica's in the cluster. It owns the ``engine``."""

    def __init__(self, name: str, engine: Engine) -> None:
        self.name = name
        self._engine = engine
        self._asked: dict[str, Expert] = {}
        self._under_way: Counter[str] = Counter()

    async def stream(
        self,
        key: str,
        expert: Expert,
        messages: Sequence[Message],
        params: GenerationParams,
        avoid: str = "",  # noqa: ARG002 - Ray hands over all that was sent; the request router has read it
    ) -> AsyncGenerator[Pieces]:
        """The engine's chunks, those that are ready at the same time together; closing it closes the engine's stream.

        Says that it lives at once and then every ``BEAT_S``, also while the expert's model is loaded.
        """
        with self._asking(key, expert):
            yield Pieces(self.name)
            async with aclosing(self._pieces(expert, messages, params)) as answer:
                async for pieces in answer:
                    yield pieces

    async def _pieces(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Pieces]:
        ready: asyncio.Queue[Chunk | None] = asyncio.Queue(AHEAD)
        taking = asyncio.create_task(_take(self._engine.stream(expert, messages, params), ready))
        try:
            ended = False
            while not ended:
                taken: list[Chunk | None] = []
                with suppress(TimeoutError):
                    async with asyncio.timeout(BEAT_S):
                        taken.append(await ready.get())
                while not ready.empty():
                    taken.append(ready.get_nowait())
                ended = bool(taken) and taken[-1] is None
                chunks = tuple(chunk for chunk in taken if chunk is not None)
                if chunks or not ended:
                    yield Pieces(self.name, chunks)
            try:
                await taking
            except ExpertRouterError as error:
                yield Pieces(self.name, error=error)
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    async def warm_up(self, key: str, expert: Expert) -> ExpertRouterError | None:
        """Load what the expert needs; what is wrong with it is returned, as Ray would make another error of it."""
        with self._asking(key, expert):
            try:
                await self._engine.warm_up(expert)
            except ExpertRouterError as error:
                return error
        return None

    def status(self) -> dict[str, object]:
        """``pid`` is this process's, on whichever node."""
        return {"replica": self.name, "pid": os.getpid(), **self._engine.status()}

    def held(self) -> list[str]:
        """The keys of the experts that it answers for without loading anything, or is loading."""
        holds: Callable[[Expert], bool] = self._engine.holds if isinstance(self._engine, Holds) else lambda _: True
        return [key for key, expert in self._asked.items() if self._under_way[key] or holds(expert)]

    async def close(self) -> None:
        await self._engine.close()

    @contextmanager
    def _asking(self, key: str, expert: Expert) -> Iterator[None]:
        """The last asked last; adapters come and go as long as it runs."""
        self._asked.pop(key, None)
        self._asked[key] = expert
        while len(self._asked) > MOST_KEYS:
            del self._asked[next(iter(self._asked))]
        self._under_way[key] += 1
        try:
            yield
        finally:
            self._under_way[key] -= 1
            if not self._under_way[key]:
                del self._under_way[key]


async def _take(chunks: AsyncGenerator[Chunk], ready: asyncio.Queue[Chunk | None]) -> None:
    """All chunks, then ``None``, also where they break off."""
    try:
        async for chunk in chunks:
            await ready.put(chunk)
    except Exception:
        await ready.put(None)
        raise
    finally:
        await chunks.aclose()
    await ready.put(None)
