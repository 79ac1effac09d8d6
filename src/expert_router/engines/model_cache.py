"""Loaded models, bounded in bytes: loaded once however many ask, unloaded least recently used first.

It knows nothing of what a model is: it is given functions that load, weigh and unload one, and tell whether it lives.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from expert_router.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

M = TypeVar("M")

SHUTTING_DOWN = "The engine is shutting down."


@dataclass
class _Entry(Generic[M]):
    loading: Future[M]
    leases: int = 0
    size_bytes: int = 0
    retired: bool = False


class ModelCache(Generic[M]):
    """``max_bytes`` bounds what stays loaded; a model in use is never unloaded, so the bound can be passed for a while.

    The model that was asked for last stays, however large it is. Loading runs in a thread of its own, one at a time
    (two loads would fight for the same cores), off every event loop. A load that fails is forgotten, so that the next
    request tries again; so is a model that has died.
    """

    def __init__(
        self,
        max_bytes: int,
        load: Callable[[str], M],
        size_of: Callable[[M], int],
        unload: Callable[[M], None],
        alive: Callable[[M], bool] = lambda _: True,
    ) -> None:
        self._max_bytes = max_bytes
        self._load = load
        self._size_of = size_of
        self._unload = unload
        self._alive = alive
        self._entries: OrderedDict[str, _Entry[M]] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model-load")

    @asynccontextmanager
    async def lease(self, key: str) -> AsyncIterator[M]:
        """The loaded model, kept loaded until the context ends. Raises what loading raises."""
        entry = self._take(key)
        try:
            yield await _loaded(entry)
        finally:
            self._give_back(entry)

    def retire(self, key: str) -> None:
        """Unload it as soon as nobody uses it, whatever there is room for. The key is not to be asked for again."""
        with self._lock:
            if key in self._entries and not self._closed:
                self._entries[key].retired = True
                self._loader.submit(self._evict)

    def loaded(self) -> dict[str, M]:
        with self._lock:
            return {key: entry.loading.result() for key, entry in self._entries.items() if self._is_usable(entry)}

    def loading(self) -> list[str]:
        with self._lock:
            return [key for key, entry in self._entries.items() if not entry.loading.done()]

    def close(self) -> None:
        """Unload everything; a load that runs is waited for, one that waits is not begun.

        What is loaded goes first: who uses it is told at once, however long the load takes.
        """
        with self._lock:
            self._closed = True
            loaded = [entry for entry in self._entries.values() if _is_loaded(entry)]
        for entry in loaded:
            self._unload(entry.loading.result())
        self._loader.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            entries, self._entries = list(self._entries.values()), OrderedDict()
        for entry in entries:
            if _is_loaded(entry) and not any(entry is each for each in loaded):
                self._unload(entry.loading.result())

    def _take(self, key: str) -> _Entry[M]:
        with self._lock:
            entry = self._entries.get(key)
            if self._closed:
                raise EngineError(SHUTTING_DOWN)
            if entry is None or (entry.loading.done() and not self._is_usable(entry)):
                entry = self._entries[key] = _Entry(self._loader.submit(self._load_and_evict, key))
            self._entries.move_to_end(key)
            entry.leases += 1
            return entry

    def _is_usable(self, entry: _Entry[M]) -> bool:
        return _is_loaded(entry) and self._alive(entry.loading.result())

    def _give_back(self, entry: _Entry[M]) -> None:
        with self._lock:
            entry.leases -= 1
            if entry.leases == 0 and not self._closed and (entry.retired or self._surplus() > 0):
                self._loader.submit(self._evict)

    def _load_and_evict(self, key: str) -> M:
        try:
            model = self._load(key)
        except BaseException:
            with self._lock:
                self._entries.pop(key, None)
            raise
        with self._lock:
            self._entries[key].size_bytes = self._size_of(model)
        self._evict()
        return model

    def _evict(self) -> None:
        """Unload what is idle and too much. Runs in the loader's thread, as unloading blocks."""
        with self._lock:
            idle = [] if self._closed else self._pop_surplus()
        for entry in idle:
            self._unload(entry.loading.result())

    def _surplus(self) -> int:
        return sum(entry.size_bytes for entry in self._entries.values()) - self._max_bytes

    def _pop_surplus(self) -> list[_Entry[M]]:
        popped: list[_Entry[M]] = []
        for position, (key, entry) in enumerate(list(self._entries.items()), start=1):
            older = position < len(self._entries) + len(popped)
            unwanted = entry.retired or (older and self._surplus() > 0)
            if unwanted and entry.leases == 0 and _is_loaded(entry):
                popped.append(self._entries.pop(key))
        return popped


async def _loaded(entry: _Entry[M]) -> M:
    try:
        # Shielded: one waiter that leaves must not cancel the load for the others.
        return await asyncio.shield(asyncio.wrap_future(entry.loading))
    except asyncio.CancelledError:
        if entry.loading.cancelled():  # not this task was cancelled, but the load, by ``close``
            raise EngineError(SHUTTING_DOWN) from None
        raise


def _is_loaded(entry: _Entry[M]) -> bool:
    return entry.loading.done() and not entry.loading.cancelled() and entry.loading.exception() is None
