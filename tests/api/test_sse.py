from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from expert_router.api import sse
from expert_router.engines.echo import EchoEngine, EchoScript
from support import BOTH_QUESTION, OTHER_QUESTION, UNSURE_QUESTION, chat_body, events, serve

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncGenerator, Iterator

    from support import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(EchoEngine()) as running:
        yield running


def read_until(connection: socket.socket, *marks: bytes) -> bytes:
    """What comes until all marks have come, or the other side ends."""
    received = b""
    while not all(mark in received for mark in marks) and (piece := connection.recv(65536)):
        received += piece
    return received


def test_every_event_is_one_data_line_and_done_is_the_last(server: Server) -> None:
    response = server.post(stream=True)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.text.endswith("data: [DONE]\n\n")
    blocks = response.text.removesuffix("\n\n").split("\n\n")
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)


def test_line_breaks_and_any_script_survive_the_framing(server: Server) -> None:
    text = "two\n\nlines\r\nand \u2028 data: [DONE] 😀 睡眠"
    body = chat_body(text, stream=True)
    *chunks, done = events(server.http.post("/v1/chat/completions", json=body).text)
    assert done == "[DONE]"
    answer = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert answer == f"[Sleep science] You asked: {text}"


def test_the_routing_is_whole_in_the_first_event_and_nowhere_else(server: Server) -> None:
    first, *others, done = events(server.post(model="auto", stream=True).text)
    assert done == "[DONE]"
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None, "logprobs": None}
    ]
    assert first["expert_router"]["experts"] == ["sleep"]
    assert [set(chunk["expert_router"]) for chunk in others if "expert_router" in chunk] == [
        {"parts", "timings", "cache"}
    ]


def test_a_section_is_marked_where_it_begins(server: Server) -> None:
    body = chat_body(BOTH_QUESTION, model="auto", stream=True)
    *chunks, _ = events(server.http.post("/v1/chat/completions", json=body).text)
    abouts = [chunk.get("expert_router", {}) for chunk in chunks]
    words = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    begins = {about["section"]: number for number, about in enumerate(abouts) if "section" in about}
    assert list(begins) == ["cars", "sleep"]
    assert words[begins["cars"] + 1] == "[Car"
    assert words[begins["sleep"] + 1] == "[Sleep"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("question", "kind", "said"),
    [(UNSURE_QUESTION, "clarify", "is it about Sleep science or Car history?"),
     (OTHER_QUESTION, "refused", "I can answer questions about Sleep science, Car history.")],
)  # fmt: skip
def test_when_nobody_answers_that_is_said_without_the_engine(stream: bool, question: str, kind: str, said: str) -> None:
    with serve(EchoEngine(), on_general="refuse") as server:
        response = server.http.post("/v1/chat/completions", json=chat_body(question, model="auto", stream=stream))
        assert (response.status_code, response.headers["x-expert-router-kind"]) == (200, kind)
        assert response.headers["x-expert-router-experts"] == ""
        if stream:
            first, *_, last, _ = chunks = events(response.text)
            about, reason = first["expert_router"], last["choices"][0]["finish_reason"]
            text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1])
        else:
            about, reason = response.json()["expert_router"], response.json()["choices"][0]["finish_reason"]
            text = response.json()["choices"][0]["message"]["content"]
        assert (about["experts"], about["decision"]["kind"], reason) == ([], kind, "stop")
        assert text.endswith(said)
        assert server.counts() == {}


def test_text_is_sent_as_it_comes() -> None:
    with serve(EchoEngine(EchoScript(hang_after_tokens=2))) as server, server.asking(body=chat_body(stream=True)) as it:
        received = read_until(it, b" science]")
        assert b'"content":"[Sleep"' in received
        assert b" You" not in received


def test_a_silence_is_filled_with_comments_that_are_no_events() -> None:
    engine = EchoEngine(EchoScript(hang_after_tokens=1))
    with serve(engine, keep_alive_s=0.05) as server, server.asking(body=chat_body(stream=True)) as connection:
        started = time.monotonic()
        received = read_until(connection, b"[Sleep")
        while received.count(b": keep-alive\n\n") < 3:
            received += connection.recv(65536)
        assert 0.15 <= time.monotonic() - started < 3.0
        after = received[received.index(b"[Sleep") :]
        assert b"data:" not in after


