"""Why a question goes where it goes: the words that mattered, and the examples most like it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from expert_router.api.deps import SystemDep  # noqa: TC001 - FastAPI reads the annotation
from expert_router.api.schemas import ExplainRequest  # noqa: TC001 - FastAPI reads the annotation
from expert_router.serving.objects import explanation_object

router = APIRouter(prefix="/v1", tags=["Explanation"])


@router.post("/explain", summary="Say why a question goes where it goes")
async def explain(body: ExplainRequest, system: SystemDep) -> dict[str, Any]:
    """Asks the router alone. ``nearest`` is null until the server has read its examples, some seconds after its start.

    Nobody waits for that: the next request may have them.
    """
    system.read_examples()
    return explanation_object(await system.dispatcher.deployed.explain(body.query, body.history, body.nearest))
