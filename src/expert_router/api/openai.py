"""OpenAI's endpoints: chat completions, whole and streamed, and the list of models."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.responses import Response  # noqa: TC002 - FastAPI reads the annotation

from expert_router.api import sse
from expert_router.api.deps import CallerDep, SystemDep, unless_disconnected
from expert_router.api.errors import error_object
from expert_router.api.schemas import ChatCompletionRequest  # noqa: TC001 - FastAPI reads the annotation
from expert_router.api.server_timing import server_timing
from expert_router.errors import ExpertRouterError, UnknownModelError
from expert_router.serving.objects import (
    all_source_objects,
    cache_object,
    decision_object,
    part_objects,
    served_object,
    source_objects,
    timings_object,
    usage_object,
)
from expert_router.types import AUTO, Accepted, Done, Failed, Routed, Section, Sources, Text, Timings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from starlette.types import Receive, Scope, Send

    from expert_router.serving.dispatcher import Dispatcher
    from expert_router.types import Answer, AnsweredPart, Decision, Event, Part, Served

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/v1", tags=["OpenAI"])

ERROR_GRACE_S = 1.0
"""How long a stream waits for the engine to take the prompt before it answers 200: an error until then still gets its
own status, one after it is an event in the stream."""


@router.post("/chat/completions", summary="Answer a conversation, routed or by a named expert")
async def chat(body: ChatCompletionRequest, request: Request, system: SystemDep, caller: CallerDep) -> Response:
    chat_request = body.to_request(system.options.max_tokens, caller)
    dispatcher = system.dispatcher
    events = caller.metered(dispatcher.stream(chat_request), chat_request)
    if not body.stream:
        answer = await unless_disconnected(request, dispatcher.ask(chat_request, events))
        headers = _headers(answer.decision, answer.answered_by, answer.served, answer.timings)
        return JSONResponse(_completion(answer, body.model, dispatcher), headers=headers)
    started = _Started(events)
    try:
        routed = await unless_disconnected(request, started.begin())
    except BaseException:
        await started.aclose()
        raise
    frames = _frames(started, routed, body, dispatcher)
    headers = {**sse.HEADERS, **_headers(routed.decision, routed.experts, routed.served, started.timings(routed))}
    return _EventStream(started, sse.keep_alive(frames, system.options.keep_alive_s), headers)


@router.get("/models", summary="The names that a request's model may have")
async def models(system: SystemDep) -> dict[str, Any]:
    return {"object": "list", "data": _models(system.dispatcher)}


@router.get("/models/{name}", summary="One model")
async def model(name: str, system: SystemDep) -> dict[str, Any]:
    found = [entry for entry in _models(system.dispatcher) if entry["id"] == name]
    if not found:
        raise UnknownModelError(f"There is no model {name!r}.", param="model")
    return found[0]


class _Started:
    """A stream of events of which the first few were already taken, to learn whether it begins well."""

    def __init__(self, events: AsyncGenerator[Event]) -> None:
        self._events = events
        self._ahead: asyncio.Task[None] | None = None
        self._taken: list[Event] = []

    async def begin(self) -> Routed:
        """The routing; then wait a moment for the engine to take the prompt. Raises what the stream raises by then."""
        routed = await anext(self._events)
        assert isinstance(routed, Routed)
        self._ahead = asyncio.create_task(self._until_the_engine())
        finished, _ = await asyncio.wait({self._ahead}, timeout=ERROR_GRACE_S)
        if finished and (error := self._ahead.exception()) is not None:
            raise error
        return routed

    def timings(self, routed: Routed) -> Timings:
        """What is known so far."""
        queue_s = next((event.queue_s for event in self._taken if isinstance(event, Accepted)), None)
        searches = [event.retrieve_s for event in self._taken if isinstance(event, Sources)]
        return Timings(route_s=routed.route_s, queue_s=queue_s, retrieve_s=max(searches, default=None))

    async def rest(self) -> AsyncGenerator[Event]:
        if self._ahead is not None:
            await self._ahead
        for event in self._taken:
            yield event
        async for event in self._events:
            yield event

    async def aclose(self) -> None:
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.gather(self._ahead, return_exceptions=True)
        await self._events.aclose()

    async def _until_the_engine(self) -> None:
        """Headings and sources come before the engine is asked; only what follows shows that it took the prompt."""
        async for event in self._events:
            self._taken.append(event)
            if not isinstance(event, Section | Sources):
                break


class _EventStream(StreamingResponse):
    """Closes its events whatever becomes of it: Starlette leaves a body open that the client did not wait for."""

    def __init__(self, started: _Started, frames: AsyncGenerator[bytes], headers: dict[str, str]) -> None:
        super().__init__(frames, headers=headers, media_type=sse.MEDIA_TYPE)
        self._started = started
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._frames.aclose()
            await self._started.aclose()


async def _frames(
    started: _Started, routed: Routed, body: ChatCompletionRequest, dispatcher: Dispatcher
) -> AsyncGenerator[bytes]:
    envelope = _envelope("chat.completion.chunk", "chatcmpl", body.model)
    about = _about(routed.decision, routed.experts, routed.served, routed.parts, dispatcher)
    try:
        yield sse.data({**envelope, **_delta({"role": "assistant", "content": ""}), "expert_router": about})
        async with aclosing(started), aclosing(started.rest()) as events:
            async for event in events:
                for chunk in _chunks(event, body):
                    yield sse.data({**envelope, **chunk})
        yield sse.DONE
    except Exception as error:  # noqa: BLE001 - the status is sent; all that is left is an error event
        log = logger.warning if isinstance(error, ExpertRouterError) else logger.exception
        log("stream failed: %s", error)
        yield sse.data(error_object(error))


def _chunks(event: Event, body: ChatCompletionRequest) -> list[dict[str, Any]]:
    match event:
        case Text():
            return [_delta({"content": event.text})]
        case Sources():
            return [{**_delta({}), "expert_router": {"sources": source_objects(event)}}]
        case Failed():
            return [{**_delta({"content": event.text}), "expert_router": {"failed": event.expert}}]
        case Section():
            return [{**_delta({"content": event.text}), "expert_router": {"section": event.expert}}]
        case Done():
            about = {
                "parts": part_objects(event.parts),
                "timings": timings_object(event.timings),
                **cache_object(event),
            }
            end = {**_delta({}, event.finish_reason), "expert_router": about}
            asked = body.stream_options is not None and body.stream_options.include_usage
            return [end, {"choices": [], "usage": usage_object(event.usage)}] if asked else [end]
        case Accepted() | Routed():
            return []


def _completion(answer: Answer, model_name: str, dispatcher: Dispatcher) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text}
    about = _about(answer.decision, answer.answered_by, answer.served, answer.parts, dispatcher)
    return {
        **_envelope("chat.completion", "chatcmpl", model_name),
        "choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason, "logprobs": None}],
        "usage": usage_object(answer.usage),
        "expert_router": {
            **about,
            "sources": all_source_objects(answer),
            "timings": timings_object(answer.timings),
            **cache_object(answer),
        },
    }


def _about(
    decision: Decision,
    experts: tuple[str, ...],
    served: Mapping[str, Served],
    parts: Sequence[Part | AnsweredPart],
    dispatcher: Dispatcher,
) -> dict[str, Any]:
    known = dispatcher.experts  # one may have been removed since it answered
    titles = {name: known[name].title if name in known else name for name in {*experts, *decision.experts}}
    return {
        "decision": decision_object(decision),
        "experts": list(experts),
        "titles": titles,
        "served": served_object(served),
        "parts": part_objects(parts),
    }


def _headers(
    decision: Decision, experts: tuple[str, ...], served: Mapping[str, Served], timings: Timings
) -> dict[str, str]:
    return {
        **server_timing(timings),
        "x-expert-router-kind": decision.kind,
        "x-expert-router-experts": ",".join(experts),
        "x-expert-router-router": decision.router,
        "x-expert-router-adapters": ",".join(f"{name}@{each.adapter or 'none'}" for name, each in served.items()),
    }


def _envelope(kind: str, prefix: str, model_name: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model_name}


def _delta(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}]}


def _models(dispatcher: Dispatcher) -> list[dict[str, Any]]:
    auto = {"title": "Automatic", "description": "The router chooses who answers.", "examples": []}
    experts = {
        name: {"title": expert.title, "description": expert.description, "examples": list(expert.examples)}
        for name, expert in dispatcher.experts.items()
    }
    return [
        {"id": name, "object": "model", "created": 0, "owned_by": "expert-router", "expert_router": about}
        for name, about in {AUTO: auto, **experts}.items()
    ]