def test_a_slow_first_word_is_awaited_with_the_routing_and_comments() -> None:
    engine = EchoEngine(EchoScript(first_token_delay_s=1.3))
    with serve(engine, keep_alive_s=0.05) as server:
        text = server.post(stream=True).text
    routing, comments, answer = text.index('"expert_router"'), text.index(": keep-alive"), text.index("[Sleep")
    assert routing < comments < answer
    assert text.endswith("data: [DONE]\n\n")


def test_answers_that_do_not_pause_carry_no_comments(server: Server) -> None:
    assert ": keep-alive" not in server.post(stream=True).text


@pytest.mark.parametrize("stream", [False, True])
def test_the_callers_request_id_comes_back(server: Server, stream: bool) -> None:
    for identifier in ("abc-123", "x" * 128):
        response = server.http.post(
            "/v1/chat/completions", json=chat_body(stream=stream), headers={"x-request-id": identifier}
        )
        assert response.headers.get_list("x-request-id") == [identifier]


@pytest.mark.parametrize("unusable", ["", "two words", "x" * 129, "caf\xe9"])
def test_an_unusable_request_id_is_replaced(server: Server, unusable: str) -> None:
    headers = {b"x-request-id": unusable.encode("latin-1")}
    response = server.http.get("/health/live", headers=headers)
    assert response.status_code == 200
    assert response.headers["x-request-id"] not in {"", unusable}


def test_every_request_has_an_id_of_its_own_errors_included(server: Server) -> None:
    responses = [
        server.post(),
        server.post(),
        server.post(model="nobody"),
        server.http.post("/v1/chat/completions", content=b"{"),
        server.http.get("/nowhere"),
        server.http.get("/"),
    ]
    assert len({response.headers["x-request-id"] for response in responses}) == len(responses)


def test_many_clients_at_once_each_get_their_own_answer(server: Server) -> None:
    """More than run at once: the rest wait for their turn, and nobody gets a piece of another's answer."""
    from concurrent.futures import ThreadPoolExecutor

    def ask(number: int) -> str:
        body = chat_body(f"question {number}", stream=bool(number % 2))
        response = server.http.post("/v1/chat/completions", json=body)
        if number % 2:
            chunks = events(response.text)[:-1]
            return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        return str(response.json()["choices"][0]["message"]["content"])

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(48)))
    assert answers == [f"[Sleep science] You asked: question {number}" for number in range(48)]


async def test_frames_that_are_ready_leave_together_and_all_of_them_do() -> None:
    more = asyncio.Event()

    async def frames() -> AsyncGenerator[bytes]:
        yield b"a"
        yield b"b"
        await more.wait()
        for number in range(3 * sse.AHEAD):
            yield b"%d," % number

    async with aclosing(sse.keep_alive(frames(), 60)) as pieces:
        assert await anext(pieces) == b"ab"
        more.set()
        rest = [piece async for piece in pieces]
    assert b"".join(rest) == b"".join(b"%d," % number for number in range(3 * sse.AHEAD))
    assert len(rest) < sse.AHEAD


async def test_a_slow_client_holds_the_frames_up_and_leaving_closes_them() -> None:
    made, closed = 0, False

    async def frames() -> AsyncGenerator[bytes]:
        nonlocal made, closed
        try:
            while True:
                made += 1
                yield b"x"
        finally:
            closed = True

    async with aclosing(sse.keep_alive(frames(), 60)) as pieces:
        await anext(pieces)
        for _ in range(100):
            await asyncio.sleep(0)
        assert made <= 2 * sse.AHEAD + 2
    assert closed


async def test_what_the_frames_raise_comes_after_what_they_gave() -> None:
    async def frames() -> AsyncGenerator[bytes]:
        yield b"a"
        raise ValueError("broken")

    pieces = sse.keep_alive(frames(), 60)
    assert await anext(pieces) == b"a"
    with pytest.raises(ValueError, match="broken"):
        await anext(pieces)
