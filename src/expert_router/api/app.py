"""The ASGI application around a dispatcher."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.security import HTTPBearer

from expert_router.api import experts, explain, feedback, health, metrics, openai, query
from expert_router.api.access import Access
from expert_router.api.browsers import SecurityHeaders, allow_origins
from expert_router.api.deps import ServingOptions, System
from expert_router.api.errors import error_object, error_response, install_error_handlers
from expert_router.api.schemas import ErrorResponse
from expert_router.api.shared_limits import SharedLimits
from expert_router.api.time_limit import TimeLimit
from expert_router.errors import BodyTooLargeError, ExpertRouterError, NotReadyError
from expert_router.keys import Keyring
from expert_router.observability import request_id, trace
from expert_router.trace_context import TraceContext
from expert_router.types import GENERAL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from expert_router.live.experts import LiveExperts
    from expert_router.serving.dispatcher import Dispatcher
    from expert_router.settings import Settings
    from expert_router.telemetry.metrics import Metrics
    from expert_router.telemetry.workers import Workers

logger = logging.getLogger(__name__)

WARM_UP_AGAIN_S = 5.0
"""After a warm-up that failed; twice as long each time, up to a minute."""
_USABLE_ID = re.compile(r"[!-~]{1,128}")

DESCRIPTION = """Several specialised LLM experts behind one endpoint. `model: "auto"` routes a question to the right
expert; an expert's name forces it; `general` is the bare base model. Who answered, and why, is in `expert_router`."""


def create_app(
    dispatcher: Dispatcher,
    settings: Settings,
    *,
    home_page: str = "/docs",
    warm_up: bool = False,
    live: LiveExperts | None = None,
    workers: Workers | None = None,
) -> FastAPI:
    """The application owns ``dispatcher`` from here on and closes it. ``warm_up`` loads the models at once.

    With ``live``, experts come and go while it runs; with ``workers`` its metrics are those of all of them. Raises
    ``ConfigError`` when the keys cannot be read.
    """
    serving = settings.serving
    options = ServingOptions(serving.max_tokens, settings.server.keep_alive_s, serving.expected_wait_s)
    keyring = load_keyring(settings)
    system = System(dispatcher, options, live, keyring=keyring, workers=workers)
    dispatcher.observers += [system.metrics, system.standing]

    app = FastAPI(
        title="expert-router",
        version="0.1.0",
        description=DESCRIPTION,
        lifespan=partial(_running, system, warm_up),
        responses={"default": {"model": ErrorResponse, "description": "An error, in OpenAI's shape"}},
    )
    app.state.system = system
    # Only for the documentation, which then asks for a key to try things out with: ``Access`` has looked at it before.
    documented = [Depends(HTTPBearer(auto_error=False, scheme_name="key"))] if keyring.required else []
    for part in (openai, query, explain, feedback, experts):
        app.include_router(part.router, dependencies=documented)
    for part in (health, metrics):
        app.include_router(part.router)

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse(home_page)

    install_error_handlers(app)
    shared = SharedLimits(workers.folder / "limits", workers.number) if workers is not None else None
    guard(app, settings, keyring, system.metrics, shared)
    return app


@asynccontextmanager
async def _running(system: System, warm_up: bool, _: FastAPI) -> AsyncIterator[None]:
    """The system from the application's start to its end."""
    dispatcher, live, workers = system.dispatcher, system.live, system.workers
    if warm_up:
        system.warm_up = asyncio.create_task(_warm_up(system))
        system.warm_up.add_done_callback(system.read_examples_after)
    mending = [asyncio.create_task(_mend_warm_up(system)), asyncio.create_task(system.standing.look())]
    watching = asyncio.create_task(_watch(live)) if live is not None else None
    if workers is not None:
        await workers.listen(partial(metrics.exposition, system))
    try:
        yield
    finally:
        if watching is not None:
            watching.cancel()
            await asyncio.wait({watching})
        for task in mending:
            task.cancel()
        await asyncio.wait(mending)
        if system.warm_up is not None:
            system.warm_up.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await system.warm_up
        if workers is not None:
            await workers.close()
        await dispatcher.close()
        if system.reading is not None:
            await asyncio.wait({system.reading})


