"""Experts over HTTP: who there is, and, for whoever has an admin's key, adding, removing and rolling back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request

from expert_router.api.deps import SystemDep, key_of
from expert_router.api.schemas import AddExpertRequest, RollbackRequest  # noqa: TC001 - FastAPI reads the annotation
from expert_router.errors import AdminClosedError, ScopeError, UnauthorizedError, UnknownModelError
from expert_router.live.experts import LiveExperts

if TYPE_CHECKING:
    from expert_router.live.experts import Change
    from expert_router.types import Expert

router = APIRouter(prefix="/v1/experts", tags=["Experts"])


async def admin(request: Request, system: SystemDep) -> LiveExperts:
    """What changes experts, for a request with an admin's key."""
    if system.live is None or not system.keyring.has_admin:
        raise AdminClosedError(
            "Experts cannot be changed over HTTP: the server has no admin key. Start it with server.admin_key set, for "
            "example EXPERT_ROUTER_SERVER__ADMIN_KEY, at least 16 characters, or make one (expert-router keys add NAME "
            "--admin); or use expert-router expert beside it."
        )
    key = key_of(request)
    if key is None:
        raise UnauthorizedError("Send an admin's key: Authorization: Bearer <key>.")
    if key.scope != "admin":
        raise ScopeError(f"The key {key.id} may ask, and not change the experts: send an admin's.")
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
