"""What browsers are told: to take nothing for what it is not, to frame nothing, and which other sites may ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.middleware.cors import CORSMiddleware

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)
DATA = b"default-src 'none'; frame-ancestors 'none'"
PAGE = b"base-uri 'self'; object-src 'none'; frame-ancestors 'none'"
"""The chat page says the rest itself (``ui.page.HEAD``)."""
DOCS = (
    # FastAPI's pages of documentation bring scripts from a CDN, and start them in the page.
    b"default-src 'self'; script-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net; "
    b"style-src 'self' 'unsafe-inline' https://cdn.jsdelivr.net https://fonts.googleapis.com; "
    b"font-src 'self' https://fonts.gstatic.com; worker-src blob:; "
    b"img-src 'self' data: https://fastapi.tiangolo.com https://cdn.redoc.ly; " + PAGE
)
DOCS_PATHS = ("/docs", "/redoc")
EXPOSED = (
    "retry-after",
    "server-timing",
    "x-request-id",
    "x-expert-router-kind",
    "x-expert-router-experts",
    *(f"x-ratelimit-{name}-{what}" for name in ("limit", "remaining", "reset") for what in ("requests", "tokens")),
)


class SecurityHeaders:
    """Adds to every answer what it does not say itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                said = dict(message["headers"])
                added = (*ALWAYS, (b"content-security-policy", _policy(scope["path"], said.get(b"content-type", b""))))
                message["headers"] = [
                    *message["headers"],
                    *((name, value) for name, value in added if name not in said),
                ]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def allow_origins(app: FastAPI, origins: Sequence[str]) -> None:
    """Let pages of these sites ask, with a key of theirs: what a browser sends by itself is not let through."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],  # OpenAI's client sends many of its own
        expose_headers=list(EXPOSED),
    )


def _policy(path: str, content_type: bytes) -> bytes:
    if not content_type.startswith(b"text/html"):
        return DATA
    return DOCS if path in DOCS_PATHS else PAGE
