"""How much a key may ask for: buckets by a clock of our own, and the refusals over HTTP."""

from __future__ import annotations

from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.api.rate_limits import KeyLimits
from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.errors import RateLimitError
from expert_router.keys import Key, changing, new_key
from expert_router.types import ChatRequest, Done, Message, Text, Timings, Usage
from support import chat_body, events, eventually, serve

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from expert_router.types import Event

LONG = f"What is REM sleep? {'word ' * 100}"
REQUEST = ChatRequest((Message("user", "x" * 40),))


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def limits(clock: Clock, **about: Any) -> KeyLimits:
    return KeyLimits(new_key("laura", **about)[0], clock)


def ask(limits: KeyLimits) -> None:
    with limits.request():
        pass


def refused_for_s(limits: KeyLimits) -> float:
    with pytest.raises(RateLimitError) as refused, limits.request():
        pass
    return refused.value.retry_after_s


def test_a_minutes_requests_may_come_at_once_and_then_they_come_evenly(clock: Clock) -> None:
    six = limits(clock, requests_per_minute=6)
    for _ in range(6):
        ask(six)
    assert refused_for_s(six) == 10
    clock.now += 9.5
    assert refused_for_s(six) == 1
    clock.now += 0.5
    ask(six)
    assert refused_for_s(six) == 10
    clock.now += 3600  # nothing is saved up beyond a minute's worth
    for _ in range(6):
        ask(six)
    assert refused_for_s(six) == 10


def test_tokens_are_charged_afterwards_and_a_debt_is_waited_for(clock: Clock) -> None:
    hundred = limits(clock, tokens_per_minute=100)
    ask(hundred)
    hundred.charge(250)
    assert refused_for_s(hundred) == 91  # 151 tokens at 100 a minute
    clock.now += 91
    ask(hundred)


def test_a_request_that_is_refused_costs_nothing(clock: Clock) -> None:
    both = limits(clock, requests_per_minute=2, tokens_per_minute=60, max_running=1)
    with both.request():
        assert refused_for_s(both) == 1
    both.charge(60)
    assert refused_for_s(both) == 1
    clock.now += 1
    ask(both)
    assert refused_for_s(both) == 29  # of two requests a minute, one is left to wait for


def test_so_many_run_at_once_and_no_more(clock: Clock) -> None:
    two = limits(clock, max_running=2)
    with ExitStack() as running:
        running.enter_context(two.request())
        running.enter_context(two.request())
        assert refused_for_s(two) == 1
    ask(two)


def test_limits_that_change_count_at_once_and_others_keep_what_is_left(clock: Clock) -> None:
    key, _ = new_key("laura", requests_per_minute=1, tokens_per_minute=10)
    both = KeyLimits(key, clock)
    ask(both)
    both.charge(10)
    both.follow(key.model_copy(update={"requests_per_minute": 5}))
    assert dict(both.headers())[b"x-ratelimit-remaining-requests"] == b"5"
    assert refused_for_s(both) == 6
    both.follow(key.model_copy(update={"requests_per_minute": None, "tokens_per_minute": None}))
    ask(both)
    assert both.headers() == []


def test_what_is_left_is_told_in_openais_headers(clock: Clock) -> None:
    both = limits(clock, requests_per_minute=10, tokens_per_minute=100)
    ask(both)
    both.charge(130)
    assert dict(both.headers()) == {
        b"x-ratelimit-limit-requests": b"10",
        b"x-ratelimit-remaining-requests": b"9",
        b"x-ratelimit-reset-requests": b"6s",
        b"x-ratelimit-limit-tokens": b"100",
        b"x-ratelimit-remaining-tokens": b"0",
        b"x-ratelimit-reset-tokens": b"78s",
    }


async def _answer() -> AsyncGenerator[Event]:
    for _ in range(5):
        yield Text("word ")
    yield Done("stop", Usage(12, 5), Timings())


@pytest.mark.parametrize(("taken", "left"), [(6, 83), (5, 85), (2, 88), (0, 100)])
async def test_an_answer_costs_its_usage_and_one_that_was_left_what_came_of_it(
    clock: Clock, taken: int, left: int
) -> None:
    """Of 40 characters and so many pieces, one that was never begun of nothing."""
    hundred = limits(clock, tokens_per_minute=100)
    async with aclosing(hundred.metered(_answer(), REQUEST)) as metered:
        for _ in range(taken):
            await anext(metered)
    assert dict(hundred.headers())[b"x-ratelimit-remaining-tokens"] == str(left).encode()


# Over HTTP


def make(path: Path, **about: Any) -> tuple[Key, dict[str, str]]:
    key, secret = new_key("laura", **about)
    with changing(path) as keys:
        keys[key.id] = key
    return key, {"authorization": f"Bearer {secret}"}


def test_requests_beyond_the_limit_are_refused_and_other_keys_are_not(tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    _, laura = make(path, requests_per_minute=2)
    _, hugo = make(path)
    with serve(EchoEngine(), keys=path) as server:
        for left in ("1", "0"):
            response = server.http.get("/v1/models", headers=laura)
            assert (response.status_code, response.headers["x-ratelimit-remaining-requests"]) == (200, left)
        refused = server.http.post("/v1/chat/completions", json=chat_body(), headers=laura)
        error = refused.json()["error"]
        assert (refused.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "rate_limit_exceeded")
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert error["message"].startswith("This key may have 2 requests a minute. Try again in ")
        assert refused.headers["x-ratelimit-limit-requests"] == "2"
        assert server.http.get("/docs", headers=laura).status_code == 200  # pages do not count
        assert server.http.get("/v1/models", headers=hugo).status_code == 200
        assert server.counts() == {}


@pytest.mark.parametrize(
    ("path", "body"),
    [("/query", {"query": LONG}), ("/v1/chat/completions", chat_body(LONG)),
     ("/v1/chat/completions", chat_body(LONG, stream=True, stream_options={"include_usage": True}))],
)  # fmt: skip
def test_tokens_of_question_and_answer_are_charged(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    keys = tmp_path / "keys.jsonl"
    _, laura = make(keys, tokens_per_minute=1000)
    with serve(EchoEngine(), keys=keys) as server:
        usual = server.http.post("/v1/chat/completions", json=chat_body(LONG), headers=laura)
        used = usual.json()["usage"]["total_tokens"]
        left = int(usual.headers["x-ratelimit-remaining-tokens"])
        assert used > 200
        assert 0 <= left - (1000 - used) <= 100  # the bucket fills meanwhile
        response = server.http.post(path, json=body, headers=laura)
        if body.get("stream"):  # its head was sent before they were known
            used += events(response.text)[-2]["usage"]["total_tokens"]
        else:
            used += used
        after = server.http.get("/v1/models", headers=laura)
        assert 0 <= int(after.headers["x-ratelimit-remaining-tokens"]) - (1000 - used) <= 150


def test_a_key_has_so_many_requests_at_once_whole_streams_among_them(tmp_path: Path) -> None:
    keys = tmp_path / "keys.jsonl"
    _, laura = make(keys, max_running=1)
    with serve(EchoEngine(EchoScript(hang_after_tokens=1)), keys=keys) as server:
        with server.http.stream("POST", "/v1/chat/completions", json=chat_body(stream=True), headers=laura) as response:
            assert response.status_code == 200
            refused = server.http.get("/v1/models", headers=laura)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        eventually(lambda: server.http.get("/v1/models", headers=laura).status_code == 200)
