"""Clients that break HTTP, JSON or Unicode, or leave midway: no 5xx, others are answered, nothing is left over."""

from __future__ import annotations

import json
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from expert_router.engines.echo import EchoEngine
from support import chat_body, eventually, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support import Server

COMPLETIONS = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
DEEP = 100_000
IDLE = 10_000


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(EchoEngine()) as running:
        yield running


@pytest.fixture(autouse=True)
def _answers_afterwards_and_keeps_nothing(server: Server) -> Iterator[None]:
    """After each test: the next request is answered, and no run, thread or socket of the server is left."""
    server.http.get("/health/live")
    before = len(server.runner.server_state.connections), threading.active_count()
    yield
    assert server.post().status_code == 200
    eventually(lambda: not server.dispatcher.admission.running and not server.dispatcher.admission.waiting)
    eventually(lambda: len(server.runner.server_state.connections) <= before[0] + 1)
    eventually(lambda: not [task for task in server.runner.server_state.tasks if not task.done()])
    assert threading.active_count() <= before[1] + 8  # the pool of worker threads grows to its size once


def connect(server: Server) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def said(connection: socket.socket) -> bytes:
    """All that the server says until it closes."""
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


def request(body: bytes, *headers: bytes, path: str = COMPLETIONS) -> bytes:
    lines = [f"POST {path} HTTP/1.1".encode(), b"host: test", b"content-type: application/json", *headers]
    return b"\r\n".join([*lines, f"content-length: {len(body)}".encode(), b"connection: close", b"", body])


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


# Bodies


def asked_with(text: str) -> bytes:
    return f'{{"model": "sleep", "messages": [{{"role": "user", "content": {text}}}]}}'.encode()


@pytest.mark.parametrize(
    "body",
    [
        b"[" * DEEP, b"[" * DEEP + b"]" * DEEP, b'{"a":' * DEEP, b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        b'{"messages": ' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"model": "sleep", "messages": [{"role": "user", "content": "Hi"}], "logit_bias": ' + b'{"a":' * DEEP + b"}",
        b'{"max_tokens": ' + b"9" * 10_000 + b', "messages": [{"role": "user", "content": "Hi"}]}',
        b'{"temperature": NaN, "messages": [{"role": "user", "content": "Hi"}]}',
        b'{"temperature": Infinity, "messages": [{"role": "user", "content": "Hi"}]}',
        b'{"temperature": 1e999, "messages": [{"role": "user", "content": "Hi"}]}',
        b'{"temperature": -1e999, "messages": [{"role": "user", "content": "Hi"}]}',
        b'{"seed": 18446744073709551616, "messages": [{"role": "user", "content": "Hi"}]}',
        asked_with('"\\ud800"'), asked_with('"\\udc00\\ud800"'), asked_with('"\\ud800\\ud800"'),
        b'{"model": "\xff\xfe", "messages": []}', b"\xef\xbb\xbf{}",
        b'{"\xed\xa0\x80": 1}', b'{"query": "\xc0\xaf"}', b'{"query": "\xf4\x90\x80\x80"}', b'{"query": "a\x00b"}',
        b"\x00" * 1000, b'{"query": "\\u0000', b'{"query": "\\uZZZZ"}',
    ],
    ids=lambda body: repr(body[:24]),
)  # fmt: skip
@pytest.mark.parametrize("path", [COMPLETIONS, "/query", "/v1/explain", "/v1/feedback"])
def test_what_is_no_request_is_a_bad_request(server: Server, path: str, body: bytes) -> None:
    response = server.http.post(path, content=body, headers=JSON)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]


def test_a_name_that_is_there_twice_is_the_last_ones(server: Server) -> None:
    body = b'{"query": "one", "query": "two"}'
    assert server.http.post("/query", content=body, headers=JSON).json()["query"] == "two"


