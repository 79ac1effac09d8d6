"""Loaded models, bounded in bytes: loaded once however many ask, unloaded least recently used first.

It knows nothing of what a model is: it is given functions that load, weigh and unload one.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

M = TypeVar("M")


@dataclass
class _Entry(Generic[M]):
    loading: Future[M]
    leases: int = 0
    size_bytes: int = 0


class ModelCache(Generic[M]):
    """``max_bytes`` bounds what stays loaded; a model in use is never unloaded, so the bound can be passed for a while.

    Loading runs in a thread of its own, one at a time (two loads would fight for the same cores), off every event
    loop. A load that fails is forgotten, so that the next request tries again.
    """

    def __init__(
        self,
        max_bytes: int,
        load: Callable[[str], M],
        size_of: Callable[[M], int],
        unload: Callable[[M], None],
    ) -> None:
        self._max_bytes = max_bytes
        self._load = load
        self._size_of = size_of
        self._unload = unload
        self._entries: OrderedDict[str, _Entry[M]] = OrderedDict()
        self._lock = threading.Lock()
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model-load")

    @asynccontextmanager
    async def lease(self, key: str) -> AsyncIterator[M]:
        """The loaded model, kept loaded until the context ends."""
        entry = self._take(key)
        try:
            # Shielded: one waiter that leaves must not cancel the load for the others.
            yield await asyncio.shield(asyncio.wrap_future(entry.loading))
        finally:
            self._give_back(entry)

    def loaded(self) -> dict[str, M]:
        with self._lock:
            return {key: entry.loading.result() for key, entry in self._entries.items() if _is_loaded(entry)}

    def loading(self) -> list[str]:
        with self._lock:
            return [key for key, entry in self._entries.items() if not entry.loading.done()]

    def close(self) -> None:
        self._loader.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            entries, self._entries = list(self._entries.values()), OrderedDict()
        for entry in entries:
            if _is_loaded(entry):
                self._unload(entry.loading.result())

    def _take(self, key: str) -> _Entry[M]:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = _Entry(self._loader.submit(self._load_and_evict, key))
            self._entries.move_to_end(key)
            entry.leases += 1
            return entry

    def _give_back(self, entry: _Entry[M]) -> None:
        with self._lock:
            entry.leases -= 1

    def _load_and_evict(self, key: str) -> M:
        try:
            model = self._load(key)
        except BaseException:
            with self._lock:
                self._entries.pop(key, None)
            raise
        with self._lock:
            self._entries[key].size_bytes = self._size_of(model)
            idle = self._pop_surplus(keep=key)
        for entry in idle:
            self._unload(entry.loading.result())
        return model

    def _pop_surplus(self, keep: str) -> list[_Entry[M]]:
        surplus = sum(entry.size_bytes for entry in self._entries.values()) - self._max_bytes
        popped: list[_Entry[M]] = []
        for key, entry in list(self._entries.items()):
            if surplus <= 0:
                break
            if key != keep and entry.leases == 0 and _is_loaded(entry):
                popped.append(self._entries.pop(key))
                surplus -= entry.size_bytes
        return popped


def _is_loaded(entry: _Entry[M]) -> bool:
    return entry.loading.done() and not entry.loading.cancelled() and entry.loading.exception() is None
