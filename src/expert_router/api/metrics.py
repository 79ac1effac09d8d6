"""``GET /metrics``, for Prometheus: what requests came to, and what the server holds now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.responses import Response

from expert_router.api.deps import SystemDep  # noqa: TC001 - FastAPI reads the annotation
from expert_router.api.health import readiness
from expert_router.errors import NotReadyError
from expert_router.telemetry.state import ServerState

if TYPE_CHECKING:
    from expert_router.api.deps import System
    from expert_router.types import Served

PATH = "/metrics"
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

router = APIRouter(include_in_schema=False)


@router.get(PATH)
async def metrics(system: SystemDep) -> Response:
    own = exposition(system)
    whole = own if system.workers is None else await system.workers.exposition(own)
    return Response(whole, media_type=MEDIA_TYPE)


def exposition(system: System) -> str:
    """What this process has to tell."""
    return system.metrics.exposition(_state(system), system.workers.label if system.workers is not None else "")


def _state(system: System) -> ServerState:
    status, _, refused = readiness(system)
    dispatcher = system.dispatcher
    counts = dispatcher.engine.status()
    models, cache = counts.get("models"), counts.get("cache")
    by_model = models if isinstance(models, Mapping) else {"": counts}
    ready = status in {"ready", "degraded"}
    return ServerState(
        running=dispatcher.admission.running,
        waiting=dispatcher.admission.waiting,
        served={name: _served(system, name) for name in dispatcher.experts},
        ready={name: ready and name not in refused for name in dispatcher.experts},
        engine={model: _numbers(each) for model, each in by_model.items()},
        cache=_numbers(cache) if isinstance(cache, Mapping) else {},
    )


def _served(system: System, expert: str) -> Served | None:
    try:
        return system.dispatcher.engine.served(system.dispatcher.experts[expert])
    except NotReadyError:
        return None


def _numbers(counts: Mapping[str, object]) -> dict[str, float]:
    return {name: value + 0 for name, value in counts.items() if isinstance(value, int | float)}
