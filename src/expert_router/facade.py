"""The same system from Python, without a server.

``open`` starts it in an event loop of its own, so that ``route`` and ``ask`` are plain calls from any thread, and
``stream`` an async generator for any event loop.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, aclosing
from typing import TYPE_CHECKING, Self, TypeVar

from anyio.from_thread import start_blocking_portal

from expert_router.types import AUTO, ChatRequest, GenerationParams, Message

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path
    from types import TracebackType

    from expert_router.serving.dispatcher import Dispatcher
    from expert_router.types import Answer, Decision, Event

T = TypeVar("T")


class ExpertRouter:
    """A running system; ``open`` makes one. Close it, or use it in a ``with`` block."""

    def __init__(self, dispatcher: Dispatcher, default_max_tokens: int) -> None:
        self._dispatcher = dispatcher
        self._default_max_tokens = default_max_tokens
        self._exit = ExitStack()
        self._portal = self._exit.enter_context(start_blocking_portal())

    @property
    def experts(self) -> list[str]:
        """The names that ``model`` may have, besides ``auto``; ``general`` is the bare base model."""
        return list(self._dispatcher.experts)

    def route(self, query: str, history: Sequence[str] = ()) -> Decision:
        """Who would answer, and why. ``history`` holds the earlier user turns, oldest first."""
        return self._portal.call(self._dispatcher.decide, query, history)

    def ask(
        self, query: str | Sequence[Message], *, model: str = AUTO, params: GenerationParams | None = None
    ) -> Answer:
        """The whole answer to a question or a conversation. Raises ``ExpertRouterError``."""
        return self._portal.call(self._dispatcher.ask, self._request(query, model, params))

    async def stream(
        self, query: str | Sequence[Message], *, model: str = AUTO, params: GenerationParams | None = None
    ) -> AsyncGenerator[Event]:
        """The answer as it comes: the routing first, then pieces of text; every event has a ``text``.

        Leaving early stops the engine. Raises ``ExpertRouterError``.
        """
        events: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        async def pump() -> None:
            """Runs in the system's loop, which owns the dispatcher, and hands events to the caller's loop."""
            last: BaseException | None = None
            try:
                async with aclosing(self._dispatcher.stream(self._request(query, model, params))) as source:
                    async for event in source:
                        loop.call_soon_threadsafe(events.put_nowait, event)
            except Exception as error:  # noqa: BLE001 - raised again on the caller's side
                last = error
            loop.call_soon_threadsafe(events.put_nowait, last)

        pumping = self._portal.start_task_soon(pump)
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            pumping.cancel()

    def close(self) -> None:
        """Stop what runs and give the models' memory back. Closing twice is fine."""
        if self._portal is not None:
            portal, self._portal = self._portal, None  # type: ignore[assignment]
            portal.call(self._dispatcher.close)
            self._exit.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, query: str | Sequence[Message], model: str, params: GenerationParams | None) -> ChatRequest:
        messages = (Message("user", query),) if isinstance(query, str) else tuple(query)
        return ChatRequest(messages, model, params or GenerationParams(max_tokens=self._default_max_tokens))


def open(config: str | Path | None = None, *, router: str | None = None, progress: bool = True) -> ExpertRouter:  # noqa: A001 - expert_router.open
    """Start the system of a profile name (``tiny``), a TOML file, or the defaults; ``router`` replaces its router.

    Brings missing weights with a progress bar on stderr. Raises ``ConfigError`` or ``WeightsError``.
    """
    from expert_router.serving.build import build_dispatcher
    from expert_router.settings import load_settings

    settings = load_settings(config)
    if router is not None:
        settings = settings.model_copy(update={"router": settings.router.model_copy(update={"name": router})})
    return ExpertRouter(build_dispatcher(settings, progress=progress), settings.serving.max_tokens)
