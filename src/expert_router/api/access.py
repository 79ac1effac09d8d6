"""Who may ask, and how much: a request needs a key before anything of it is read, where there are keys.

Whatever is not named here as open is closed, so that a route that is added is closed too.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from fastapi.responses import JSONResponse

from expert_router.api.errors import error_object, error_response
from expert_router.api.rate_limits import RateLimits
from expert_router.errors import ExpertRouterError, UnauthorizedError
from expert_router.keys import secret_in

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from expert_router.api.shared_limits import SharedLimits
    from expert_router.keys import Key, Keyring

OPEN = ("/health/live", "/health/ready")
"""Load balancers and supervisors have no key."""
METRICS = "/metrics"
API = ("/v1/", "/query")
"""Programs ask here, with a bearer token. Elsewhere a browser asks, which knows passwords: any name, and the key."""
FOREIGN = {b"cross-site", b"same-site"}


class Access:
    """Refuses who has no key with 401 and who has used up its limits with 429; the key is ``scope["state"]["key"]``."""

    def __init__(
        self, app: ASGIApp, keyring: Keyring, *, open_metrics: bool = False, shared: SharedLimits | None = None
    ) -> None:
        self._app = app
        self._open = (*OPEN, METRICS) if open_metrics else OPEN
        self._keyring = keyring
        self._limits = RateLimits(shared)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        key = state["key"] = self._key(scope)
        if key is None and self._keyring.required and scope["path"] not in self._open:
            await self._refuse(scope, receive, send)
        elif key is not None and of_api(scope):
            await self._limited(key, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _key(self, scope: Scope) -> Key | None:
        headers = dict(scope["headers"])
        # A browser sends a password that it knows with whatever another site makes it send.
        foreign = headers.get(b"sec-fetch-site") in FOREIGN and scope.get("method") not in {"GET", "HEAD"}
        authorization = headers.get(b"authorization", b"").decode("latin-1")
        secret = secret_in(authorization, basic=not of_api(scope) and not foreign)
        return self._keyring.find(secret) if secret else None

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        sent = b"authorization" in dict(scope["headers"])
        said = "This key is not known, has expired or was revoked." if sent else "This server needs a key."
        error = UnauthorizedError(f"{said} Send one: Authorization: Bearer <key>.")
        challenge = "Bearer" if of_api(scope) else 'Basic realm="expert-router: any name, and a key as the password"'
        await JSONResponse(error_object(error), error.status, {"www-authenticate": challenge})(scope, receive, send)

    async def _limited(self, key: Key, scope: Scope, receive: Receive, send: Send) -> None:
        limits = self._limits.of(key)
        scope["state"]["limits"] = limits

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *limits.headers()]
            await send(message)

        with ExitStack() as running:
            try:
                running.enter_context(limits.request())
            except ExpertRouterError as error:
                await error_response(error)(scope, receive, send_with_limits)
                return
            await self._app(scope, receive, send_with_limits)


def of_api(scope: Scope) -> bool:
    """Whether programs ask there."""
    path: str = scope["path"]
    return path.startswith(API[0]) or path == API[1]
