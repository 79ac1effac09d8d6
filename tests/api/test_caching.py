"""Over HTTP the second of two identical requests is answered from the first one's answer, whole or streamed."""

from __future__ import annotations

import json
import re
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.caching.engine import CachingEngine
from expert_router.caching.memory import MemoryStore
from expert_router.engines.echo import EchoEngine, EchoScript
from support import BOTH_QUESTION, CARS_QUESTION, chat_body, events, eventually, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx2

    from support import Server

VARYING = re.compile(r'"(id|created|route_s|first_token_s|total_s)":("[^"]*"|[0-9.e-]+)')


@contextmanager
def caching(script: EchoScript | None = None, **options: Any) -> Iterator[Server]:
    with serve(EchoEngine(script or EchoScript()), answers=MemoryStore(10**6, 60.0), **options) as running:
        yield running


@pytest.fixture
def server() -> Iterator[Server]:
    with caching() as running:
        yield running


def without_times(body: str) -> str:
    return VARYING.sub(r'"\1":0', body)


def runs(server: Server) -> object:
    return server.dispatcher.engine.status()["finished"]


def listening(server: Server) -> int:
    """How many wait for an answer that runs."""
    engine = server.dispatcher.engine
    assert isinstance(engine, CachingEngine)
    return sum(flight._listeners for flight in engine._flights.values())


def where(response: httpx2.Response) -> Any:
    """Of each expert's answer, from a whole response or the end of a stream."""
    if response.headers["content-type"].startswith("text/event-stream"):
        *_, last, done = events(response.text)
        assert done == "[DONE]"
        return last["expert_router"]["cache"]
    return response.json()["expert_router"]["cache"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_second_of_two_identical_requests_is_a_hit_and_alike_to_the_byte(server: Server, stream: bool) -> None:
    first, second = server.post(stream=stream), server.post(stream=stream)
    assert (where(first), where(second)) == ({"sleep": "miss"}, {"sleep": "hit"})
    assert without_times(second.text) == without_times(first.text).replace('"miss"', '"hit"')
    assert runs(server) == 1


def test_a_whole_answer_is_streamed_again_in_the_engines_pieces(server: Server) -> None:
    server.post()
    streamed = events(server.post(stream=True).text)[:-1]
    pieces = [chunk["choices"][0]["delta"].get("content") for chunk in streamed]
    assert [piece for piece in pieces if piece] == [
        "[Sleep",
        " science]",
        " You",
        " asked:",
        " What",
        " is",
        " REM",
        " sleep?",
    ]
    assert streamed[-1]["expert_router"]["cache"] == {"sleep": "hit"}


def test_each_experts_part_comes_from_where_it_comes(server: Server) -> None:
    server.post(messages=[{"role": "user", "content": BOTH_QUESTION}], model="auto")
    assert where(server.post(messages=[{"role": "user", "content": BOTH_QUESTION}], model="auto")) == {
        "sleep": "hit",
        "cars": "hit",
    }
    assert runs(server) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "cars"},
        {"messages": [{"role": "user", "content": CARS_QUESTION}]},
        {"max_tokens": 100},
        {"stop": "asked"},
        {"seed": 1},
        {"top_p": 0.5},
    ],
    ids=str,
)
def test_another_request_is_none(server: Server, changes: dict[str, Any]) -> None:
    server.post()
    response = server.post(**changes)
    assert set(where(response).values()) == {"miss"}
    assert runs(server) == 2


def test_a_request_with_a_temperature_is_answered_anew(server: Server) -> None:
    assert [where(server.post(temperature=0.5)) for _ in range(2)] == [{"sleep": "off"}] * 2
    assert runs(server) == 2


@pytest.mark.parametrize(
    ("header", "results"),
    [
        ("no-cache", ["miss", "miss", "hit"]),
        ("max-age=0", ["miss", "miss", "hit"]),
        ("No-Cache, no-transform", ["miss", "miss", "hit"]),
        ("no-store", ["off", "off", "miss"]),
        ("no-cache, No-Store", ["off", "off", "miss"]),
        ("no-transform", ["miss", "hit", "hit"]),
        ("", ["miss", "hit", "hit"]),
    ],
)
def test_cache_control_is_obeyed(server: Server, header: str, results: list[str]) -> None:
    asked = [{"cache-control": header}, {"cache-control": header}, {}]
    responses = [server.http.post("/v1/chat/completions", json=chat_body(), headers=headers) for headers in asked]
    assert [where(response)["sleep"] for response in responses] == results