def guard(
    app: FastAPI,
    settings: Settings,
    keyring: Keyring,
    counted: Metrics | None = None,
    shared: SharedLimits | None = None,
) -> None:
    """What every request to ``app`` passes first, the last one here the very first. ``counted`` tells of them.

    The keys' limits are ``shared`` with other processes.
    """
    app.add_middleware(BodyLimit, max_body_bytes=settings.server.max_body_bytes)
    app.add_middleware(TimeLimit, seconds=settings.server.request_timeout_s)
    app.add_middleware(Access, keyring=keyring, open_metrics=settings.server.open_metrics, shared=shared)
    if settings.server.cors_origins:
        allow_origins(app, settings.server.cors_origins)
    traced = settings.telemetry.otlp_endpoint is not None
    app.add_middleware(RequestLog, metrics=counted, traced=traced)
    app.add_middleware(SecurityHeaders)


def load_keyring(settings: Settings) -> Keyring:
    """Raises ``ConfigError`` when there are to be keys and they cannot be read."""
    path = settings.server.keys
    return Keyring(settings.resolve(path) if path else None, settings.server.admin_key)


async def _watch(live: LiveExperts) -> None:
    """Be ready to learn an expert, then notice those that other processes add."""
    try:
        await asyncio.to_thread(live.prepare)
    except ExpertRouterError as error:
        logger.warning("the first new expert will take longer", extra={"reason": error.message})
    await live.watch()


async def _warm_up(system: System) -> None:
    """Load the base model, then what each expert answers with; an expert that is refused does not stop the others."""
    dispatcher = system.dispatcher
    experts = dispatcher.experts  # of one version, whatever comes and goes meanwhile
    try:
        await dispatcher.engine.warm_up(experts[GENERAL])
    except Exception:
        logger.exception("the engine could not be made ready")
        raise
    for name in sorted(experts.keys() - {GENERAL}):
        try:
            await dispatcher.engine.warm_up(experts[name])
        except NotReadyError as error:
            system.standing.failed(name, error.message)


async def _mend_warm_up(system: System) -> None:
    """Try again what failed, so that nobody has to: ``failed`` lasts until a try succeeds."""
    pause_s = WARM_UP_AGAIN_S
    while system.warm_up is not None:
        await asyncio.wait({system.warm_up})
        if system.warm_up.cancelled() or system.warm_up.exception() is None:
            return
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, 60.0)
        again = asyncio.create_task(_warm_up(system))
        try:
            await asyncio.wait({again})
        except asyncio.CancelledError:
            again.cancel()
            await asyncio.wait({again})
            raise
        system.warm_up = again


class RequestLog:
    """Gives every request an id (the caller's ``x-request-id`` if it sent one), counts it and logs it when it ends.

    A bug is answered here, so that its 500 has the id too. No stack trace leaves the server; the log keeps it.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics | None, *, traced: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._traced = traced

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        identifier = given if _USABLE_ID.fullmatch(given) else secrets.token_hex(8)
        token = request_id.set(identifier)
        trace_token = trace.set(TraceContext.of_request(headers, recorded=self._traced))
        started, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", identifier.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if status:  # the answer has begun: all that is left is to break it off
                raise
            logger.exception("unhandled error")
            await JSONResponse(error_object(error), 500)(scope, receive, send_with_id)
        finally:
            seconds = round(time.perf_counter() - started, 4)
            route = getattr(scope.get("route"), "path", None)
            if self._metrics is not None:
                self._metrics.observe_http(scope["method"], route and scope.get("root_path", "") + route, status)
            about = {"method": scope["method"], "path": scope["path"], "status": status, "s": seconds}
            key = scope.get("state", {}).get("key")
            level = logging.DEBUG if scope["path"] == metrics.PATH else logging.INFO
            logger.log(level, "request", extra={**about, **({"key": key.id} if key else {})})
            request_id.reset(token)
            trace.reset(trace_token)


class BodyLimit:
    """Refuses a body that is announced, or turns out, to be larger than ``max_body_bytes``, without reading it all."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = BodyTooLargeError(f"The body is larger than {self._max_body_bytes} bytes.")
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._max_body_bytes:
            await error_response(error)(scope, receive, send)
            return
        received = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise error
            return message

        await self._app(scope, counted_receive, send)
