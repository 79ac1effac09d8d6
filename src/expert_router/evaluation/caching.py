"""What a kept answer costs: a hit, and what looking in vain and keeping add to an answer of the engine's own.

The engine under it is the echo engine, which takes no time to think: what is measured is the way, not the model.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_router.errors import EngineError
from expert_router.types import ChatRequest, Expert, GenerationParams, Message

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from expert_router.ports import Engine
    from expert_router.serving.dispatcher import Dispatcher

TOKENS = 80
"""Of an answer: what an expert says on average, as docs/benchmarks.md has it."""
READ_WORDS = 600
"""Of the prompt: the instructions and five passages."""
WARM_UP = 100
SETTLE_S = 0.0005

EXPERT = Expert("sleep", "Sleep science", "How sleep works.", "")
PARAMS = GenerationParams(max_tokens=TOKENS)


@dataclass(frozen=True, slots=True)
class CacheLatency:
    """Milliseconds until the last piece of an answer, over ``answers`` of them, one after the other."""

    way: str
    answers: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


async def measure_engine(way: str, engine: Engine, answers: int, *, same: bool, expect: str | None) -> CacheLatency:
    """Ask the engine one question again and again, or each time another.

    Raises ``EngineError`` when an answer does not come from where it is expected to (``Chunk.cache``).
    """

    async def ask(number: int) -> str | None:
        messages = [Message("system", "word " * READ_WORDS), Message("user", _question(0 if same else number))]
        async with aclosing(engine.stream(EXPERT, messages, PARAMS)) as chunks:
            async for chunk in chunks:
                last = chunk
        return last.cache

    return await _measure(way, ask, answers, expect)


async def measure_dispatcher(
    way: str, dispatcher: Dispatcher, answers: int, *, same: bool, expect: str | None
) -> CacheLatency:
    """The same through routing, retrieval and all."""

    async def ask(number: int) -> str | None:
        question = Message("user", _question(0 if same else number))
        answer = await dispatcher.ask(ChatRequest((question,), params=PARAMS))
        return next(iter(answer.cache.values()), None)

    return await _measure(way, ask, answers, expect)


async def _measure(
    way: str, ask: Callable[[int], Awaitable[str | None]], answers: int, expect: str | None
) -> CacheLatency:
    seconds = []
    for number in range(-WARM_UP, answers):
        await asyncio.sleep(SETTLE_S)  # or the next one would still listen to the run before it
        started = time.perf_counter()
        came_from = await ask(number)
        seconds.append(time.perf_counter() - started)
        if came_from != expect and number >= 0:
            raise EngineError(f"{way}: answer {number} came from {came_from}, not from {expect}.")
    p50, p95, p99 = np.percentile(np.array(seconds[WARM_UP:]) * 1000, [50, 95, 99])
    return CacheLatency(way, answers, float(p50), float(p95), float(p99))


def _question(number: int) -> str:
    """So long that the echo engine's answer has as many words as are asked for, and clearly one expert's."""
    return f"Number {number}: " + " ".join(["What happens in the brain in REM sleep?"] * (TOKENS // 8))
