"""How long what a client held stays taken once it has left, by the engine's and the door's own counters.

It knows neither HTTP nor the page: a way to ask is a stream of pieces, and leaving is cancelling who reads it. The time
runs from before the client closes, so what it takes for that itself is in it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from expert_router.errors import EngineError

POINTS = ("queued", "prompt", "answer")
POLL_S = 0.0005
IN_ANSWER_S = 0.1
"""So long after the engine took it a request is left whose answer cannot be seen while it comes."""
WITHIN_S = 30.0

Visit: TypeAlias = Callable[[str], AsyncGenerator[str]]
"""Asks the question in one way, and gives the answer's pieces as they can be seen."""


@dataclass(frozen=True, slots=True)
class Held:
    """What is taken at a moment: runs in the engine, slots and places at its door; ``cancelled`` counts of its runs."""

    running: int
    cancelled: int
    slots: int
    waiting: int

    @classmethod
    def of(cls, status: Mapping[str, object], slots: int, waiting: int) -> Held:
        """``status`` is an engine's: the sum over its models, whichever way it holds them."""
        return cls(_sum(status, "running"), _sum(status, "cancelled"), slots, waiting)


@dataclass(frozen=True, slots=True)
class Leaving:
    """Milliseconds from a client's leaving until all that it held is free, ``times`` times.

    ``cancelled`` counts the runs that the engine ended for it; who was queued had none.
    """

    way: str
    point: str
    times: int
    cancelled: int
    p50_ms: float
    p95_ms: float
    worst_ms: float


async def measure_leaving(
    way: str, visit: Visit, held: Callable[[], Held], question: Callable[[], str], *, times: int, streams: bool
) -> list[Leaving]:
    """Leave a system in which one may run and nothing does: from the queue, while the prompt is read, in the answer.

    Each ``question`` is another one. ``streams`` says whether an answer can be seen while it comes. Raises
    ``EngineError`` when an answer is over before it is left, or something stays taken.
    """
    results = []
    for point in POINTS:
        seconds, cancelled = [], 0
        for _ in range(times):
            holder = _Client(visit, question()) if point == "queued" else None
            if holder is not None:
                await holder.until(lambda: held().running == 1)
            before = held().cancelled
            seconds.append(await _leave(_Client(visit, question()), held, point, streams=streams))
            cancelled += held().cancelled - before
            if holder is not None:
                await holder.leave()
                await _until(lambda: held().running + held().slots == 0)
        p50, p95, worst = np.percentile(np.array(seconds) * 1000, [50, 95, 100])
        results.append(Leaving(way, point, times, cancelled, float(p50), float(p95), float(worst)))
    return results


async def _leave(client: _Client, held: Callable[[], Held], point: str, *, streams: bool) -> float:
    """Seconds."""

    def taken() -> int:
        now = held()
        return now.waiting if point == "queued" else now.running + now.slots

    await client.until(lambda: held().waiting == 1 if point == "queued" else held().running == 1)
    if point == "answer" and streams:
        await client.until(lambda: client.said > 0)
    elif point == "answer":
        await asyncio.sleep(IN_ANSWER_S)
    started = time.perf_counter()
    leaving = asyncio.create_task(client.leave())
    await _until(lambda: not taken())
    seconds = time.perf_counter() - started
    await leaving
    return seconds


class _Client:
    def __init__(self, visit: Visit, question: str) -> None:
        self.said = 0
        self._task = asyncio.create_task(self._read(visit, question))

    async def _read(self, visit: Visit, question: str) -> None:
        async with aclosing(visit(question)) as pieces:
            async for _ in pieces:
                self.said += 1

    async def until(self, condition: Callable[[], bool]) -> None:
        await _until(lambda: condition() or self._task.done())
        if self._task.done():
            raise self._task.exception() or EngineError("An answer was over before it could be left.")

    async def leave(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + WITHIN_S
    while not condition():
        if time.perf_counter() > deadline:
            raise EngineError(f"What a client held was not as it should be within {WITHIN_S:g} s.")
        await asyncio.sleep(POLL_S)


def _sum(status: object, name: str) -> int:
    if not isinstance(status, dict):
        return 0
    return sum(value if key == name and isinstance(value, int) else _sum(value, name) for key, value in status.items())
