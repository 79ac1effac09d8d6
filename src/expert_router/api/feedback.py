"""What a person says of a decision: whether who answered was right, and who should have."""

from __future__ import annotations

from fastapi import APIRouter, Response

from expert_router.api.deps import SystemDep  # noqa: TC001 - FastAPI reads the annotation
from expert_router.api.schemas import FeedbackRequest  # noqa: TC001 - FastAPI reads the annotation
from expert_router.errors import DecisionLogOffError

router = APIRouter(prefix="/v1", tags=["Feedback"])


@router.post("/feedback", summary="Say whether a decision was right", status_code=204, response_class=Response)
async def feedback(body: FeedbackRequest, system: SystemDep) -> None:
    """The last feedback on a decision counts."""
    dispatcher = system.dispatcher
    if dispatcher.log is None:
        raise DecisionLogOffError(
            "No decisions are kept, so there is nothing to rate. To keep them, start the server with decision_log.path "
            "set, for example EXPERT_ROUTER_DECISION_LOG__PATH=runs/decisions.sqlite."
        )
    await dispatcher.log.rate(body.decision, body.to_feedback(list(dispatcher.deployed.titles)))
