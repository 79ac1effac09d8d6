"""Answers in this process: bounded in bytes and in age, least recently used out first."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ENTRY_BYTES = 400
"""What an answer takes besides its own bytes: its key, its place in the order, its time."""


class MemoryStore:
    """A ``ports.AnswerStore`` for one event loop. ``clock`` gives seconds and never goes back."""

    def __init__(self, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0
        self._evicted = 0

    async def get(self, key: str) -> bytes | None:
        if key not in self._entries:
            return None
        ends, value = self._entries[key]
        if self._clock() >= ends:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return value

    async def put(self, key: str, value: bytes) -> None:
        if key in self._entries:
            self._drop(key)
        if _size(value) > self._max_bytes:
            return
        self._entries[key] = (self._clock() + self._ttl_s, value)
        self._bytes += _size(value)
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
            self._evicted += 1

    def status(self) -> dict[str, object]:
        return {"store": "memory", "answers": len(self._entries), "bytes": self._bytes, "evicted": self._evicted}

    async def close(self) -> None:
        self._entries.clear()
        self._bytes = 0

    def _drop(self, key: str) -> None:
        _, value = self._entries.pop(key)
        self._bytes -= _size(value)


def _size(value: bytes) -> int:
    return ENTRY_BYTES + len(value)
