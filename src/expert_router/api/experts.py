"""Experts over HTTP: who there is, and, for whoever has the admin key, adding, removing and rolling back."""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request

from expert_router.api.deps import SystemDep  # noqa: TC001 - FastAPI reads the annotation
from expert_router.api.schemas import AddExpertRequest, RollbackRequest  # noqa: TC001 - FastAPI reads the annotation
from expert_router.errors import AdminClosedError, UnauthorizedError, UnknownModelError
from expert_router.live.experts import LiveExperts

if TYPE_CHECKING:
    from expert_router.live.experts import Change
    from expert_router.types import Expert

router = APIRouter(prefix="/v1/experts", tags=["Experts"])

BEARER = "Bearer "


async def admin(request: Request, system: SystemDep) -> LiveExperts:
    """What changes experts, for a request with the admin key. Compared in constant time."""
    if system.live is None or system.options.admin_key is None:
        raise AdminClosedError(
            "Experts cannot be changed over HTTP: the server has no admin key. Start it with server.admin_key set, for "
            "example EXPERT_ROUTER_SERVER__ADMIN_KEY, at least 16 characters; or use expert-router expert beside it."
        )
    given = request.headers.get("authorization", "")
    expected = BEARER + system.options.admin_key
    if not hmac.compare_digest(given.encode(), expected.encode()):
        raise UnauthorizedError("Send the admin key: Authorization: Bearer <server.admin_key>.")
    return system.live


LiveDep = Annotated[LiveExperts, Depends(admin)]


@router.get("", summary="The experts that can answer, and the version they are of")
async def experts(system: SystemDep) -> dict[str, Any]:
    deployed = system.dispatcher.deployed
    return {"version": deployed.version, "experts": [_expert(expert) for expert in deployed.trained.values()]}


@router.get("/{name}", summary="One expert")
async def expert(name: str, system: SystemDep) -> dict[str, Any]:
    trained = system.dispatcher.deployed.trained
    if name not in trained:
        raise UnknownModelError(f"There is no expert {name!r}. Known: {', '.join(trained)}.", param="name")
    return _expert(trained[name])


@router.post("", status_code=201, summary="Add an expert, and route to it")
async def add(body: AddExpertRequest, live: LiveDep) -> dict[str, Any]:
    """Takes effect before the answer is sent. Requests that run finish with the experts they began with."""
    return _change(await asyncio.to_thread(live.add, body.to_proposal(), replacing=body.replace))


@router.delete("/{name}", summary="Remove an expert; rollback brings it back")
async def remove(name: str, live: LiveDep) -> dict[str, Any]:
    return _change(await asyncio.to_thread(live.remove, name))


@router.post("/rollback", summary="Let an earlier version of the experts count again")
async def rollback(body: RollbackRequest, live: LiveDep) -> dict[str, Any]:
    return _change(await asyncio.to_thread(live.rollback, body.version))


def _expert(expert: Expert) -> dict[str, Any]:
    return {
        "name": expert.name,
        "title": expert.title,
        "description": expert.description,
        "examples": list(expert.examples),
        "reads": expert.knowledge is not None,
        "adapters": {base: adapter.sha256 for base, adapter in expert.adapters.items()},
    }


def _change(change: Change) -> dict[str, Any]:
    version = change.version
    return {
        "version": version.number,
        "change": version.change,
        "added": list(version.added),
        "hidden": sorted(version.hidden),
        "routed_s": round(change.routed_s, 3),
        "warnings": list(change.warnings),
    }
