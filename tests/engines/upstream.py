"""Real servers for the HTTP engine: one that behaves as vLLM does, and one that sends any bytes at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.requests import Request


def delta(content: str | None = None, finish_reason: str | None = None, **more: Any) -> str:
    """One event's data, in the shape of ``chat.completion.chunk``."""
    choice = {"index": 0, "delta": {} if content is None else {"content": content}, "finish_reason": finish_reason}
    return json.dumps({"object": "chat.completion.chunk", "choices": [choice], **more})


def usage(prompt_tokens: int, completion_tokens: int) -> str:
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return json.dumps({"object": "chat.completion.chunk", "choices": [], "usage": counts})


WHOLE_ANSWER = (
    json.dumps({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}),
    delta("REM "),
    delta("sleep."),
    delta(finish_reason="stop"),
    usage(11, 4),
    "[DONE]",
)


@dataclass(frozen=True)
class Seen:
    path: str
    headers: dict[str, str]
    client_port: int
    body: dict[str, Any]


@dataclass
class Upstream:
    """What the server answers next, and what it saw. ``hang_after`` events it sends nothing more and stays open."""

    base_url: str
    models: tuple[str, ...] = ("base",)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    error: Any = None
    events: tuple[str, ...] = WHOLE_ANSWER
    hang_after: int | None = None
    seen: list[Seen] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)
    disconnected: threading.Event = field(default_factory=threading.Event)

    def refuse(self, status: int, error: Any, **headers: str) -> None:
        self.status, self.error = status, error
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    async def list_models(self, request: Request) -> Response:
        await self._note(request)
        if self.status != 200:
            return self._error()
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    async def complete(self, request: Request) -> Response:
        await self._note(request)
        if self.status != 200:
            return self._error()
        return StreamingResponse(self._stream(), media_type="text/event-stream")

    async def _note(self, request: Request) -> None:
        body = await request.body()
        port = request.client.port if request.client else 0
        self.seen.append(Seen(request.url.path, dict(request.headers), port, json.loads(body) if body else {}))
        self.asked.set()

    def _error(self) -> Response:
        if isinstance(self.error, str):
            return Response(self.error, self.status, self.headers, media_type="text/html")
        return JSONResponse(self.error, self.status, self.headers)

    async def _stream(self) -> AsyncIterator[str]:
        try:
            for count, event in enumerate(self.events):
                if count == self.hang_after:
                    await asyncio.Event().wait()
                yield f"data: {event}\n\n"
        except asyncio.CancelledError:
            self.disconnected.set()
            raise


class UpstreamServer:
    """The server whose behaviour is ``upstream``'s; each test puts a fresh one in."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.upstream = Upstream(base_url)

    def fresh(self) -> Upstream:
        self.upstream = Upstream(self.base_url)
        return self.upstream

    async def list_models(self, request: Request) -> Response:
        return await self.upstream.list_models(request)

    async def complete(self, request: Request) -> Response:
        return await self.upstream.complete(request)


@contextmanager
def serve() -> Iterator[UpstreamServer]:
    """Run the server in a thread of this process, on a free port."""
    # asyncio switches Nagle's algorithm off only on sockets that name their protocol; with it each answer takes 40 ms.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # here: who comes before the thread is ready waits a moment
        server = UpstreamServer(f"http://127.0.0.1:{listening.getsockname()[1]}/v1")
        app = Starlette(
            routes=[
                Route("/v1/models", server.list_models),
                Route("/v1/chat/completions", server.complete, methods=["POST"]),
            ]
        )
        runner = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", ws="none", lifespan="off", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            runner.should_exit = True
            thread.join(timeout=10)
            assert not thread.is_alive()


@asynccontextmanager
async def serve_bytes(*pieces: bytes, then_hang: bool = False) -> AsyncIterator[str]:
    """A server that answers every request with ``pieces`` and hangs up; yields its base URL."""
    connections: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(cast("asyncio.Task[None]", asyncio.current_task()))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)
            if then_hang:
                await reader.read()
        with contextlib.suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        server.close()
        await asyncio.wait_for(asyncio.gather(*connections), 5.0)