def test_a_header_in_two_lines_is_obeyed_too(server: Server) -> None:
    server.post()
    headers = [("cache-control", "no-transform"), ("cache-control", "no-store")]
    assert where(server.http.post("/v1/chat/completions", json=chat_body(), headers=headers)) == {"sleep": "off"}


def test_the_questions_endpoint_shares_the_answers_and_obeys_too(server: Server) -> None:
    body = {"query": "What is REM sleep?"}
    answers = [server.http.post("/query", json=body).json() for _ in range(2)]
    assert answers[0] == answers[1]
    assert runs(server) == 1
    server.http.post("/query", json=body, headers={"cache-control": "no-store"})
    assert runs(server) == 2


def test_health_says_how_often_it_helped(server: Server) -> None:
    for _ in range(3):
        server.post()
    server.post(temperature=1)
    cache = server.http.get("/health/ready").json()["engine"]["cache"]
    assert {name: cache[name] for name in ("store", "hits", "misses", "shared", "off", "answers", "evicted")} == {
        "store": "memory",
        "hits": 2,
        "misses": 1,
        "shared": 0,
        "off": 1,
        "answers": 1,
        "evicted": 0,
    }
    assert cache["bytes"] > 400


def test_ten_who_ask_at_once_make_the_engine_run_once() -> None:
    with caching(EchoScript(token_delay_s=0.05), max_running=1, max_queue=0) as server:
        responses: list[httpx2.Response] = []
        threads = [
            threading.Thread(target=lambda number=n: responses.append(server.post(stream=bool(number % 2))))
            for n in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(where(response)["sleep"] for response in responses) == ["miss", *["shared"] * 9]
        assert runs(server) == 1


def test_the_engines_slot_is_free_once_the_last_of_them_has_left() -> None:
    with caching(EchoScript(hang_after_tokens=1)) as server:
        with ExitStack() as staying:
            with ExitStack() as leaving:
                for number in range(4):
                    leaving.enter_context(server.asking(body=chat_body(stream=bool(number % 2))))
                staying.enter_context(server.asking())
                eventually(lambda: listening(server) == 5)
                assert (server.counts(), server.dispatcher.admission.running) == ({"running": 1}, 1)
            eventually(lambda: listening(server) == 1)
            assert (server.counts(), server.dispatcher.admission.running) == ({"running": 1}, 1)
        eventually(lambda: server.counts() == {"cancelled": 1})
        assert server.dispatcher.admission.running == 0


def test_an_error_is_answered_as_such_each_time() -> None:
    with caching(EchoScript(fail_after_tokens=1)) as server:
        for attempt in (1, 2):
            assert server.post().status_code == 502
            assert server.counts() == {"failed": attempt}
        *_, error = events(server.post(stream=True).text)
        assert error["error"]["code"] == "engine_failed"


def test_an_answer_without_a_cache_says_nothing_of_one() -> None:
    with serve(EchoEngine()) as server:
        assert where(server.post()) == {}
        assert json.loads(server.http.get("/health/ready").text)["engine"].keys().isdisjoint({"cache"})


LAURA, HUGO = {"authorization": "Bearer laura"}, {"authorization": "Bearer hugo"}
CLIENTS = ((LAURA, {}), (HUGO, {}), ({}, {}), (LAURA, {"user": "one"}), (LAURA, {"user": "two"}), ({}, {"user": "one"}))


@pytest.mark.parametrize("store", ["memory", "shared by two systems"])
def test_where_clients_share_no_answer_each_is_given_its_own_alone(store: str) -> None:
    answers = MemoryStore(10**6, 60.0)
    with (
        serve(EchoEngine(), answers=answers, per_client=True) as one,
        serve(EchoEngine(), answers=answers, per_client=True) as other,
    ):
        again = one if store == "memory" else other
        for server, result in ((one, "miss"), (again, "hit")):
            for headers, fields in CLIENTS:
                response = server.http.post("/v1/chat/completions", json=chat_body(**fields), headers=headers)
                assert where(response) == {"sleep": result}
        assert runs(one) == len(CLIENTS)


def test_where_clients_share_no_answer_none_listens_to_anothers_run_either() -> None:
    with caching(EchoScript(hang_after_tokens=1), per_client=True) as server, ExitStack() as asking:
        for fields in ({}, {"user": "one"}, {"user": "one"}):
            asking.enter_context(server.asking(body=chat_body(**fields)))
        eventually(lambda: listening(server) == 3)
        eventually(lambda: server.counts() == {"running": 2})


def test_by_default_clients_share_answers(server: Server) -> None:
    results = [
        where(server.http.post("/v1/chat/completions", json=chat_body(), headers=headers)) for headers in (LAURA, HUGO)
    ]
    assert results == [{"sleep": "miss"}, {"sleep": "hit"}]
