"""HTTP/1.1 to one server, over connections that are kept: the way to an engine in another process.

A general client costs a request more than all else that a gateway does with it (docs/decisions/0013-gateway.md). This
one does what such an engine needs and no more: no proxies, redirects, cookies or compression. httptools (llhttp)
parses.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import httptools
import httpx2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

KEEP_S = 5.0
"""An idle connection is used again for so long: what lies between may have forgotten an older one."""
MAX_BUFFERED_BYTES = 256 * 1024
"""Of a body that nobody takes: beyond it the server has to wait."""
MAX_HEAD_BYTES = 64 * 1024
IDENTITY = "identity"
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
HAPPY_EYEBALLS_S = 0.25
"""RFC 8305: so long the first address of a name is tried alone; uvloop tries one after the other."""


class HTTPClientError(Exception):
    """No answer, for one of the reasons below."""


class ConnectTimeoutError(HTTPClientError):
    """No connection in time."""


class ConnectError(HTTPClientError):
    """No connection."""


class SilenceError(HTTPClientError):
    """The server said nothing for too long."""


class BrokenAnswerError(HTTPClientError):
    """What came is no answer, or not a whole one."""


class Response:
    """An answer while it arrives."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.headers
        """By name in small letters."""

    async def pieces(self) -> AsyncGenerator[bytes]:
        """The body as it comes. Raises ``SilenceError`` or ``BrokenAnswerError``."""
        while piece := await self._connection.read():
            yield piece

    async def finish(self, timeout_s: float) -> None:
        """Take what is left, so that the connection can be used again, unless it takes too long."""
        with suppress(TimeoutError, HTTPClientError):
            async with asyncio.timeout(timeout_s):
                while await self._connection.read():
                    pass


class HTTPClient:
    """``url`` is what every path is below; ``headers`` go with every request.

    ``connect_timeout_s`` bounds the wait for a connection, ``read_timeout_s`` each silence before and in an answer.
    """

    def __init__(
        self, url: httpx2.URL, headers: Mapping[str, str], *, connect_timeout_s: float, read_timeout_s: float
    ) -> None:
        self._host = url.raw_host.decode()
        self._tls = httpx2.create_ssl_context(trust_env=False) if url.scheme == "https" else None
        self._port = url.port or (443 if self._tls else 80)
        self._base = url.raw_path.decode().rstrip("/")
        lines = {"host": url.netloc.decode(), "accept-encoding": IDENTITY, "user-agent": "expert-router", **headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._open: set[_Connection] = set()
        self._idle: deque[tuple[float, _Connection]] = deque()
        """Since when; the latest one last."""
        self.is_closed = False

    @asynccontextmanager
    async def request(
        self, method: str, path: str, json: bytes | None = None, headers: Mapping[str, str] = NO_HEADERS
    ) -> AsyncGenerator[Response]:
        """Send it and read the answer's head.

        What is not read to its end by then costs the connection, which tells the server that nobody listens any more.
        Raises ``HTTPClientError``.
        """
        head = f"{method} {self._base}/{path} HTTP/1.1\r\n{self._headers}"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        if json is not None:
            head += f"content-type: application/json\r\ncontent-length: {len(json)}\r\n"
        connection = await self._answering(f"{head}\r\n".encode() + (json or b""))
        try:
            coding = connection.headers.get("content-encoding", IDENTITY)
            if coding != IDENTITY:
                raise BrokenAnswerError(f"its body is encoded ({coding}), which was not asked for")
            yield Response(connection)
        finally:
            self._give_back(connection)

    def close(self) -> None:
        """Close all connections; answers that still arrive break off."""
        self.is_closed = True
        for connection in list(self._open):
            connection.abort()

    async def _answering(self, request: bytes) -> _Connection:
        """A connection on which the answer begins.

        Where one that was kept turns out to be closed, another is made: to generate a text twice changes nothing.
        """
        while True:
            kept = self._kept()
            connection = kept or await self._connected()
            try:
                await connection.ask(request)
            except BaseException as error:
                connection.abort()
                if kept and kept.silent and isinstance(error, BrokenAnswerError) and not self.is_closed:
                    continue
                raise
            return connection

    def _kept(self) -> _Connection | None:
        self._drop_old()
        while self._idle:
            _, connection = self._idle.pop()
            if connection.reusable:
                return connection
        return None

    def _give_back(self, connection: _Connection) -> None:
        self._drop_old()
        if connection.reusable and not self.is_closed:
            self._idle.append((time.monotonic(), connection))
        else:
            connection.abort()

    def _drop_old(self) -> None:
        while self._idle and self._idle[0][0] < time.monotonic() - KEEP_S:
            self._idle.popleft()[1].abort()

    async def _connected(self) -> _Connection:
        loop = asyncio.get_running_loop()
        eyeballs: dict[str, Any] = (
            {"happy_eyeballs_delay": HAPPY_EYEBALLS_S} if isinstance(loop, asyncio.BaseEventLoop) else {}
        )
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._open, self._read_timeout_s),
                    self._host,
                    self._port,
                    ssl=self._tls,
                    **eyeballs,
                )
        except TimeoutError as error:
            raise ConnectTimeoutError from error
        except OSError as error:
            raise ConnectError(str(error)) from error
        return connection


class _Connection(asyncio.Protocol):
    """One question at a time. It is in ``open_ones`` for as long as it is open."""

    def __init__(self, open_ones: set[_Connection], read_timeout_s: float) -> None:
        self._open_ones = open_ones
        self._read_timeout_s = read_timeout_s
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._news: asyncio.Future[None] | None = None
        self._error: BrokenAnswerError | None = None
        self._paused = False
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.silent = True
        self._since_body = 0
        self._head_done = self._whole = self._stays = False
        self._body = bytearray()

    @property
    def reusable(self) -> bool:
        """Whether the last answer, if any, was read to its end and the server waits for the next question."""
        return self._error is None and self._whole and self._stays and not self._body

    async def ask(self, request: bytes) -> None:
        """Returns when the answer's head is there."""
        assert self._transport is not None
        self._begin()
        self._transport.write(request)
        while not self._head_done:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def read(self) -> bytes:
        """What has come of the body, and is not taken yet; empty at its end."""
        while not self._body:
            if self._whole:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait()
        piece = bytes(self._body)
        self._body.clear()
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return piece

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        self._news = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._read_timeout_s):
                await self._news
        except TimeoutError:
            raise SilenceError from None
        finally:
            self._news = None

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not of the class
        self._open_ones.add(self)

    def data_received(self, data: bytes) -> None:
        self.silent = False
        self._since_body += len(data)
        if self._whole:
            self._break("it said more than it was asked for")
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._break(str(error))
        if self._since_body > MAX_HEAD_BYTES:
            self._break(f"what stands {'beside its body' if self._head_done else 'in its head'} is too long")
        if len(self._body) > MAX_BUFFERED_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open_ones.discard(self)
        ends_so = self._head_done and not self.headers.keys() & {"content-length", "transfer-encoding"}
        self._whole = self._whole or (ends_so and exc is None and self._error is None)
        self._break(str(exc) if exc else "the connection was closed")

    def _break(self, why: str) -> None:
        self._error = self._error or BrokenAnswerError(why)
        self.abort()
        self._tell()

    # what the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._head_done = self.status >= httpx2.codes.OK  # what comes before says that it is on its way
        if not self._head_done:
            self.headers = {}

    def on_body(self, body: bytes) -> None:
        self._body += body
        self._since_body = 0

    def on_message_complete(self) -> None:
        self._whole = self._head_done
        self._stays = self._parser.should_keep_alive()
