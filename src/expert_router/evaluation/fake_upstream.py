"""An OpenAI-compatible server that answers at once and always alike: what is left to measure is who stands before it.

HTTP/1.1 by hand, as little of it as the gateways' clients need, so that it is not what bounds a measurement.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

WORDS = ("alpha", *(f"word{number}" for number in range(1, 15)), "omega")
"""The answer, a word a piece; who reads it knows by the first and the last one that it began and that it is whole."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STREAMED = re.compile(rb'"stream": ?true')
_WITH_USAGE = re.compile(rb'"include_usage": ?true')
_USAGE = {"prompt_tokens": 16, "completion_tokens": len(WORDS), "total_tokens": 16 + len(WORDS)}
_ABOUT = {"id": "chatcmpl-fixed", "created": 1, "model": "fixed"}


def serve(listener: socket.socket) -> None:
    """Answer on the bound socket until the process is asked to end."""
    asyncio.run(_serve(listener))


async def _serve(listener: socket.socket) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, ended.set)
    server = await loop.create_server(_Connection, sock=listener)
    await ended.wait()
    server.close()


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._read = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._read += data
        while (end := self._read.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._read, 0, end)
            end += 4 + (int(length[1]) if length else 0)
            if len(self._read) < end:
                return
            self._answer(self._read[:end])
            self._read = self._read[end:]

    def _answer(self, request: bytes) -> None:
        assert self._transport is not None
        if request.startswith(b"GET"):
            self._transport.write(_MODELS)
        elif _STREAMED.search(request):
            for piece in _STREAM_WITH_USAGE if _WITH_USAGE.search(request) else _STREAM:
                self._transport.write(piece)  # each for itself, as a model's tokens come
        else:
            self._transport.write(_WHOLE)


def _json(value: dict[str, Any]) -> bytes:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _event(data: str) -> bytes:
    body = f"data: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(body), body)


def _chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return _event(json.dumps({**_ABOUT, "object": "chat.completion.chunk", "choices": [choice]}))


_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_PIECES = [
    _HEAD + _chunk({"role": "assistant", "content": ""}),
    *(_chunk({"content": f"{word} "}) for word in WORDS),
    _chunk({}, "stop"),
]
_COUNTS = _event(json.dumps({**_ABOUT, "object": "chat.completion.chunk", "choices": [], "usage": _USAGE}))
_END = _event("[DONE]") + b"0\r\n\r\n"
_STREAM = [*_PIECES, _END]
_STREAM_WITH_USAGE = [*_PIECES, _COUNTS, _END]
_MESSAGE = {"role": "assistant", "content": "".join(f"{word} " for word in WORDS)}
_WHOLE = _json(
    {
        **_ABOUT,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": _MESSAGE, "finish_reason": "stop"}],
        "usage": _USAGE,
    }
)
_MODELS = _json({"object": "list", "data": [{"id": "fixed", "object": "model"}]})
