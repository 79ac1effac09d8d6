"""Several experts answer one question: at once, shown one after the other, each for itself when another fails."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING

from expert_router.errors import ExpertRouterError
from expert_router.types import AnsweredPart, Failed, Section, Sources

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from expert_router.types import Event, Part

logger = logging.getLogger(__name__)


async def sections(
    parts: Sequence[Part], titles: Mapping[str, str], streams: Sequence[AsyncGenerator[Event]]
) -> AsyncGenerator[Event]:
    """The streams' events, each part's under a heading; what a later one says early waits for its turn.

    A part that fails says so in its section. Where all fail, the first one's error is raised, and before any event: a
    caller that waits for the first one learns that nothing was answered.
    """
    running = [_Running(stream) for stream in streams]
    held: list[Event] = []
    failure: ExpertRouterError | None = None
    begun, gap = False, ""
    try:
        for part, events in zip(parts, running, strict=True):
            held.append(Section(part.expert, f"{gap}**{titles[part.expert]}**\n\n"))
            said = ""
            try:
                async for event in events.taken():
                    said = said or event.text
                    begun = begun or not isinstance(event, Sources)
                    held.append(event)
                    while begun and held:
                        yield held.pop(0)
            except ExpertRouterError as error:
                logger.warning("part failed: %s", error, extra={"expert": part.expert})
                failure = failure or error
                gap = "\n\n" if said else ""
                held.append(
                    Failed(part.expert, error.message, f"{gap}This part could not be answered: {error.message}")
                )
            gap = "\n\n"
        if failure is not None and not begun:
            raise failure
        for event in held:
            yield event
    finally:
        for each in running:
            await each.close()


class _Running:
    """A stream that goes on however slowly its events are taken: an answer's length bounds what waits here."""

    def __init__(self, stream: AsyncGenerator[Event]) -> None:
        self._ready: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._drain(stream))

    async def taken(self) -> AsyncGenerator[Event]:
        """Raises what the stream raised, in its place."""
        while (event := await self._ready.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _drain(self, stream: AsyncGenerator[Event]) -> None:
        try:
            async with aclosing(stream):
                async for event in stream:
                    self._ready.put_nowait(event)
        except Exception as error:  # noqa: BLE001 - raised again where it is taken
            self._ready.put_nowait(error)
        else:
            self._ready.put_nowait(None)


class Layout:
    """Where each part's answer begins and ends in the whole text, while that grows."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._position = 0
        self._spans: list[tuple[int, int]] = []
        self._errors: dict[str, str] = {}

    def add(self, event: Event) -> None:
        begins = self._position + len(event.text) if isinstance(event, Section) else self._position
        self._position += len(event.text)
        if isinstance(event, Section) or not self._spans:
            self._spans.append((begins, self._position))
        else:
            self._spans[-1] = (self._spans[-1][0], self._position)
        if isinstance(event, Failed):
            self._errors[event.expert] = event.error

    def answered(self) -> tuple[AnsweredPart, ...]:
        return tuple(
            AnsweredPart(part.expert, part.question, start, end, self._errors.get(part.expert))
            for part, (start, end) in zip(self._parts, self._spans, strict=False)
        )
