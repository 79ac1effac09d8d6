"""The system from Python: plain calls from any thread, streams in any event loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

import expert_router
from expert_router import Answer, Decision, ExpertRouter, ExpertRouterError, Message
from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.errors import ConfigError, EngineError, InvalidRequestError, OverloadedError, UnknownModelError
from expert_router.routing.nearest import Examples
from expert_router.types import Done, Event, Routed, Text
from support import (
    BOTH_QUESTION,
    CARS_QUESTION,
    OTHER_QUESTION,
    SLEEP_QUESTION,
    WordEncoder,
    build,
    eventually,
    make_home,
    until,
    write_examples,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from expert_router.types import CacheUse

ANSWER = f"[Sleep science] You asked: {SLEEP_QUESTION}"


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(autouse=True)
def _home(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPERT_ROUTER_HOME", str(checkout))


@pytest.fixture
def system() -> Iterator[ExpertRouter]:
    with expert_router.open("echo") as system:
        yield system


def scripted(script: EchoScript, **dispatching: int) -> ExpertRouter:
    """A system whose engine behaves as its script says."""
    return ExpertRouter(build(EchoEngine(script), **dispatching), default_max_tokens=256)  # type: ignore[arg-type]


def counts(system: ExpertRouter) -> dict[str, object]:
    return {
        name: count for name, count in system._dispatcher.engine.status().items() if isinstance(count, int) and count
    }


async def events_of(system: ExpertRouter, query: str, **how: object) -> list[Event]:
    return [event async for event in system.stream(query, **how)]  # type: ignore[arg-type]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events)


def test_the_experts_are_named(system: ExpertRouter) -> None:
    assert system.experts == ["cars", "sleep", "general"]


# Plain calls


def test_an_answer_that_was_given_before_says_so_and_a_new_one_may_be_asked_for(system: ExpertRouter) -> None:
    wishes: list[CacheUse] = ["use", "use", "renew", "bypass"]
    results = [system.ask("How long do we sleep?", model="sleep", cache=wish).cache["sleep"] for wish in wishes]
    assert results == ["miss", "hit", "miss", "off"]


def test_a_question_is_routed_without_an_answer(system: ExpertRouter) -> None:
    decision = system.route(SLEEP_QUESTION)
    assert isinstance(decision, Decision)
    assert (decision.kind, decision.experts, decision.router) == ("single", ("sleep",), "lexical")
    assert system.route("Why?", history=[CARS_QUESTION]).kind
    assert counts(system) == {}


def test_a_question_is_explained_without_an_answer(system: ExpertRouter) -> None:
    explanation = system.explain(CARS_QUESTION)
    assert explanation.decision == system.route(CARS_QUESTION)
    assert max(explanation.words, key=lambda word: word.weights["cars"]).text == "car"
    assert (explanation.nearest, counts(system)) == ((), {})
    with pytest.raises(InvalidRequestError, match="The question is empty"):
        system.explain(" ")


def test_what_explanations_compare_with_is_read_when_it_is_first_asked_for(tmp_path: Path) -> None:
    encoder = WordEncoder()
    examples = Examples(write_examples(tmp_path / "train.csv"), encoder, tmp_path)
    with ExpertRouter(build(EchoEngine(), examples=examples), default_max_tokens=8) as system:
        assert system.explain(CARS_QUESTION, nearest=0).nearest == ()
        assert encoder.read == []
        (nearest,) = system.explain(CARS_QUESTION, nearest=1).nearest or ()
        assert (nearest.query, nearest.experts) == (CARS_QUESTION, ("cars",))


def test_a_question_is_answered_whole(system: ExpertRouter) -> None:
    answer = system.ask(SLEEP_QUESTION)
    assert isinstance(answer, Answer)
    assert (answer.query, answer.text, answer.answered_by) == (SLEEP_QUESTION, ANSWER, ("sleep",))
    assert (answer.finish_reason, answer.decision.kind) == ("stop", "single")
    assert answer.usage.completion_tokens == len(ANSWER.split())
    assert answer.timings.total_s is not None


def test_the_answer_may_be_a_named_experts_and_cut_short(system: ExpertRouter) -> None:
    answer = system.ask(SLEEP_QUESTION, model="cars", max_tokens=2)
    assert (answer.text, answer.finish_reason, answer.decision.kind) == ("[Car history]", "length", "forced")


def test_a_conversation_may_be_asked(system: ExpertRouter) -> None:
    turns = [Message("user", "Hello"), Message("assistant", "Hi"), Message("user", OTHER_QUESTION)]
    answer = system.ask(turns)
    assert (answer.query, answer.answered_by) == (OTHER_QUESTION, ("general",))


def test_several_experts_answer_one_question(system: ExpertRouter) -> None:
    assert sorted(system.ask(BOTH_QUESTION).answered_by) == ["cars", "sleep"]


def test_many_threads_may_ask_at_once(system: ExpertRouter) -> None:
    questions = [f"What is dream number {n}?" for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda question: system.ask(question, model="sleep").text, questions))
    assert answers == [f"[Sleep science] You asked: {question}" for question in questions]


async def test_plain_calls_work_where_an_event_loop_runs_as_in_a_notebook(system: ExpertRouter) -> None:
    assert system.route(SLEEP_QUESTION).experts == ("sleep",)
    assert system.ask(SLEEP_QUESTION).text == ANSWER


def test_the_settings_bound_an_answer_unless_the_caller_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPERT_ROUTER_SERVING__MAX_TOKENS", "2")
    with expert_router.open("echo") as system:
        assert system.ask(SLEEP_QUESTION).text == "[Sleep science]"
        assert system.ask(SLEEP_QUESTION, max_tokens=50).text == ANSWER


# Streams


async def test_a_stream_says_who_answers_then_the_text_then_how_it_ended(system: ExpertRouter) -> None:
    events = await events_of(system, SLEEP_QUESTION)
    assert isinstance(events[0], Routed)
    assert events[0].experts == ("sleep",)
    assert isinstance(events[-1], Done)
    assert len([event for event in events if isinstance(event, Text)]) > 3
    assert text_of(events) == ANSWER == system.ask(SLEEP_QUESTION).text


async def test_streams_run_side_by_side(system: ExpertRouter) -> None:
    questions = [f"What is dream number {n}?" for n in range(20)]
    streams = await asyncio.gather(*(events_of(system, question, model="sleep") for question in questions))
    assert [text_of(events) for events in streams] == [f"[Sleep science] You asked: {q}" for q in questions]


def test_streams_run_in_several_event_loops(system: ExpertRouter) -> None:
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(lambda: asyncio.run(events_of(system, SLEEP_QUESTION))) for _ in range(8)]
    assert [text_of(run.result()) for run in runs] == [ANSWER] * 8


async def test_text_comes_while_the_engine_still_works() -> None:
    with scripted(EchoScript(hang_after_tokens=2)) as system:
        async with aclosing(system.stream(SLEEP_QUESTION)) as stream:
            assert [(await anext(stream)).text for _ in range(4)] == ["", "", "[Sleep", " science]"]
            assert counts(system) == {"running": 1}


async def test_leaving_a_stream_early_stops_the_engine() -> None:
    with scripted(EchoScript(token_delay_s=0.01)) as system:
        async with aclosing(system.stream("word " * 1000, model="sleep")) as stream:
            async for event in stream:
                if isinstance(event, Text):
                    break
        await until(lambda: counts(system) == {"cancelled": 1})
        assert system.ask("Still there?", model="sleep").text.endswith("Still there?")


async def test_cancelling_who_reads_a_stream_stops_the_engine() -> None:
    with scripted(EchoScript(hang_after_tokens=0)) as system:
        reading = asyncio.create_task(events_of(system, SLEEP_QUESTION))
        await until(lambda: counts(system) == {"running": 1})
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await until(lambda: counts(system) == {"cancelled": 1})


def test_an_event_loop_that_ends_in_the_middle_of_a_stream_stops_the_engine() -> None:
    async def read_a_little(system: ExpertRouter) -> None:
        stream = system.stream("word " * 1000, model="sleep")
        for _ in range(3):
            await anext(stream)

    with scripted(EchoScript(token_delay_s=0.01)) as system:
        asyncio.run(read_a_little(system))
        eventually(lambda: counts(system) == {"cancelled": 1})


# Errors


@pytest.mark.parametrize("question", ["", "   "])
def test_an_empty_question_is_refused(system: ExpertRouter, question: str) -> None:
    with pytest.raises(InvalidRequestError, match="The question is empty"):
        system.ask(question)


@pytest.mark.parametrize("how", [{"max_tokens": 0}, {"temperature": -0.1}, {"temperature": 2.1}])
async def test_a_wish_that_cannot_be_is_refused(system: ExpertRouter, how: dict[str, float]) -> None:
    with pytest.raises(InvalidRequestError, match="max_tokens must be at least 1, temperature between 0 and 2"):
        system.ask(SLEEP_QUESTION, **how)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="must be"):
        await events_of(system, SLEEP_QUESTION, **how)


async def test_an_unknown_model_is_refused_with_the_known_ones(system: ExpertRouter) -> None:
    with pytest.raises(UnknownModelError, match="Known: auto, cars, sleep, general"):
        system.ask(SLEEP_QUESTION, model="astronomy")
    with pytest.raises(UnknownModelError, match="'astronomy'"):
        await events_of(system, SLEEP_QUESTION, model="astronomy")


async def test_an_engine_that_fails_midway_fails_the_stream_after_what_was_said() -> None:
    with scripted(EchoScript(fail_after_tokens=2)) as system:
        stream = system.stream(SLEEP_QUESTION)
        assert [(await anext(stream)).text for _ in range(4)] == ["", "", "[Sleep", " science]"]
        with pytest.raises(EngineError, match="after 2 words"):
            await anext(stream)
        with pytest.raises(ExpertRouterError, match="after 2 words"):
            system.ask(SLEEP_QUESTION)


async def test_beyond_what_may_wait_it_is_overloaded() -> None:
    with scripted(EchoScript(hang_after_tokens=0), max_running=1, max_queue=0) as system:
        async with aclosing(system.stream(SLEEP_QUESTION)) as stream:
            await anext(stream)
            first = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
            await until(lambda: counts(system) == {"running": 1})
            with pytest.raises(OverloadedError):
                system.ask(SLEEP_QUESTION)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)


def test_a_configuration_that_cannot_be_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="Profiles there: default, echo, mistral-7b, tiny"):
        expert_router.open("nonsense")
    with pytest.raises(ConfigError, match="There is no router named 'tarot'"):
        expert_router.open("echo", router="tarot")


# The end


def test_closing_twice_is_fine_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    system = scripted(EchoScript())
    assert system.ask(SLEEP_QUESTION).text
    system.close()
    system.close()
    assert {thread for thread in set(threading.enumerate()) - before if not thread.daemon} == set()


async def test_a_closed_system_says_so() -> None:
    with scripted(EchoScript()) as system:
        pass
    for call in (system.route, system.explain, system.ask):
        with pytest.raises(EngineError, match=r"This ExpertRouter is closed. Open another: expert_router.open\(\)"):
            call(SLEEP_QUESTION)
    with pytest.raises(EngineError, match="is closed"):
        await events_of(system, SLEEP_QUESTION)


def test_a_with_block_closes_also_when_it_fails() -> None:
    with pytest.raises(ZeroDivisionError), scripted(EchoScript()) as system:
        _ = 1 / 0
    with pytest.raises(EngineError, match="is closed"):
        system.ask(SLEEP_QUESTION)


async def test_closing_ends_a_stream_that_waits_for_more() -> None:
    system = scripted(EchoScript(hang_after_tokens=1))
    reading = asyncio.create_task(events_of(system, SLEEP_QUESTION))
    await until(lambda: counts(system) == {"running": 1})
    await asyncio.to_thread(system.close)
    with pytest.raises(EngineError, match="closed"):
        async with asyncio.timeout(5):
            await reading
