"""What a connection may do to a server, with raw sockets: heads and bodies that are too large, too slow, too many."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from test_serve import Serving, serving

from support import chat_body, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cli import CommandLine

HEAD_BYTES, HEADERS, CONNECTIONS, BODY_BYTES = 2000, 20, 8, 200_000
SETTINGS = {
    "MAX_HEAD_BYTES": HEAD_BYTES,
    "MAX_HEADERS": HEADERS,
    "MAX_CONNECTIONS": CONNECTIONS,
    "MAX_BODY_BYTES": BODY_BYTES,
    "HEAD_TIMEOUT_S": 0.4,
    "BODY_TIMEOUT_S": 0.4,
}
GET = b"GET /health/live HTTP/1.1\r\nhost: test\r\n"


@pytest.fixture(scope="module")
def server(cli: CommandLine) -> Iterator[Serving]:
    with serving(limited(cli, **SETTINGS), "--no-page") as running:
        yield running
        assert running.ask().status_code == 200  # after all that was done to it
        status, error = running.end()
        assert status == 0
        assert "Traceback" not in error


def limited(cli: CommandLine, **limits: float) -> CommandLine:
    return replace(cli, settings={f"EXPERT_ROUTER_SERVER__{name}": str(value) for name, value in limits.items()})


@contextmanager
def connected(server: Serving) -> Iterator[socket.socket]:
    address = httpx2.URL(server.url)
    with socket.create_connection((address.host, address.port or 80), timeout=10) as connection:
        yield connection


def answers(connection: socket.socket) -> str:
    """All that comes until the server closes."""
    received = b""
    while True:
        try:
            piece = connection.recv(65536)
        except ConnectionResetError:  # it closed before it had read everything
            return received.decode()
        if not piece:
            return received.decode()
        received += piece


def refusal(said: str) -> tuple[int, str]:
    """Status and code of the one answer that was given, in OpenAI's shape; the connection is closed after it."""
    head, _, body = said.partition("\r\n\r\n")
    assert "connection: close" in head
    error: dict[str, Any] = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return int(head.split(" ")[1]), error["code"]


@pytest.mark.parametrize(
    "head",
    [
        GET + b"x-long: " + b"x" * HEAD_BYTES + b"\r\n\r\n",  # whole
        b"GET /" + b"x" * HEAD_BYTES + b" HTTP/1.1\r\nhost: test\r\n\r\n",
        GET + b"x-long: " + b"x" * HEAD_BYTES,  # a line that does not end
        b"GET /" + b"x" * HEAD_BYTES,
        GET + b"".join(b"x-%d: 1\r\n" % number for number in range(HEADERS)) + b"\r\n",  # few bytes, many headers
        GET + b"".join(b"x: \r\n" for number in range(HEADERS + 5)),
    ],
)
def test_a_head_that_is_too_large_is_refused(server: Serving, head: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(head)
        assert refusal(answers(connection)) == (431, "head_too_large")


def test_a_head_that_grows_piece_by_piece_is_refused_too(server: Serving) -> None:
    with connected(server) as connection:
        for piece in (GET, b"x-long: ", *[b"x" * 150] * 16):
            connection.sendall(piece)
        assert refusal(answers(connection)) == (431, "head_too_large")


def test_within_the_limits_a_connection_is_used_again_and_again(server: Serving) -> None:
    """Neither large bodies nor what came before count as a head's bytes, also where they come in one piece."""
    body = json.dumps(chat_body("word " * 5000)).encode()
    post = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )
    long = GET + b"x-long: " + b"x" * (HEAD_BYTES - 100) + b"\r\n\r\n"
    with connected(server) as connection:
        file = connection.makefile("rb")
        for request in (GET + b"\r\n", long, post, b"\r\n" + long, post, post, long):
            connection.sendall(request)
            assert _read_answer(file) == 200
        connection.sendall(post + long + GET + b"\r\n")  # and where three requests come as one
        assert [_read_answer(file) for _ in range(3)] == [200] * 3


@pytest.mark.parametrize("before", [b"", GET + b"\r\n"])
@pytest.mark.parametrize("begun", [GET, b"G", b"\r\n", GET + b"x-slow: "])
def test_a_head_that_does_not_end_in_time_is_refused(server: Serving, before: bytes, begun: bytes) -> None:
    with connected(server) as connection:
        file = connection.makefile("rb")
        if before:
            connection.sendall(before)
            assert _read_answer(file) == 200
        connection.sendall(begun)
        assert refusal(file.read().decode()) == (408, "slow_request")


