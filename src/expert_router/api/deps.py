"""What the routes are handed: the running system, and the request's disconnect.

What routes depend on are async functions: FastAPI calls others in a worker thread, which costs a request more than what
they do.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Annotated, TypeVar

from fastapi import Depends, Header, Request
from pydantic import WithJsonSchema

from expert_router.errors import ExpertRouterError, NotReadyError
from expert_router.keys import Keyring, hash_of, secret_in
from expert_router.serving.dispatcher import Dispatcher  # noqa: TC001 - FastAPI reads the annotation
from expert_router.serving.standing import Standing
from expert_router.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Sequence

    from expert_router.api.rate_limits import KeyLimits
    from expert_router.keys import Key
    from expert_router.live.experts import LiveExperts
    from expert_router.telemetry.workers import Workers
    from expert_router.types import CacheUse, ChatRequest, Event

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServingOptions:
    """``max_tokens`` and ``expected_wait_s`` are for requests that name none; ``None`` there is no limit.

    ``keep_alive_s`` is the longest silence in a stream.
    """

    max_tokens: int
    keep_alive_s: float
    expected_wait_s: float | None = None


@dataclass
class System:
    """Lives as long as the application; built before it starts, closed by its lifespan."""

    dispatcher: Dispatcher
    options: ServingOptions
    live: LiveExperts | None = None
    """Changes the experts; ``None`` where they cannot be changed."""
    metrics: Metrics = field(default_factory=Metrics)
    workers: Workers | None = None
    """The processes that this is one of; ``None`` where it is the only one."""
    warm_up: asyncio.Task[None] | None = None
    reading: asyncio.Task[None] | None = None
    """Of the router's examples, for explanations: nobody waits for it."""
    keyring: Keyring = field(default_factory=Keyring)
    standing: Standing = field(init=False)
    """Which experts cannot answer now."""

    def __post_init__(self) -> None:
        self.standing = Standing(self.dispatcher)

    def read_examples_after(self, warm_up: asyncio.Task[None]) -> None:
        if not warm_up.cancelled():
            self.read_examples()

    def read_examples(self) -> None:
        """Begin to, unless it has begun, or the models are still being loaded, which comes first."""
        if self.reading is None and (self.warm_up is None or self.warm_up.done()):
            self.reading = asyncio.create_task(_read_examples(self.dispatcher))


async def running_system(request: Request) -> System:
    system: System = request.app.state.system
    return system


SystemDep = Annotated[System, Depends(running_system)]


async def _read_examples(dispatcher: Dispatcher) -> None:
    try:
        await dispatcher.deployed.read_examples()
    except NotReadyError as error:  # the server ends
        logger.info("the examples were not read", extra={"reason": error.message})
    except ExpertRouterError as error:
        logger.warning("explanations name no examples", extra={"reason": error.message})


def cache_use(cache_control: Sequence[str] | None) -> CacheUse:
    """What the request's ``Cache-Control`` asks for (RFC 9111, 5.2.1); what it does not name is as always."""
    directives = {directive.strip().lower() for directive in ",".join(cache_control or ()).split(",")}
    if "no-store" in directives:
        return "bypass"
    return "renew" if directives & {"no-cache", "max-age=0"} else "use"


def wait_s(prefer: Sequence[str] | None) -> float | None:
    """Seconds that the request's ``Prefer: wait`` names (RFC 7240, 4.3); what is not a whole number is ignored."""
    for preference in ",".join(prefer or ()).split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        seconds = value.strip().strip('"')
        if name.strip().lower() == "wait" and seconds.isdecimal():
            return float(seconds)
    return None


def key_of(request: Request) -> Key | None:
    """Of whom asks, where it has one that counts."""
    key: Key | None = request.state.key
    return key


def sender(request: Request) -> str:
    """Who asks: its key's id, or else, where none is needed, what the request tells: its bearer token or its address.

    Such a token was not checked, and a hash of it is enough. A gateway that checks it gives each client its own turns
    by passing it on.
    """
    if (key := key_of(request)) is not None:
        return f"key:{key.id}"
    if token := secret_in(request.headers.get("authorization", "")):
        return f"token:{hash_of(token)[:32]}"
    return f"address:{request.client.host}" if request.client else ""


@dataclass(frozen=True, slots=True)
class Caller:
    """What the request's head says: who asks, what it wants of kept answers, and how long it waits to be let in."""

    sender: str = ""
    cache: CacheUse = "use"
    wait_s: float | None = None
    expected_wait_s: float = inf
    """See ``ChatRequest``."""
    limits: KeyLimits | None = None
    """Of its key."""

    def metered(self, events: AsyncGenerator[Event], request: ChatRequest) -> AsyncGenerator[Event]:
        """The same events; their tokens count for the key's limit."""
        return events if self.limits is None else self.limits.metered(events, request)


HeaderLines = Annotated[list[str] | None, WithJsonSchema({"type": "string"})]
"""A header that may be there several times, which HTTP knows as one joined by commas (RFC 9110, 5.3)."""


async def caller(
    request: Request,
    system: SystemDep,
    cache_control: Annotated[
        HeaderLines,
        Header(description="`no-cache`: a new answer, which is kept; `no-store`: none is used and none kept"),
    ] = None,
    prefer: Annotated[
        HeaderLines,
        Header(description="`wait=10`: wait 10 s at most to be let in, and not at all where that would be in vain"),
    ] = None,
) -> Caller:
    limits = getattr(request.state, "limits", None)
    waits_s, default_s = wait_s(prefer), system.options.expected_wait_s
    expected_wait_s = inf if waits_s is not None or default_s is None else default_s
    return Caller(sender(request), cache_use(cache_control), waits_s, expected_wait_s, limits)


CallerDep = Annotated[Caller, Depends(caller)]


class ClientGoneError(Exception):
    """The client left before its answer was ready; nobody is there to be told."""


async def unless_disconnected(request: Request, work: Coroutine[object, object, T]) -> T:
    """Run ``work``, and cancel it when the client leaves, so that the engine's slot comes free."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for pending in (task, watcher):
            pending.cancel()
        await asyncio.wait({task, watcher})


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
