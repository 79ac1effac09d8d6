"""The specification's endpoint: one question in, its classification and the answer out."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response  # noqa: TC002 - FastAPI reads the annotation

from expert_router.api.deps import CallerDep, SystemDep, unless_disconnected
from expert_router.api.schemas import LoggedId, LoggedQuery, QueryRequest, QueryResponse
from expert_router.api.server_timing import server_timing
from expert_router.serving.objects import decision_object
from expert_router.types import ChatRequest, GenerationParams, Message

router = APIRouter(tags=["Query"])


@router.post("/query", summary="Ask one question", response_model_exclude_unset=True)
async def query(
    body: QueryRequest, request: Request, response: Response, system: SystemDep, caller: CallerDep
) -> QueryResponse:
    params = GenerationParams(max_tokens=system.options.max_tokens, cache=caller.cache)
    messages = (Message("user", body.query),)
    chat_request = ChatRequest(
        messages,
        params=params,
        client=caller.sender,
        wait_s=caller.wait_s,
        expected_wait_s=caller.expected_wait_s,
    )
    events = caller.metered(system.dispatcher.stream(chat_request), chat_request)
    answer = await unless_disconnected(request, system.dispatcher.ask(chat_request, events))
    response.headers.update(server_timing(answer.timings))
    logged = {"expert_router": LoggedQuery(decision=LoggedId(id=answer.decision.id))} if answer.decision.id else {}
    return QueryResponse(
        query=answer.query,
        classification=",".join(answer.answered_by) or answer.decision.kind,
        response=answer.text,
        scores=decision_object(answer.decision)["scores"],
        **logged,
    )
