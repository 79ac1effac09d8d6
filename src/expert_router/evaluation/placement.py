"""What it is worth to ask an engine of several replicas where the expert is loaded: first tokens, answers a second.

It knows nothing of replicas: it keeps so many questions under way at an engine, each for an expert drawn anew, and
times them. The same questions in the same order are asked of each engine that is compared.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_router.types import GenerationParams, Message

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from expert_router.ports import Engine
    from expert_router.types import Expert


@dataclass(frozen=True, slots=True)
class Load:
    """``count`` questions, ``at_once`` of them under way, of ``max_tokens`` each; ``seed`` draws the experts."""

    count: int
    at_once: int
    max_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Placed:
    """One run: each question's seconds until its first text, in no order, and how long all took together."""

    first_token_s: tuple[float, ...]
    total_s: float

    @property
    def answers_per_s(self) -> float:
        return len(self.first_token_s) / self.total_s


@dataclass(frozen=True, slots=True)
class Summary:
    """Of all runs of one placement together. First tokens in milliseconds."""

    placement: str
    answers: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    answers_per_s: float


def summary(placement: str, runs: Sequence[Placed]) -> Summary:
    first_ms = np.array([seconds for run in runs for seconds in run.first_token_s]) * 1000
    per_s = len(first_ms) / sum(run.total_s for run in runs)
    p50, p95 = np.percentile(first_ms, [50, 95])
    return Summary(placement, len(first_ms), float(first_ms.mean()), float(p50), float(p95), per_s)


async def measure(engine: Engine, experts: Sequence[Expert], load: Load) -> Placed:
    """Raises what the engine raises."""
    drawn = _questions(experts, load)
    first_token_s: list[float] = []

    async def ask_on() -> None:
        for expert, messages in drawn:
            first_token_s.append(await _first_token_s(engine, expert, messages, load.max_tokens))

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(load.at_once):
            group.create_task(ask_on())
    return Placed(tuple(first_token_s), time.perf_counter() - started)


def _questions(experts: Sequence[Expert], load: Load) -> Iterator[tuple[Expert, list[Message]]]:
    chance = random.Random(load.seed)  # noqa: S311 - not for secrets
    for number in range(load.count):
        expert = chance.choice(experts)
        question = f"Question {number}: {chance.choice(expert.examples)}"
        yield expert, [Message("system", expert.instructions), Message("user", question)]


async def _first_token_s(engine: Engine, expert: Expert, messages: list[Message], max_tokens: int) -> float:
    """The answer is read to its end, which it has after so many tokens."""
    asked, first = time.perf_counter(), 0.0
    params = GenerationParams(max_tokens=max_tokens, ignore_eos=True)
    async with aclosing(engine.stream(expert, messages, params)) as chunks:
        async for chunk in chunks:
            if chunk.text and not first:
                first = time.perf_counter() - asked
    return first
