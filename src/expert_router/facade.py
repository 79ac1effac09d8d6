"""The same system from Python, without a server.

``open`` starts it in an event loop of its own, so that ``route`` and ``ask`` are plain calls from any thread, and
``stream`` an async generator for any event loop.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, aclosing, suppress
from typing import TYPE_CHECKING, Self, TypeVar

from anyio.from_thread import start_blocking_portal

from expert_router.errors import EngineError, InvalidRequestError
from expert_router.types import AUTO, ChatRequest, GenerationParams, Message

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path
    from types import TracebackType

    from anyio.from_thread import BlockingPortal

    from expert_router.serving.dispatcher import Dispatcher
    from expert_router.types import Answer, CacheUse, Decision, Event, Explanation

T = TypeVar("T")

MAX_TEMPERATURE = 2.0


class ExpertRouter:
    """A running system; ``open`` makes one. Close it, or use it in a ``with`` block."""

    def __init__(self, dispatcher: Dispatcher, default_max_tokens: int, *, progress: bool = False) -> None:
        self._dispatcher = dispatcher
        self._default_max_tokens = default_max_tokens
        self._progress = progress
        self._exit = ExitStack()
        self._open_portal: BlockingPortal | None = self._exit.enter_context(start_blocking_portal())

    @property
    def experts(self) -> list[str]:
        """The names that ``model`` may have, besides ``auto``; ``general`` is the bare base model."""
        return list(self._dispatcher.experts)

    def route(self, query: str, history: Sequence[str] = ()) -> Decision:
        """Who would answer, and why. ``history`` holds the earlier user turns, oldest first."""
        return self._portal.call(self._dispatcher.deployed.decide, query, history)

    def explain(self, query: str, history: Sequence[str] = (), *, nearest: int = 5) -> Explanation:
        """Why ``route`` decides so: what each word weighs, and the ``nearest`` questions that the router learnt from.

        Those are read when they are first asked for, which takes seconds, once. Raises ``ExpertRouterError``.
        """
        return self._portal.call(self._explain, query, history, nearest)

    def ask(
        self,
        query: str | Sequence[Message],
        *,
        model: str = AUTO,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        cache: CacheUse = "use",
    ) -> Answer:
        """The whole answer to a question or a conversation. Raises ``ExpertRouterError``.

        ``temperature`` 0 is deterministic; ``max_tokens`` defaults to the settings' limit. ``cache`` says whether an
        answer that was given before will do (``renew`` and ``bypass`` want a new one); the answer's own says where
        each expert's came from.
        """
        request = self._request(query, model, max_tokens=max_tokens, temperature=temperature, seed=seed, cache=cache)
        return self._portal.call(self._dispatcher.ask, request)

    async def stream(
        self,
        query: str | Sequence[Message],
        *,
        model: str = AUTO,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        cache: CacheUse = "use",
    ) -> AsyncGenerator[Event]:
        """The answer as it comes: the routing first, then pieces of text; every event has a ``text``.

        Leaving early stops the engine. Raises ``ExpertRouterError``.
        """
        request = self._request(query, model, max_tokens=max_tokens, temperature=temperature, seed=seed, cache=cache)
        events: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        async def pump() -> None:
            """Runs in the system's loop, which owns the dispatcher, and hands events to the caller's loop."""
            last: Exception | None = EngineError("The answer was broken off.")
            try:
                async with aclosing(self._dispatcher.stream(request)) as source:
                    async for event in source:
                        loop.call_soon_threadsafe(events.put_nowait, event)
                last = None
            except Exception as error:  # noqa: BLE001 - raised again on the caller's side
                last = error
            finally:
                with suppress(RuntimeError):  # the caller's loop is closed: nobody waits there any more
                    loop.call_soon_threadsafe(events.put_nowait, last)

        pumping = self._portal.start_task_soon(pump)
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            pumping.cancel()

    async def _explain(self, query: str, history: Sequence[str], nearest: int) -> Explanation:
        if nearest and query.strip():
            await self._dispatcher.deployed.read_examples(progress=self._progress)
        return await self._dispatcher.deployed.explain(query, history, nearest)

    def close(self) -> None:
        """Stop what runs and give the models' memory back. Closing twice is fine."""
        portal, self._open_portal = self._open_portal, None
        if portal is not None:
            try:
                portal.call(self._dispatcher.close)
            finally:
                self._exit.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _portal(self) -> BlockingPortal:
        if self._open_portal is None:
            raise EngineError("This ExpertRouter is closed. Open another: expert_router.open()")
        return self._open_portal

    def _request(
        self,
        query: str | Sequence[Message],
        model: str,
        *,
        max_tokens: int | None,
        temperature: float,
        seed: int | None,
        cache: CacheUse,
    ) -> ChatRequest:
        limit = self._default_max_tokens if max_tokens is None else max_tokens
        if limit < 1 or not 0 <= temperature <= MAX_TEMPERATURE:
            raise InvalidRequestError(f"max_tokens must be at least 1, temperature between 0 and {MAX_TEMPERATURE:g}.")
        messages = (Message("user", query),) if isinstance(query, str) else tuple(query)
        return ChatRequest(messages, model, GenerationParams(limit, temperature, seed=seed, cache=cache))


def open(config: str | Path | None = None, *, router: str | None = None, progress: bool = True) -> ExpertRouter:  # noqa: A001 - expert_router.open
    """Start the system of a profile name (``tiny``), a TOML file, or the defaults; ``router`` replaces its router.

    Brings missing weights with a progress bar on stderr. Raises ``ConfigError`` or ``WeightsError``.
    """
    from expert_router.serving.build import build_dispatcher
    from expert_router.settings import load_settings

    settings = load_settings(config)
    if router is not None:
        settings = settings.model_copy(update={"router": settings.router.model_copy(update={"name": router})})
    dispatcher = build_dispatcher(settings, progress=progress)
    return ExpertRouter(dispatcher, settings.serving.max_tokens, progress=progress)
