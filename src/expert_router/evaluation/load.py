"""How an engine or a whole system behaves as clients are added: first token, whole answer, tokens a second."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_router.evaluation.percentiles import p50_and
from expert_router.types import ChatRequest, Done, Message, Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_router.serving.dispatcher import Dispatcher
    from expert_router.types import GenerationParams


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Seconds; each pair is the 50th and 95th percentile over requests. ``tokens`` are those of all answers."""

    clients: int
    requests: int
    tokens: int
    tokens_per_s: float
    first_token_s: tuple[float, float]
    answer_s: tuple[float, float]


@dataclass(frozen=True, slots=True)
class _Sample:
    first_token_s: float
    answer_s: float
    tokens: int


async def measure_load(
    dispatcher: Dispatcher,
    questions: Sequence[str],
    *,
    clients: int,
    requests: int,
    model: str,
    params: GenerationParams,
) -> LoadResult:
    """``clients`` ask one question after the other until ``requests`` are answered; questions are taken in turn."""
    numbers = iter(range(requests))
    samples: list[_Sample] = []

    async def client() -> None:
        for number in numbers:
            sample = await _one(dispatcher, questions[number % len(questions)], model, params)
            samples.append(sample)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - started
    tokens = sum(sample.tokens for sample in samples)
    return LoadResult(
        clients,
        len(samples),
        tokens,
        tokens / seconds,
        p50_and(95, [sample.first_token_s for sample in samples]),
        p50_and(95, [sample.answer_s for sample in samples]),
    )


async def _one(dispatcher: Dispatcher, question: str, model: str, params: GenerationParams) -> _Sample:
    request = ChatRequest((Message("user", question),), model, params)
    started, first, tokens = time.perf_counter(), 0.0, 0
    async with aclosing(dispatcher.stream(request)) as events:
        async for event in events:
            if isinstance(event, Text) and not first:
                first = time.perf_counter() - started
            if isinstance(event, Done):
                tokens = event.usage.completion_tokens
    return _Sample(first, time.perf_counter() - started, tokens)
