"""An engine that gives the same answer again where the same was asked, and never another.

What is asked twice at the same moment is answered by one run. It knows nothing of routing, prompts or knowledge: what
shapes an answer is in the messages, in the parameters, or in what the engine under it says of itself.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from expert_router.caching.flight import Flight
from expert_router.caching.key import DEFAULT, Keeping, answer_key
from expert_router.caching.recording import is_whole, read, written
from expert_router.errors import OverloadedError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from expert_router.ports import AnswerStore, Engine
    from expert_router.types import CacheResult, Chunk, Expert, GenerationParams, Message, Served

LARGEST_BYTES = 1024**2
"""An answer that takes more is not kept."""


@dataclass(slots=True)
class CacheCounters:
    """What became of the engine's requests; ``unreadable`` and ``too_large`` are of answers, and also misses."""

    hits: int = 0
    misses: int = 0
    shared: int = 0
    off: int = 0
    unreadable: int = 0
    too_large: int = 0


class CachingEngine:
    """The ``engine``, with its whole answers in ``store``; both are its own from here on. Made for one event loop.

    The last chunk says where the answer came from.
    """

    def __init__(self, engine: Engine, store: AnswerStore, keeping: Keeping = DEFAULT) -> None:
        self.name = engine.name
        self._engine = engine
        self._store = store
        self._keeping = keeping
        self._flights: dict[str, Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._counters = CacheCounters()

    async def stream(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        """See ``ports.Engine``. An error of a run that several listen to reaches all of them, and is not kept.

        Only where the run was not let in the others ask once more: it waited for its turn as the request that began it.
        """
        for again in (True, False):
            result, source = self._source(expert, messages, params)
            heard = False
            try:
                async with aclosing(source) as chunks:
                    async for chunk in chunks:
                        heard = True
                        yield replace(chunk, cache=result or chunk.cache) if chunk.finish_reason else chunk
            except OverloadedError:
                if heard or result != "shared" or not again:
                    raise
            else:
                return

    def served(self, expert: Expert) -> Served:
        return self._engine.served(expert)

    def identity(self, expert: Expert) -> str | None:
        return self._engine.identity(expert)

    async def warm_up(self, expert: Expert) -> None:
        await self._engine.warm_up(expert)

    def status(self) -> dict[str, object]:
        return {**self._engine.status(), "cache": {**asdict(self._counters), **self._store.status()}}

    async def close(self) -> None:
        """The engine first: what runs ends with its error."""
        try:
            await self._engine.close()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._store.close()

    def _source(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> tuple[CacheResult | None, AsyncGenerator[Chunk]]:
        """Where the answer is to come from; ``None`` when its last chunk will tell."""
        key = self._key_of(expert, messages, params)
        if key is None:
            self._counters.off += 1
            return "off", self._engine.stream(expert, messages, params)
        flight = self._flights.get(key)
        if flight is None or not flight.joinable or params.cache == "renew":
            return None, self._begin(key, expert, messages, params).listen()
        self._counters.hits += flight.whole
        self._counters.shared += not flight.whole
        return "hit" if flight.whole else "shared", flight.listen()

    def _key_of(self, expert: Expert, messages: Sequence[Message], params: GenerationParams) -> str | None:
        """``None`` where the answer may neither be kept nor be one that was."""
        identity = self._engine.identity(expert) if self._keeping.allows(params) else None
        if identity is None:
            return None
        return answer_key(
            namespace=self._keeping.namespace,
            client=self._keeping.whose(params.ticket.client) if params.ticket is not None else "",
            engine=self.name,
            identity=identity,
            expert=expert.name,
            messages=messages,
            params=params,
        )

    def _begin(self, key: str, expert: Expert, messages: Sequence[Message], params: GenerationParams) -> Flight:
        flight = Flight(self._answer(key, expert, messages, params))
        self._flights[key] = flight
        self._tasks.add(flight.task)
        flight.task.add_done_callback(lambda task: self._end(key, flight, task))
        return flight

    def _end(self, key: str, flight: Flight, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _answer(
        self, key: str, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        """From the store or from the engine; what ends whole is kept."""
        kept = None if params.cache == "renew" else await self._kept(key)
        if kept is not None:
            self._counters.hits += 1
            for chunk in kept:
                yield replace(chunk, cache="hit") if chunk.finish_reason else chunk
            return
        self._counters.misses += 1
        said: list[Chunk] = []
        async with aclosing(self._engine.stream(expert, messages, params)) as chunks:
            async for chunk in chunks:
                said.append(chunk)
                yield replace(chunk, cache="miss") if chunk.finish_reason else chunk
        if is_whole(said):
            await self._keep(key, said)

    async def _kept(self, key: str) -> tuple[Chunk, ...] | None:
        value = await self._store.get(key)
        chunks = None if value is None else read(value)
        self._counters.unreadable += value is not None and chunks is None
        return chunks

    async def _keep(self, key: str, chunks: Sequence[Chunk]) -> None:
        value = written(chunks)
        if len(value) > LARGEST_BYTES:
            self._counters.too_large += 1
        else:
            await self._store.put(key, value)
