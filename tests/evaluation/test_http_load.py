"""Clients over HTTP against real servers: ours on the echo engine, and one that behaves as others do."""

from __future__ import annotations

import json
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pytest
import upstream as others
from upstream import delta

from expert_router.data.labelled import LabelledQuestion
from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.errors import ConfigError
from expert_router.evaluation.http_load import (
    Asking,
    Level,
    Sample,
    Target,
    ask,
    find_target,
    measure_level,
    measure_rate,
    open_client,
)
from support import BOTH_QUESTION, CARS_QUESTION, SLEEP_QUESTION, UNSURE_QUESTION, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstream import Upstream, UpstreamServer

SLEEP = LabelledQuestion(SLEEP_QUESTION, frozenset({"sleep"}), "sleep")
CARS = LabelledQuestion(CARS_QUESTION, frozenset({"cars"}), "cars")


@pytest.fixture(scope="module")
def other_server() -> Iterator[UpstreamServer]:
    with others.serve() as server:
        yield server


@pytest.fixture
def other(other_server: UpstreamServer) -> Upstream:
    return other_server.fresh()


async def sample_of(url: str, question: LabelledQuestion = SLEEP, **how: Any) -> Sample:
    async with open_client(url, 5) as client:
        return await ask(client, Target(url, "auto", ours=True), Asking(**{"max_tokens": 64, **how}), question)


async def target_at(url: str, model: str | None = None) -> Target:
    async with open_client(url, 5) as client:
        return await find_target(client, model)


async def filled(url: str, clients: int, **until: Any) -> Level:
    level = Level(clients)
    async with open_client(url, 5) as client:
        await measure_level(
            level,
            lambda question: ask(client, Target(url, "auto", ours=True), Asking(64), question),
            cycle([SLEEP, CARS]),
            **{"requests": None, "seconds": None, "done": lambda: None, **until},
        )
    return level


async def test_our_server_chooses_and_another_is_asked_for_its_first_model(other: Upstream) -> None:
    with serve(EchoEngine()) as server:
        assert await target_at(server.url + "/") == Target(server.url, "auto", ours=True)
        with pytest.raises(ConfigError, match=r"no model 'boats'\. Known: auto, sleep, cars, general"):
            await target_at(server.url, "boats")
    assert await target_at(other.base_url) == Target(other.base_url.removesuffix("/v1"), "base", ours=False)
    sample = await sample_of(other.base_url)
    assert (sample.error, sample.tokens, len(sample.gaps_s), sample.decided) == ("", 4, 1, False)


async def test_a_server_of_another_kind_is_said(other: Upstream) -> None:
    other.refuse(404, "<p>Not here</p>")
    with pytest.raises(ConfigError, match="is no OpenAI-compatible server: /v1/models answered HTTP 404"):
        await target_at(other.base_url)


async def test_an_answer_is_timed_from_its_first_token_to_its_end() -> None:
    with serve(EchoEngine(EchoScript(first_token_delay_s=0.05, token_delay_s=0.02))) as server:
        sample = await sample_of(server.url)
        both = await sample_of(server.url, LabelledQuestion(BOTH_QUESTION, frozenset({"sleep", "cars"}), "several"))
    assert (sample.status, sample.error, sample.tokens, len(sample.gaps_s)) == (200, "", 8, 7)
    assert 0.05 <= (sample.first_token_s or 0) <= sample.total_s - sum(sample.gaps_s)
    assert sum(sample.gaps_s) >= 0.9 * 7 * 0.02
    assert (both.right, len(both.gaps_s)) == (True, both.tokens - 1)  # headings are no tokens


async def test_right_is_who_was_needed_and_a_question_back_is_not() -> None:
    questions = [LabelledQuestion(text, SLEEP.experts, "sleep") for text in (CARS_QUESTION, UNSURE_QUESTION)]
    with serve(EchoEngine()) as server:
        samples = [await sample_of(server.url, question) for question in (SLEEP, *questions)]
    assert [(sample.decided, sample.right) for sample in samples] == [(True, True), (True, False), (True, False)]


async def test_what_is_asked_is_what_was_chosen(other: Upstream) -> None:
    await sample_of(other.base_url, max_tokens=7, ignore_eos=True, no_cache=True, wait_s=5)
    await sample_of(other.base_url)
    first, second = other.seen
    assert (first.body["max_tokens"], first.body["ignore_eos"], first.headers["cache-control"]) == (7, True, "no-store")
    assert "ignore_eos" not in second.body
    assert first.headers["prefer"] == "wait=5"
    assert not {"cache-control", "prefer"} & set(second.headers)


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ((delta("REM "), json.dumps({"error": {"message": "out of memory"}})), "out of memory"),
        ((delta("REM "),), "The answer ended before it was whole."),
        ((delta("REM "), "[1, 2]"), "no piece of a chat completion: [1, 2]"),
    ],
)
async def test_an_answer_that_breaks_off_says_how(other: Upstream, events: tuple[str, ...], said: str) -> None:
    other.events = events
    sample = await sample_of(other.base_url)
    assert (sample.status, said in sample.error) == (200, True)


async def test_at_a_rate_nobody_waits_for_another_and_who_is_refused_does_not_come_back() -> None:
    with serve(EchoEngine(EchoScript(hang_after_tokens=0)), max_running=2, max_queue=0) as server:
        level = Level(0, rate=400.0)
        async with open_client(server.url, 0.5) as client:  # less than the server waits before it answers 200
            await measure_rate(
                level,
                lambda question: ask(client, Target(server.url, "auto", ours=True), Asking(64), question),
                cycle([SLEEP, CARS]),
                requests=20,
                seconds=None,
                seed=1,
                done=lambda: None,
            )
    assert sorted(sample.status for sample in level.samples) == [0] * 2 + [429] * 18
    assert level.clients > 2
    assert 0.5 <= level.seconds < 1.5  # both that were let in gave up after half a second of silence


async def test_so_many_clients_ask_at_once_until_all_is_asked_or_the_time_is_over() -> None:
    with serve(EchoEngine(EchoScript(first_token_delay_s=0.1))) as server:
        level = await filled(server.url, 4, requests=10)
        assert [sample.right for sample in level.samples] == [True] * 10
        assert 3 * 0.1 <= level.seconds < sum(sample.total_s for sample in level.samples)
        level = await filled(server.url, 2, seconds=0.05)  # what runs at its end is finished
        assert ([sample.error for sample in level.samples], level.seconds >= 0.1) == (["", ""], True)


async def test_who_is_refused_waits_as_told_before_asking_again(other: Upstream) -> None:
    other.refuse(429, {"error": {"message": "Too many requests."}}, retry_after="0.1")
    level = await filled(other.base_url, 2, requests=6)
    assert {(sample.status, sample.error) for sample in level.samples} == {(429, "Too many requests.")}
    assert level.seconds >= 2 * 0.1