@pytest.mark.parametrize("drop", [b"\r\n", b"x: y\r\n"])
def test_a_byte_now_and_then_does_not_hold_a_connection(server: Serving, drop: bytes) -> None:
    """Whatever is sent meanwhile: what counts is when the head has ended."""
    with connected(server) as connection:
        connection.sendall(b"\r\n" if drop == b"\r\n" else GET)
        connection.settimeout(0.05)
        received = b""
        for _ in range(200):  # 10 s
            try:
                connection.sendall(drop)
                received += connection.recv(1000)
            except TimeoutError:
                continue
            except OSError:
                break
            if received:
                break
        assert b" 408 " in received or b" 431 " in received
        connection.settimeout(10)
        answers(connection)


def test_who_connects_and_says_nothing_is_left_without_a_word(server: Serving) -> None:
    with connected(server) as connection:
        assert answers(connection) == ""


@pytest.mark.parametrize("begun", [b"", b'{"model": '])
@pytest.mark.parametrize("length", [b"content-length: 50", b"transfer-encoding: chunked"])
def test_a_body_that_does_not_come_in_time_is_refused(server: Serving, begun: bytes, length: bytes) -> None:
    piece = begun if b"length" in length or not begun else b"%x\r\n%s\r\n" % (len(begun), begun)
    with connected(server) as connection:
        head = b"POST /query HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
        connection.sendall(head + length + b"\r\n\r\n" + piece)
        assert refusal(answers(connection)) == (408, "slow_request")


def test_who_was_refused_and_sends_on_is_cut_off(server: Serving) -> None:
    """The answer is given before the body came, which then may not take for ever either."""
    with connected(server) as connection:
        head = b"POST /query HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n" % (BODY_BYTES + 1)
        connection.sendall(head)
        said = answers(connection)
        assert said.startswith("HTTP/1.1 413 ")
        assert said.count("HTTP/1.1") == 1


def test_blank_lines_after_a_request_do_not_end_its_answer(server: Serving) -> None:
    """Clients of old send one; meanwhile the answer takes longer than a head may."""
    content = json.dumps(chat_body("word " * 30_000, stream=True, max_tokens=100_000)).encode()
    with connected(server) as connection:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
        connection.sendall(head + b"content-length: %d\r\n\r\n" % len(content) + content + b"\r\n")
        file = connection.makefile("rb")
        first = file.readline()
        with connected(server) as other:
            assert answers(other) == ""  # so long: a connection without a request has had its time
        assert first.startswith(b"HTTP/1.1 200")
        assert any(line.startswith(b"data: [DONE]") for line in file)


@pytest.mark.parametrize("more", [b"expect: 100-continue\r\n", b"connection: close\r\n"])
def test_requests_that_ask_for_more_are_answered_in_full(server: Serving, more: bytes) -> None:
    """curl asks so whether its body is welcome. The answer takes longer than a body may."""
    content = json.dumps(chat_body("word " * 30_000, stream=True, max_tokens=100_000)).encode()
    with connected(server) as connection:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n" + more
        connection.sendall(head + b"content-length: %d\r\n\r\n" % len(content) + content)
        file = connection.makefile("rb")
        with connected(server) as other:
            assert answers(other) == ""  # so long: a connection without a request has had its time
        assert any(line.startswith(b"data: [DONE]") for line in file)


def test_a_client_that_does_not_read_is_left_after_the_requests_time(cli: CommandLine) -> None:
    """So is none whose answer is whole in time."""
    content = json.dumps(chat_body("word " * 150_000, stream=True, max_tokens=150_000)).encode()
    with serving(limited(cli, REQUEST_TIMEOUT_S=2), "--no-page") as server:
        with connected(server) as connection:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
            connection.sendall(head + b"content-length: %d\r\n\r\n" % len(content) + content)
            eventually(lambda: _running(server) == 1)
            eventually(lambda: _running(server) == 0, within_s=20)
            assert "[DONE]" not in answers(connection)
        assert server.ask().status_code == 200
        _, error = server.end()
    assert "The request took longer than 2 s." in error
    assert "Traceback" not in error


def test_connections_beyond_the_limit_are_refused_at_once_and_others_stay(server: Serving) -> None:
    eventually(lambda: httpx2.get(f"{server.url}/health/live", trust_env=False).status_code == 200)
    with ExitStack() as open_ones:
        held = [open_ones.enter_context(connected(server)) for _ in range(CONNECTIONS)]
        with connected(server) as one_more:
            assert refusal(answers(one_more)) == (503, "busy")
        held[0].sendall(GET + b"connection: close\r\n\r\n")
        assert answers(held[0]).startswith("HTTP/1.1 200")
        with connected(server) as another:
            another.sendall(GET + b"\r\n")
            assert another.recv(100).startswith(b"HTTP/1.1 200")


def _running(server: Serving) -> int:
    ready = httpx2.get(f"{server.url}/health/ready", trust_env=False).json()
    running: int = ready["requests"]["running"]
    return running


def _read_answer(file: Any) -> int:
    """The status of the next answer, which is read to its end."""
    status = int(file.readline().split(b" ")[1])
    length = 0
    while line := file.readline().strip():
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    file.read(length)
    return status
