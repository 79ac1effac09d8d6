"""Liveness: the process answers. Readiness: it can answer questions, or says why not."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from expert_router.api.deps import SystemDep  # noqa: TC001 - FastAPI reads the annotation
from expert_router.errors import ExpertRouterError

if TYPE_CHECKING:
    from expert_router.api.deps import System

router = APIRouter(prefix="/health", tags=["Health"])


@router.get("/live", summary="Is the process alive?")
async def live() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/ready", summary="Can it answer questions?")
async def ready(system: SystemDep) -> JSONResponse:
    status, reason, refused = readiness(system)
    dispatcher = system.dispatcher
    deployed = dispatcher.deployed
    body: dict[str, Any] = {
        "status": status,
        "reason": reason,
        "experts": list(deployed.titles),
        "refused": refused,
        "router": {"name": deployed.router.name, "experts": list(deployed.router.experts)},
        "engine": {"name": dispatcher.engine.name, **dispatcher.engine.status()},
        "similar_answers": None if dispatcher.repeating is None else dispatcher.repeating.answers.status(),
        "decision_log": None if dispatcher.log is None else dispatcher.log.status(),
        "process": {"pid": os.getpid(), "tasks": len(asyncio.all_tasks()), "threads": threading.active_count()},
        "requests": {"running": dispatcher.admission.running, "waiting": dispatcher.admission.waiting},
    }
    return JSONResponse(body, 200 if status in {"ready", "degraded"} else 503)


def readiness(system: System) -> tuple[str, str | None, dict[str, str]]:
    """A word, why it is not "ready", and the experts that are refused with the reason."""
    warm_up = system.warm_up
    status = system.dispatcher.engine.status()
    unusable = status.get("unusable")
    if warm_up is not None and not warm_up.done():
        return "loading", str(unusable or "the models are being loaded"), {}
    if unusable:
        return "failed", str(unusable), {}
    error = None if warm_up is None or warm_up.cancelled() else warm_up.exception()
    if error is not None and "unusable" not in status:
        explained = isinstance(error, ExpertRouterError)
        return "failed", str(error) if explained else "the engine could not be started; see the log", {}
    if refused := system.standing.refused():
        return "degraded", f"refused: {', '.join(refused)}", refused
    return "ready", None, {}
