"""How an engine or a whole system behaves as clients are added: first token, whole answer, tokens a second."""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file, save

from expert_router.artifacts import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_artifact, write_artifact
from expert_router.errors import ConfigError
from expert_router.types import ChatRequest, Done, GenerationParams, Message, Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from expert_router.serving.dispatcher import Dispatcher
    from expert_router.types import Expert


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Seconds; each pair is the 50th and 95th percentile over requests. ``cpu_s`` is the processors' for an answer."""

    clients: int
    requests: int
    tokens_per_s: float
    first_token_s: tuple[float, float]
    answer_s: tuple[float, float]
    cpu_s: float


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
    max_tokens: int,
    models: Sequence[str],
) -> LoadResult:
    """``clients`` ask one question after the other until ``requests`` are answered, by each of ``models`` in turn."""
    numbers = iter(range(requests))
    samples: list[_Sample] = []

    async def client() -> None:
        for number in numbers:
            question, model = questions[number % len(questions)], models[number % len(models)]
            sample = await _one(dispatcher, question, max_tokens, model)
            samples.append(sample)

    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return LoadResult(
        clients,
        len(samples),
        sum(sample.tokens for sample in samples) / seconds,
        _percentiles([sample.first_token_s for sample in samples]),
        _percentiles([sample.answer_s for sample in samples]),
        cpu / len(samples),
    )


def with_copies(experts: Mapping[str, Expert], base: str, count: int, folder: Path) -> dict[str, Expert]:
    """``count`` experts that have an adapter for the base: those there are, then copies of them in turn.

    A copy's file differs by a remark, so that no engine takes the two for one; it is the same file each time. Raises
    ``ConfigError`` when there is none to copy.
    """
    trained = [expert for expert in experts.values() if base in expert.adapters]
    if not trained:
        raise ConfigError(f"No expert has an adapter for {base}, so there is nothing to copy.")
    copies = (_copy(trained[n % len(trained)], base, n // len(trained) + 1, folder) for n in range(count))
    return {expert.name: expert for expert in copies}


def _copy(expert: Expert, base: str, number: int, folder: Path) -> Expert:
    if number == 1:
        return expert
    name, adapter = f"{expert.name}-{number}", expert.adapters[base]
    weights = save(load_file(adapter.path / ADAPTER_WEIGHTS), metadata={"format": "pt", "copy": name})
    files = {ADAPTER_CONFIG: (adapter.path / ADAPTER_CONFIG).read_bytes(), ADAPTER_WEIGHTS: weights}
    write_artifact(folder / name, files, {"base": base, "canary": read_artifact(adapter.path)["canary"]})
    copied = replace(adapter, path=folder / name, sha256=hashlib.sha256(weights).hexdigest())
    return replace(expert, name=name, adapters={base: copied}, serve_as={})


def resident_mb() -> int:
    """What this process holds in memory, in MB; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text("utf-8")
    except OSError:
        return 0
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


async def _one(dispatcher: Dispatcher, question: str, max_tokens: int, model: str) -> _Sample:
    request = ChatRequest((Message("user", question),), model, GenerationParams(max_tokens=max_tokens))
    started, first, tokens = time.perf_counter(), 0.0, 0
    async with aclosing(dispatcher.stream(request)) as events:
        async for event in events:
            if isinstance(event, Text) and not first:
                first = time.perf_counter() - started
            if isinstance(event, Done):
                tokens = event.usage.completion_tokens
    return _Sample(first, time.perf_counter() - started, tokens)


def _percentiles(values: list[float]) -> tuple[float, float]:
    p50, p95 = np.percentile(np.array(values), [50, 95])
    return float(p50), float(p95)
