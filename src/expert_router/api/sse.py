"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), with keep-alive comments."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from anyio import CancelScope

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
MEDIA_TYPE = "text/event-stream"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def data(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def keep_alive(frames: AsyncGenerator[bytes], interval_s: float) -> AsyncGenerator[bytes]:
    """The same frames, with a comment in every silence of ``interval_s``; closing it closes ``frames``."""
    pending: asyncio.Task[bytes] | None = None
    try:
        while True:
            pending = pending or asyncio.create_task(_next(frames))
            finished, _ = await asyncio.wait({pending}, timeout=interval_s)
            if not finished:
                yield KEEP_ALIVE
                continue
            try:
                frame = pending.result()
            except StopAsyncIteration:
                pending = None
                return
            pending = None
            yield frame
    finally:
        with CancelScope(shield=True):  # Starlette's scope would cancel the waiting here again and again
            if pending is not None:
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)
            await frames.aclose()


async def _next(frames: AsyncGenerator[bytes]) -> bytes:
    return await anext(frames)
