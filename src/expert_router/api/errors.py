"""Errors on the wire, in OpenAI's shape."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from expert_router.api.deps import ClientGoneError
from expert_router.errors import ExpertRouterError, UnauthorizedError

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for the log; the client that left never sees it."""


def error_object(error: Exception) -> dict[str, Any]:
    """``{"error": {"message", "type", "param", "code"}}``; what was not raised on purpose says nothing of itself."""
    if isinstance(error, ExpertRouterError):
        return _object(error.message, error.type, error.param, error.code)
    return _object("The server failed. Its log says why.", "server_error", None, "internal_error")


def error_headers(error: ExpertRouterError) -> dict[str, str]:
    if error.retry_after_s is not None:
        return {"retry-after": str(math.ceil(error.retry_after_s))}
    return {"www-authenticate": "Bearer"} if isinstance(error, UnauthorizedError) else {}


def error_response(error: ExpertRouterError) -> JSONResponse:
    return JSONResponse(error_object(error), error.status, error_headers(error))


def install_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(ExpertRouterError, _on_our_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientGoneError, _on_client_gone)


def _object(message: str, type_: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


async def _on_our_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ExpertRouterError)
    return error_response(error)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if "json" not in request.headers.get("content-type", ""):
        said = "Send JSON, with the header content-type: application/json."
        return JSONResponse(_object(said, "invalid_request_error", None, "invalid_request"), 400)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    message = "The body is not valid JSON." if first["type"] == "json_invalid" else str(first["msg"])
    where = f"{'.'.join(place)}: " if place and first["type"] != "json_invalid" else ""
    param = place[0] if where else None
    return JSONResponse(_object(f"{where}{message}", "invalid_request_error", param, "invalid_request"), 400)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ExpertRouterError):  # FastAPI wraps what reading the body raises
        return await _on_our_error(request, error.__cause__)
    body = _object(str(error.detail), "invalid_request_error", None, None)
    return JSONResponse(body, error.status_code, error.headers)


async def _on_client_gone(_: Request, error: Exception) -> Response:  # noqa: ARG001 - the handler's signature
    return Response(status_code=CLIENT_CLOSED_REQUEST)
