"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), with keep-alive comments."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from anyio import CancelScope
from pydantic_core import to_json

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
MEDIA_TYPE = "text/event-stream"
AHEAD = 16
"""Frames that may wait for a client that reads slowly."""
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def data(value: dict[str, Any]) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


async def keep_alive(frames: AsyncGenerator[bytes], interval_s: float) -> AsyncGenerator[bytes]:
    """The same bytes, with a comment in every silence of ``interval_s``; closing it closes ``frames``.

    Frames that are ready at the same time leave together: a piece on its way to the socket costs more than a frame.
    """
    ready: asyncio.Queue[bytes | None] = asyncio.Queue(AHEAD)
    taking = asyncio.create_task(_take(frames, ready))
    try:
        ended = False
        while not ended:
            try:
                async with asyncio.timeout(interval_s):
                    taken = [await ready.get()]
            except TimeoutError:
                yield KEEP_ALIVE
                continue
            while not ready.empty():
                taken.append(ready.get_nowait())
            ended = taken[-1] is None
            if together := b"".join(frame for frame in taken if frame is not None):
                yield together
        await taking  # raises what the frames raised
    finally:
        with CancelScope(shield=True):  # Starlette's scope would cancel the waiting here again and again
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)
            await frames.aclose()


async def _take(frames: AsyncGenerator[bytes], ready: asyncio.Queue[bytes | None]) -> None:
    """All frames, then ``None``, also where they break off."""
    try:
        async for frame in frames:
            await ready.put(frame)
    except Exception:
        await ready.put(None)
        raise
    await ready.put(None)
