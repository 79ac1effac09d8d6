"""Who asks and until when, as HTTP says it: turns between clients, and deadlines, through the API."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.api.deps import wait_s
from expert_router.engines.echo import EchoEngine, EchoScript
from support import chat_body, eventually, serve

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from expert_router.types import Chunk, Expert, GenerationParams, Message

HANG = EchoScript(hang_after_tokens=0)
LAURA, HUGO = {"authorization": "Bearer laura"}, {"authorization": "Bearer hugo"}


class NotingEcho(EchoEngine):
    """Keeps the questions in the order in which their answers began."""

    def __init__(self) -> None:
        super().__init__(by_expert={"sleep": HANG})
        self.asked: list[str] = []

    async def stream(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        self.asked.append(messages[-1].content)
        async for chunk in super().stream(expert, messages, params):
            yield chunk


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((LAURA, {}), (HUGO, {})),
        (({}, {"user": "laura"}), ({}, {"user": "hugo"})),
        ((LAURA, {"user": "one"}), (LAURA, {"user": "two"})),
        (({}, {}), (LAURA, {})),
    ],
)
def test_a_clients_first_request_overtakes_anothers_many(one: Any, other: Any) -> None:
    engine = NotingEcho()
    with serve(engine, max_running=1) as server, ExitStack() as threads:
        door = server.dispatcher.admission

        def ask(who: tuple[dict[str, str], dict[str, str]], question: str) -> None:
            headers, fields = who
            body = chat_body(question, model="cars", **fields)
            send = threading.Thread(target=server.http.post, args=("/v1/chat/completions",), kwargs={
                "json": body, "headers": headers})  # fmt: skip
            before = door.waiting
            send.start()
            threads.callback(send.join)
            eventually(lambda: door.waiting == before + 1)

        with server.asking():
            eventually(lambda: server.counts() == {"running": 1})
            for number in range(3):
                ask(one, f"one {number}")
            ask(other, "other 0")
        eventually(lambda: server.counts() == {"finished": 4, "cancelled": 1})
    assert engine.asked[1:] == ["one 0", "other 0", "one 1", "one 2"]


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, None),
        (["wait=10"], 10.0),
        (["respond-async, Wait=7; x=1"], 7.0),
        (["respond-async", 'wait="3"'], 3.0),
        (["wait=soon"], None),
        (["wait"], None),
        (["wait=-1"], None),
    ],
)
def test_how_long_a_request_waits_is_what_it_prefers(prefer: list[str] | None, seconds: float | None) -> None:
    assert wait_s(prefer) == seconds


every_way = pytest.mark.parametrize(
    ("path", "body"),
    [("/query", {"query": "What is REM sleep?"}), ("/v1/chat/completions", chat_body()),
     ("/v1/chat/completions", chat_body(stream=True))],
)  # fmt: skip


@every_way
def test_who_does_not_want_to_wait_is_refused_while_another_waits_on(path: str, body: dict[str, Any]) -> None:
    with serve(EchoEngine(HANG), max_running=1, queue_timeout_s=60) as server, server.asking():
        eventually(lambda: server.counts() == {"running": 1})
        with server.asking():
            eventually(lambda: server.dispatcher.admission.waiting == 1)
            response = server.http.post(path, json=body, headers={"prefer": "wait=0"})
            assert (response.status_code, response.json()["error"]["code"]) == (429, "overloaded")
            assert server.dispatcher.admission.waiting == 1


@every_way
def test_where_the_turn_is_far_off_who_says_nothing_is_refused_at_once_and_who_is_patient_waits(
    path: str, body: dict[str, Any]
) -> None:
    engine = EchoEngine(by_expert={"sleep": HANG})
    with serve(engine, max_running=1, queue_timeout_s=60, expected_wait_s=1e-9) as server, ExitStack() as staying:
        door = server.dispatcher.admission
        server.post(model="cars")  # now it is known how fast slots come free
        staying.enter_context(server.asking())
        eventually(lambda: door.running == 1)
        staying.enter_context(server.asking())  # nobody is ahead of it
        eventually(lambda: door.waiting == 1)
        response = server.http.post(path, json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (429, "overloaded")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        staying.enter_context(server.asking(headers="prefer: wait=60\r\n"))
        eventually(lambda: door.waiting == 2)
