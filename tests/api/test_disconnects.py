"""A client that leaves frees what it held, at whatever moment it leaves."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from expert_router.api.openai import ERROR_GRACE_S
from expert_router.engines.echo import EchoEngine, EchoScript
from support import BOTH_QUESTION, Server, chat_body, eventually, serve

HANG = EchoScript(hang_after_tokens=0)


def all_is_free(server: Server, **counts: int) -> bool:
    door = server.dispatcher.admission
    return (server.counts(), door.running, door.waiting) == (counts, 0, 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("words", [0, 2])
def test_leaving_a_hanging_answer_frees_the_engines_slot(stream: bool, words: int) -> None:
    with serve(EchoEngine(EchoScript(hang_after_tokens=words))) as server:
        with server.asking(body=chat_body(stream=stream)) as connection:
            eventually(lambda: server.counts() == {"running": 1})
            if stream and words:
                while b" science]" not in connection.recv(65536):
                    pass
        eventually(lambda: all_is_free(server, cancelled=1))


def test_leaving_while_the_first_word_is_awaited_in_comments_frees_the_slot() -> None:
    with serve(EchoEngine(EchoScript(hang_after_tokens=0)), keep_alive_s=0.05) as server:
        with server.asking(body=chat_body(stream=True)) as connection:
            while b": keep-alive" not in connection.recv(65536):
                pass
        eventually(lambda: all_is_free(server, cancelled=1))


@pytest.mark.parametrize("queued", [False, True])
def test_a_stream_that_is_left_before_it_was_answered_at_all_frees_what_it_held_at_once(queued: bool) -> None:
    """The API waits for the engine to take the prompt before it answers; who leaves does not."""
    with serve(EchoEngine(HANG), max_running=1) as server, ExitStack() as holding:
        door = server.dispatcher.admission
        if queued:
            holding.enter_context(server.asking())
            eventually(lambda: server.counts() == {"running": 1})
        with server.asking(body=chat_body(stream=True)):
            eventually(lambda: (door.running, door.waiting) == (1, int(queued)))
        eventually(lambda: (door.running, door.waiting) == (int(queued), 0), within_s=ERROR_GRACE_S / 2)


def test_leaving_a_query_frees_the_slot() -> None:
    with serve(EchoEngine(EchoScript(hang_after_tokens=1))) as server:
        with server.asking("/query", {"query": "What is REM sleep?"}):
            eventually(lambda: server.counts() == {"running": 1})
        eventually(lambda: all_is_free(server, cancelled=1))


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_in_the_second_section_frees_its_slot(stream: bool) -> None:
    with serve(EchoEngine(by_expert={"sleep": EchoScript(hang_after_tokens=1)})) as server:
        with server.asking(body=chat_body(BOTH_QUESTION, model="auto", stream=stream)):
            eventually(lambda: server.counts() == {"running": 1, "finished": 1})
        eventually(lambda: all_is_free(server, finished=1, cancelled=1))


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_the_queue_frees_the_place_in_it(stream: bool) -> None:
    with serve(EchoEngine(EchoScript(hang_after_tokens=0)), max_running=1, max_queue=1, queue_timeout_s=60) as server:
        door = server.dispatcher.admission
        with server.asking():
            eventually(lambda: server.counts() == {"running": 1})
            with server.asking(body=chat_body(stream=stream)):
                eventually(lambda: door.waiting == 1)
            eventually(lambda: door.waiting == 0)
            assert server.counts() == {"running": 1}
        eventually(lambda: all_is_free(server, cancelled=1))


def test_who_waits_moves_up_when_another_client_leaves() -> None:
    engine = EchoEngine(by_expert={"sleep": EchoScript(hang_after_tokens=0)})
    with serve(engine, max_running=1, max_queue=1) as server:
        with server.asking():
            eventually(lambda: server.counts() == {"running": 1})
            waiting = server.asking(body=chat_body(model="cars", stream=True))
            connection = waiting.__enter__()
            eventually(lambda: server.dispatcher.admission.waiting == 1)
        received = b""
        while b"[DONE]" not in received:
            received += connection.recv(65536)
        waiting.__exit__(None, None, None)
        eventually(lambda: all_is_free(server, finished=1, cancelled=1))


def test_a_client_that_stops_reading_and_leaves_frees_the_slot() -> None:
    question = "word " * 2000
    with serve(EchoEngine(), send_buffer_bytes=4096) as server:
        with server.asking(body=chat_body(question, stream=True, max_tokens=10_000)):
            eventually(lambda: server.counts() == {"running": 1})
            with pytest.raises(AssertionError, match="not so"):  # nobody reads, so it gets no further
                eventually(lambda: server.counts() != {"running": 1}, within_s=0.3)
        eventually(lambda: all_is_free(server, cancelled=1))


def test_many_clients_that_leave_leave_nothing_behind() -> None:
    engine = EchoEngine(EchoScript(hang_after_tokens=1))
    with serve(engine, max_running=4, max_queue=32) as server:
        held = [server.asking(body=chat_body(stream=bool(number % 2))) for number in range(20)]
        for connection in held:
            connection.__enter__()
        eventually(lambda: (server.dispatcher.admission.running, server.dispatcher.admission.waiting) == (4, 16))
        for connection in held:
            connection.__exit__(None, None, None)
        eventually(lambda: server.dispatcher.admission.running == server.dispatcher.admission.waiting == 0)
        eventually(lambda: "running" not in server.counts())
        assert server.http.get("/health/ready").json()["requests"] == {"running": 0, "waiting": 0}


def test_the_server_stops_though_an_answer_hangs() -> None:
    with serve(EchoEngine(EchoScript(hang_after_tokens=1))) as server, server.asking(body=chat_body(stream=True)):
        eventually(lambda: server.counts() == {"running": 1})
        server.stop()
        assert "running" not in server.counts()
