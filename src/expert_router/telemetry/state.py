"""What a server holds now, as gauges: read when it is asked for, kept nowhere."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from expert_router.telemetry.series import Family

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from expert_router.telemetry.series import Labels
    from expert_router.types import Served

ADAPTER_DIGITS = 12
ANSWER = ("expert", "adapter")
"""What tells answers apart."""

RUNNING = Family("expert_router_num_requests_running", "gauge", "Runs of the engine that have a slot.")
WAITING = Family("expert_router_num_requests_waiting", "gauge", "Runs of the engine that wait for a slot.")
INFO = Family(
    "expert_router_expert_info",
    "gauge",
    "1 for each expert, with the weights that answer for it: the adapter's hash, its first 12 digits.",
    (*ANSWER, "base_model"),
)
READY = Family(
    "expert_router_expert_ready",
    "gauge",
    "1 where an expert can answer; 0 while it is loaded, and where refused.",
    ("expert",),
)
ENGINE = Family(
    "expert_router_engine_status",
    "gauge",
    "What the engine counts itself, by the model that it loaded where it tells: `engine` in `GET /health/ready`.",
    ("model", "name"),
)
CACHE_BYTES = Family("expert_router_cache_bytes", "gauge", "What the kept answers take in this process.")
CACHE_ANSWERS = Family("expert_router_cache_answers", "gauge", "Answers that are kept in this process.")
CACHE_REACHABLE = Family("expert_router_cache_reachable", "gauge", "1 where the answers that are kept elsewhere are.")
CPU = Family(
    "process_cpu_seconds_total",
    "counter",
    "Processor time of this process; the processes of `openvino`'s models are apart.",
)
MEMORY = Family(
    "process_resident_memory_bytes", "gauge", "Memory of this process; the processes of `openvino`'s models are apart."
)
STARTED = Family("process_start_time_seconds", "gauge", "When this server began, in seconds since 1970.")

NOW = (RUNNING, WAITING, INFO, READY, ENGINE, CACHE_BYTES, CACHE_ANSWERS, CACHE_REACHABLE, CPU, MEMORY, STARTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """What the server holds now. ``served`` has every expert that may be named, ``None`` where it cannot be served.

    ``engine`` are the engine's counters by model, ``""`` where it names none; ``cache`` those of the kept answers.
    """

    running: int
    waiting: int
    served: Mapping[str, Served | None]
    ready: Mapping[str, bool]
    engine: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    cache: Mapping[str, float] = field(default_factory=dict)


def gauges(state: ServerState, started: float) -> Iterator[tuple[Family, Mapping[Labels, float]]]:
    """Each with its values; the process ``started`` then, in seconds since 1970."""
    yield RUNNING, {(): state.running}
    yield WAITING, {(): state.waiting}
    yield (
        INFO,
        {
            (name, short_hash(served.adapter if served else None), served.base if served else ""): 1
            for name, served in state.served.items()
        },
    )
    yield READY, {(name,): int(ready) for name, ready in state.ready.items()}
    yield (
        ENGINE,
        {(model, name): value for model, counters in state.engine.items() for name, value in counters.items()},
    )
    for family, name in ((CACHE_BYTES, "bytes"), (CACHE_ANSWERS, "answers"), (CACHE_REACHABLE, "reachable")):
        yield family, {(): state.cache[name]} if name in state.cache else {}
    usage = resource.getrusage(resource.RUSAGE_SELF)
    yield CPU, {(): usage.ru_utime + usage.ru_stime}
    yield MEMORY, _memory()
    yield STARTED, {(): started}


def _memory() -> dict[Labels, float]:
    """Where the system tells it."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except OSError:
        return {}
    return {(): pages * os.sysconf("SC_PAGE_SIZE")}


def short_hash(adapter: str | None) -> str:
    """Enough of it to tell adapters apart; empty without one."""
    return (adapter or "")[:ADAPTER_DIGITS]