@pytest.mark.parametrize(
    "unit", ["a", "\N{HOT BEVERAGE}", " a", "\N{COMBINING ACUTE ACCENT}", "<|im_start|>", "\0", " ", "hi, "]
)
@pytest.mark.timeout(60)
def test_a_megabyte_of_one_token_is_answered_or_refused_in_seconds(server: Server, unit: str) -> None:
    started = time.monotonic()
    text = "x" + unit * (900_000 // len(json.dumps(unit)))
    response = server.post(messages=[{"role": "user", "content": text}], model="auto", max_tokens=5)
    assert response.status_code in {200, 400}, response.text
    assert time.monotonic() - started < 30


# Heads


@pytest.mark.parametrize(
    "head",
    [
        b"\xff\xfe\xfd GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /\xff\xfe HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(20_000)) + b"\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST /query HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /query HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\nabc\r\n",
        b"POST /query HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff0\r\nabc\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\r\n" * 1000, b"\x00" * 5000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=lambda head: repr(head[:30]),
)  # fmt: skip
def test_what_is_no_http_is_refused_or_left(server: Server, head: bytes) -> None:
    with connect(server) as connection:
        try:
            connection.sendall(head)
            connection.shutdown(socket.SHUT_WR)
            answer = said(connection)
        except (ConnectionError, BrokenPipeError):
            return
    assert not answer or status(answer) < 500, answer[:200]


@pytest.mark.parametrize(
    "header",
    [b"authorization: Bearer \xff\xfe", b"x-request-id: \xff\xed\xa0\x80", b"prefer: wait=" + b"9" * 5000,
     b"cache-control: \xe2\x82", b"authorization: Bearer", b"content-type: application/json; charset=\xff",
     b"prefer: wait=\xd9\xa3"],
    ids=repr,
)  # fmt: skip
def test_headers_that_are_no_text_harm_nobody(server: Server, header: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(request(json.dumps(chat_body()).encode(), header))
        assert status(said(connection)) in {200, 400}


# Connections


def test_who_closes_his_half_is_still_answered_or_let_go(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(request(json.dumps(chat_body()).encode()))
        connection.shutdown(socket.SHUT_WR)
        answer = said(connection)
    assert not answer or status(answer) == 200


@pytest.mark.parametrize("sent", [0, 1, 20, 150, -1])
@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
def test_who_leaves_in_the_middle_leaves_nothing(server: Server, sent: int, reset: bool) -> None:
    whole = request(json.dumps(chat_body(stream=True)).encode())
    for _ in range(20):
        with connect(server) as connection:
            connection.sendall(whole[:sent])
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_many_requests_in_one_packet_are_answered_in_their_order(server: Server) -> None:
    with connect(server) as connection:
        one = b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n"
        connection.sendall(one * 50 + one.replace(b"host: a", b"host: a\r\nconnection: close"))
        assert said(connection).count(b"HTTP/1.1 200") == 51


# Idle connections


HOLD = """
import resource, socket, sys
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = [socket.create_connection((sys.argv[1], int(sys.argv[2]))) for _ in range(int(sys.argv[3]))]
print(len(held), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_thousand_idle_connections_cost_little_and_stop_nobody(server: Server) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < IDLE + 500:
        pytest.skip(f"a process may have {hard} files: raise it with ulimit -Hn {IDLE + 500}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    before = resident_bytes()
    address = server.url.removeprefix("http://").split(":")
    pipe = subprocess.PIPE
    clients = subprocess.Popen([sys.executable, "-c", HOLD, *address, str(IDLE)], stdin=pipe, stdout=pipe, text=True)
    try:
        assert clients.stdout is not None
        assert int(clients.stdout.readline()) == IDLE
        eventually(lambda: len(server.runner.server_state.connections) >= IDLE, within_s=30)
        each = (resident_bytes() - before) / IDLE
        started = time.monotonic()
        assert server.post().status_code == 200
        took = time.monotonic() - started
        sys.stdout.write(f"{IDLE} idle connections: {each / 1024:.1f} KiB each; one more answer took {took:.3f} s\n")
        assert each < 64 * 1024
        assert took < 2
    finally:
        clients.communicate("")
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    eventually(lambda: len(server.runner.server_state.connections) < 10, within_s=30)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()
