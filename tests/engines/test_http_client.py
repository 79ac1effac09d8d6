from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import httpx2
import pytest
from upstream import serve_bytes

from expert_router.engines.http_client import (
    MAX_BUFFERED_BYTES,
    MAX_HEAD_BYTES,
    BrokenAnswerError,
    ConnectError,
    HTTPClient,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

HELLO = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgASkd7kqJ7wCRakFS
voE/B6K/rbK/NNmn0FvxL6nl6pahRANCAAS8z3dSmbB6StehCS8MN5Pw9DraKR/I
GWXXQ7E3PTzX3YLgi412FmTvseU6oXH4MYy2NG09cg+KH/pHdUASXfi8
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBfzCCASWgAwIBAgIUdUkH91/HUEkz5Qlhre7y0SwVOrowCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzE0MTY1NFoYDzIxMjYxMDMw
MTQxNjU0WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAS8z3dSmbB6StehCS8MN5Pw9DraKR/IGWXXQ7E3PTzX3YLgi412FmTv
seU6oXH4MYy2NG09cg+KH/pHdUASXfi8o1MwUTAdBgNVHQ4EFgQU8Trdh6ds/P/q
xUlKmw7koPTrL0kwHwYDVR0jBBgwFoAU8Trdh6ds/P/qxUlKmw7koPTrL0kwDwYD
VR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiEAyC64/3loGol8s6dRKX2Y
ngfdisXuJ/jQgS2FoiuMhCcCIAuSMRgKahITxI0iYHNtN2irnEKx6xuYJRuu2t1U
xJow
-----END CERTIFICATE-----
"""
"""Nobody's: for localhost, signed by itself."""


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[HTTPClient]:
    client = HTTPClient(httpx2.URL(url), {"x-a": "b"}, connect_timeout_s=2.0, read_timeout_s=2.0)
    try:
        yield client
    finally:
        client.close()
        await asyncio.sleep(0)  # transports close in the loop's next round


async def get(client: HTTPClient) -> tuple[int, bytes]:
    async with client.request("GET", "path") as response:
        return response.status, b"".join([piece async for piece in response.pieces()])


@asynccontextmanager
async def server(
    answer: Callable[[int, int, asyncio.StreamWriter], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """``answer`` is told which connection it is and which request on it; after it the connection stays open."""
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(cast("asyncio.Task[None]", asyncio.current_task()))
        which, request = len(connections), 0
        try:
            while not writer.is_closing() and await reader.readuntil(b"\r\n\r\n"):
                request += 1
                await answer(which, request, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    running = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    async with running:
        yield f"{'https' if tls else 'http'}://localhost:{running.sockets[0].getsockname()[1]}/v1"
        running.close()
        await asyncio.wait_for(asyncio.gather(*connections), 5.0)


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        ((HELLO,), b"hello"),
        ((b"HTTP/1.1 102 Wait\r\nx: y\r\n\r\nHTTP/1.1 200 OK\r\ncontent-len", b"gth: 5\r\n\r\nhel", b"lo"), b"hello"),
        ((CHUNKED + b"2\r\nhe\r\n3;a=b\r\nl", b"lo\r\n0\r\n", b"\r\n"), b"hello"),
        ((b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo"), b"hello"),
        ((b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nhello",), b"hello"),
        ((b"HTTP/1.1 204 No\r\n\r\n",), b""),
    ],
)  # fmt: skip
async def test_a_body_ends_where_http_says(answer: tuple[bytes, ...], body: bytes) -> None:
    async with serve_bytes(*answer) as url, client_of(url) as client:
        assert (await get(client))[1] == body
        assert (await get(client))[1] == body  # the server has hung up meanwhile


async def test_a_connection_is_kept_while_answers_are_read_to_their_end() -> None:
    seen = []

    async def answer(connection: int, request: int, writer: asyncio.StreamWriter) -> None:
        seen.append((connection, request))
        writer.write(HELLO)

    async with server(answer) as url, client_of(url) as client:
        await get(client)
        await get(client)
        async with client.request("GET", "path") as response:
            assert response.status == 200  # and its body is left
        await get(client)
    assert seen == [(1, 1), (1, 2), (1, 3), (2, 1)]


async def test_a_kept_connection_that_the_server_had_closed_is_replaced_and_a_new_one_is_not() -> None:
    seen = []

    async def answer(connection: int, request: int, writer: asyncio.StreamWriter) -> None:
        seen.append((connection, request))
        if connection < 3 and request == 1:
            writer.write(HELLO)
        else:
            writer.close()  # as a server does whose patience ends at the moment of the request

    async with server(answer) as url, client_of(url) as client:
        assert await get(client) == (200, b"hello")
        assert await get(client) == (200, b"hello")
        with pytest.raises(BrokenAnswerError):
            await get(client)
    assert seen == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)]


async def test_what_comes_unasked_ends_a_kept_connection() -> None:
    seen = []

    async def answer(connection: int, request: int, writer: asyncio.StreamWriter) -> None:
        seen.append((connection, request))
        writer.write(HELLO)
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(HELLO)

    async with server(answer) as url, client_of(url) as client:
        await get(client)
        await asyncio.sleep(0.05)
        await get(client)
    assert seen == [(1, 1), (2, 1)]


async def test_who_does_not_take_the_body_makes_the_server_wait() -> None:
    part, parts = b"x" * 65536, 400
    sent = 0

    async def answer(_connection: int, _request: int, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(part) * parts}\r\n\r\n".encode())
        for _ in range(parts):
            writer.write(part)
            await writer.drain()
            sent += len(part)

    async with server(answer) as url, client_of(url) as client, client.request("GET", "path") as response:
        before = -1
        while before < sent:  # until it stands still
            before = sent
            await asyncio.sleep(0.05)
        assert MAX_BUFFERED_BYTES <= sent < len(part) * parts
        assert sum([len(piece) async for piece in response.pieces()]) == len(part) * parts


async def test_a_head_without_end_is_refused() -> None:
    endless = b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * (MAX_HEAD_BYTES // 6 + 1)
    async with serve_bytes(endless, then_hang=True) as url, client_of(url) as client:
        with pytest.raises(BrokenAnswerError, match="in its head is too long"):
            await get(client)


async def test_over_tls_the_certificate_has_to_be_trusted(tmp_path: Path) -> None:
    async def answer(_connection: int, _request: int, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)

    file = tmp_path / "certificate.pem"
    file.write_text(CERTIFICATE)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(file)
    async with server(answer, tls) as url, client_of(url) as client:
        with pytest.raises(ConnectError, match="self-signed certificate"):
            await get(client)
