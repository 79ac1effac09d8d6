from __future__ import annotations

import asyncio
import threading
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.errors import (
    ContextLengthError,
    EngineError,
    InvalidRequestError,
    OverloadedError,
    UnknownModelError,
)
from expert_router.knowledge.grounding import RULES
from expert_router.routing.policy import Policy
from expert_router.serving.admission import Admission
from expert_router.serving.deployment import Deployment, Library
from expert_router.serving.dispatcher import Dispatcher
from expert_router.types import (
    AUTO,
    GENERAL,
    Accepted,
    ChatRequest,
    Chunk,
    Done,
    Found,
    GenerationParams,
    Message,
    Routed,
    Scores,
    Section,
    Sources,
    Text,
    Usage,
)
from support import (
    BENZ,
    BOTH_QUESTION,
    CARS,
    CARS_QUESTION,
    NAPS,
    OTHER_QUESTION,
    SLEEP,
    SLEEP_QUESTION,
    STAGES,
    TITLES,
    UNSURE_QUESTION,
    FixedKnowledge,
    FixedRouter,
    build,
    eventually,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from expert_router.types import Event, Expert

SLEEP_ONLY = Scores({"sleep": 0.9, "cars": 0.1}, 0.05)
BOTH = Scores({"sleep": 0.7, "cars": 0.8}, 0.05)
UNSURE = Scores({"sleep": 0.45, "cars": 0.42}, 0.4)
NONE = Scores({"sleep": 0.1, "cars": 0.2}, 0.9)


class NotingEngine(EchoEngine):
    """The echo engine, which also keeps what it was asked and takes each prompt with an empty chunk first."""

    def __init__(self, script: EchoScript | None = None) -> None:
        super().__init__(script or EchoScript())
        self.asked: list[tuple[str, list[Message], GenerationParams]] = []
        self.closed = False

    async def stream(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        self.asked.append((expert.name, list(messages), params))
        async with aclosing(super().stream(expert, messages, params)) as chunks:
            yield Chunk("")
            async for chunk in chunks:
                yield chunk

    async def close(self) -> None:
        self.closed = True
        await super().close()


def ask(question: str, model: str = AUTO, **params: Any) -> ChatRequest:
    return ChatRequest((Message("user", question),), model, GenerationParams(**params))


async def events_of(dispatcher: Dispatcher, request: ChatRequest) -> list[Event]:
    return [event async for event in dispatcher.stream(request)]


async def read_into(received: list[Event], dispatcher: Dispatcher, request: ChatRequest) -> None:
    async for event in dispatcher.stream(request):
        received.append(event)  # noqa: PERF401 - what came before an error stays


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events)


def counts(dispatcher: Dispatcher) -> dict[str, object]:
    status = dispatcher.engine.status()
    return {name: status[name] for name in ("running", "finished", "cancelled", "failed") if status[name]}


async def test_who_answers_comes_first_then_the_text_then_the_end() -> None:
    first, accepted, *texts, last = await events_of(build(EchoEngine()), ask(SLEEP_QUESTION))
    assert isinstance(first, Routed)
    assert accepted == Accepted(queue_s=0.0)
    assert (first.decision.kind, first.decision.experts, first.experts) == ("single", ("sleep",), ("sleep",))
    assert first.decision.router == "lexical"
    assert all(isinstance(event, Text) for event in texts)
    assert text_of(texts) == "[Sleep science] You asked: What is REM sleep?"
    assert isinstance(last, Done)
    assert (last.finish_reason, last.usage) == ("stop", Usage(prompt_tokens=7, completion_tokens=8))


async def test_each_question_goes_to_its_expert() -> None:
    dispatcher = build(EchoEngine())
    for question, title in ((SLEEP_QUESTION, SLEEP.title), (CARS_QUESTION, CARS.title)):
        assert (await dispatcher.ask(ask(question))).text.startswith(f"[{title}]")


async def test_several_experts_answer_in_the_order_of_their_scores_each_under_its_heading() -> None:
    engine = NotingEngine()
    events = await events_of(build(engine, FixedRouter(BOTH)), ask("Why?"))
    first, last = events[0], events[-1]
    assert isinstance(first, Routed)
    assert (first.decision.kind, first.experts) == ("several", ("cars", "sleep"))
    sections = [event for event in events if isinstance(event, Section)]
    assert sections == [Section("cars", "**Car history**\n\n"), Section("sleep", "\n\n**Sleep science**\n\n")]
    assert text_of(events) == (
        "**Car history**\n\n[Car history] You asked: Why?\n\n**Sleep science**\n\n[Sleep science] You asked: Why?"
    )
    assert [name for name, _, _ in engine.asked] == ["cars", "sleep"]
    told = engine.asked[0][1][0].content
    assert "only the part about Car history" in told
    assert "leave Sleep science out" in told
    assert isinstance(last, Done)
    prompt_words = sum(len(message.content.split()) for _, messages, _ in engine.asked for message in messages)
    assert last.usage == Usage(prompt_words, 2 * len(["[Sleep", "science]", "You", "asked:", "Why?"]))


async def test_one_expert_alone_has_no_heading() -> None:
    events = await events_of(build(EchoEngine(), FixedRouter(SLEEP_ONLY)), ask("Why?"))
    assert not any(isinstance(event, Section) for event in events)


async def test_a_section_cut_short_makes_the_whole_answer_cut_short() -> None:
    engine = EchoEngine(by_expert={"cars": EchoScript(context_length=40)})
    dispatcher = build(engine, FixedRouter(BOTH))
    answer = await dispatcher.ask(ask("word " * 15))
    assert answer.finish_reason == "length"  # the first section, by its context; the second ended by itself
    assert counts(dispatcher) == {"finished": 2}


async def test_a_question_for_no_expert_goes_to_the_bare_base_model() -> None:
    engine = NotingEngine()
    answer = await build(engine).ask(ask(OTHER_QUESTION))
    assert (answer.decision.kind, answer.decision.experts, answer.answered_by) == ("general", (), (GENERAL,))
    assert engine.asked[0][:2] == (GENERAL, [Message("user", OTHER_QUESTION)])


@pytest.mark.parametrize(
    ("scores", "kind", "said"),
    [
        (NONE, "refused", "None of my experts covers this question."),
        (UNSURE, "clarify", "is it about Sleep science or"),
    ],
)
async def test_when_nobody_answers_that_is_said_without_engine_or_slot(scores: Scores, kind: str, said: str) -> None:
    engine = NotingEngine()
    dispatcher = build(engine, FixedRouter(scores), on_general="refuse", max_running=1, max_queue=1)
    async with dispatcher.admission.slot():  # even when all are taken
        answer = await dispatcher.ask(ask("Why?"))
    assert dispatcher.admission.waiting == 0
    assert (answer.decision.kind, answer.answered_by) == (kind, ())
    assert said in answer.text
    assert (answer.finish_reason, answer.usage, answer.timings.first_token_s) == ("stop", Usage(0, 0), None)
    assert engine.asked == []


@pytest.mark.parametrize("name", ["sleep", "cars", GENERAL])
async def test_a_named_expert_answers_and_the_router_is_not_asked(name: str) -> None:
    engine, router = NotingEngine(), FixedRouter(SLEEP_ONLY)
    answer = await build(engine, router, on_general="refuse").ask(ask("Why?", model=name))
    assert (answer.decision.kind, answer.decision.experts, answer.decision.scores) == ("forced", (name,), None)
    assert answer.answered_by == (name,)
    assert [asked for asked, _, _ in engine.asked] == [name]
    assert router.asked == []


async def test_the_router_reads_the_last_question_and_the_users_earlier_turns() -> None:
    router = FixedRouter(SLEEP_ONLY)
    turns = (
        Message("system", "Be brief."), Message("user", "first"), Message("assistant", "ignored"),
        Message("user", "second"), Message("assistant", "ignored"), Message("user", "third"),
    )  # fmt: skip
    await build(EchoEngine(), router).ask(ChatRequest(turns))
    assert router.asked == [("third", ("first", "second"))]


async def test_the_parameters_reach_the_engine_as_they_are() -> None:
    engine = NotingEngine()
    params = GenerationParams(max_tokens=7, temperature=0.5, top_p=0.9, seed=3, stop=("END",))
    await build(engine).ask(ChatRequest((Message("user", SLEEP_QUESTION),), params=params))
    assert [asked for _, _, asked in engine.asked] == [params]


async def test_that_the_engine_took_the_prompt_is_told_before_the_text() -> None:
    kinds = [type(event) for event in await events_of(build(NotingEngine()), ask("Why?", model="sleep"))]
    assert kinds[:3] == [Routed, Accepted, Text]
    assert kinds.count(Accepted) == 1


async def test_the_whole_answer_is_the_stream_joined() -> None:
    dispatcher = build(EchoEngine())
    for question in (SLEEP_QUESTION, BOTH_QUESTION, OTHER_QUESTION):
        answer = await dispatcher.ask(ask(question, max_tokens=3))
        events = await events_of(dispatcher, ask(question, max_tokens=3))
        first, last = events[0], events[-1]
        assert isinstance(first, Routed)
        assert isinstance(last, Done)
        assert (answer.query, answer.text) == (question, text_of(events))
        assert (answer.decision, answer.answered_by) == (first.decision, first.experts)
        assert (answer.finish_reason, answer.usage) == (last.finish_reason, last.usage) == ("length", last.usage)


async def test_the_wait_for_a_slot_and_the_search_are_timed() -> None:
    class SlowKnowledge(FixedKnowledge):
        def search(self, *asked: Any) -> list[Found]:
            time.sleep(0.02)  # what is measured
            return super().search(*asked)

    slow = SlowKnowledge({"sleep": (STAGES, NAPS), "cars": (BENZ,)})
    engine = EchoEngine(EchoScript(first_token_delay_s=0.05))
    dispatcher = build(engine, knowledge=slow, max_running=1)
    answers = await asyncio.gather(*(dispatcher.ask(ask(question)) for question in (SLEEP_QUESTION, CARS_QUESTION)))
    assert min(answer.timings.retrieve_s or 0 for answer in answers) >= 0.02
    at_once, waited = sorted(answer.timings.queue_s or 0 for answer in answers)
    assert at_once == 0
    assert waited >= 0.04
    asked_back = await dispatcher.ask(ask(UNSURE_QUESTION))
    assert (asked_back.timings.queue_s, asked_back.timings.retrieve_s) == (None, None)


async def test_timings_count_from_the_requests_arrival() -> None:
    engine = EchoEngine(EchoScript(first_token_delay_s=0.03, token_delay_s=0.01))
    timings = (await build(engine).ask(ask(SLEEP_QUESTION))).timings
    assert timings.route_s is not None
    assert timings.first_token_s is not None
    assert timings.total_s is not None
    assert 0 < timings.route_s <= timings.first_token_s - 0.03
    assert timings.total_s >= timings.first_token_s + 7 * 0.01


@pytest.mark.parametrize(
    ("messages", "said"),
    [((), "must end with a message from the user"),
     ((Message("system", "x"),), "must end with a message from the user"),
     ((Message("user", "x"), Message("assistant", "y")), "must end with a message from the user"),
     ((Message("user", " \n\t"),), "The question is empty")],
)  # fmt: skip
async def test_a_conversation_without_a_question_is_refused(messages: tuple[Message, ...], said: str) -> None:
    engine = NotingEngine()
    with pytest.raises(InvalidRequestError, match=said) as caught:
        await build(engine).ask(ChatRequest(messages))
    assert caught.value.param == "messages"
    assert engine.asked == []


async def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownModelError, match="Known: auto, sleep, cars, general") as caught:
        await build(EchoEngine()).ask(ask("Why?", model="nobody"))
    assert caught.value.param == "model"


@pytest.mark.parametrize("stop_at", [Routed, Section, Text])
async def test_an_early_close_reaches_the_engine_and_frees_the_slot(stop_at: type[Event]) -> None:
    dispatcher = build(EchoEngine(EchoScript(hang_after_tokens=1)), FixedRouter(BOTH))
    async with aclosing(dispatcher.stream(ask("Why?"))) as events:
        async for event in events:
            if isinstance(event, stop_at):
                break
    assert counts(dispatcher) == ({} if stop_at is Routed else {"cancelled": 2})
    assert dispatcher.admission.running == 0


@pytest.mark.parametrize("words", [0, 2])
async def test_cancelling_who_waits_for_the_answer_reaches_the_engine(words: int) -> None:
    dispatcher = build(EchoEngine(EchoScript(hang_after_tokens=words)))
    asking = asyncio.create_task(dispatcher.ask(ask(SLEEP_QUESTION)))
    await asyncio.to_thread(eventually, lambda: counts(dispatcher) == {"running": 1})
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert counts(dispatcher) == {"cancelled": 1}
    assert dispatcher.admission.running == 0


async def test_a_part_that_fails_midway_says_so_and_leaves_the_other_whole() -> None:
    dispatcher = build(EchoEngine(by_expert={"cars": EchoScript(fail_after_tokens=1)}), FixedRouter(BOTH))
    answer = await dispatcher.ask(ask("Why?"))
    failed, whole = answer.parts
    assert answer.text == (
        "**Car history**\n\n[Car\n\n"
        "This part could not be answered: The echo engine failed after 1 words, as its script says.\n\n"
        "**Sleep science**\n\n[Sleep science] You asked: Why?"
    )
    assert (failed.expert, failed.error) == ("cars", "The echo engine failed after 1 words, as its script says.")
    assert answer.text[failed.start : failed.end].startswith("[Car\n\nThis part could not")
    assert (whole.expert, whole.error) == ("sleep", None)
    assert answer.text[whole.start : whole.end] == "[Sleep science] You asked: Why?"
    assert (counts(dispatcher), dispatcher.admission.running) == ({"finished": 1, "failed": 1}, 0)


async def test_where_every_part_fails_nothing_is_answered() -> None:
    dispatcher = build(EchoEngine(EchoScript(fail_before=True)), FixedRouter(BOTH))
    received: list[Event] = []
    with pytest.raises(EngineError):
        await read_into(received, dispatcher, ask("Why?"))
    assert [type(event) for event in received] == [Routed]
    assert (counts(dispatcher), dispatcher.admission.running) == ({"failed": 2}, 0)


class WordRouter(FixedRouter):
    """An expert is needed where its word stands."""

    def score(self, query: str, history: Sequence[str] = ()) -> Scores:  # noqa: ARG002 - a router's
        return Scores({name: 0.9 if word in query else 0.1 for name, word in (("sleep", "REM"), ("cars", "car"))}, 0.05)


async def test_each_expert_is_asked_its_own_part_and_the_parts_stand_in_the_order_of_the_question() -> None:
    engine = NotingEngine()
    before = (Message("user", "Hello"), Message("assistant", "Hi."))
    question = Message("user", "Who built the first car? Also, what is REM sleep?")
    answer = await build(engine, WordRouter(BOTH)).ask(ChatRequest((*before, question)))
    assert [(part.expert, part.question) for part in answer.parts] == [
        ("cars", "Who built the first car?"),
        ("sleep", "what is REM sleep?"),
    ]
    asked = {name: [message.content for message in messages] for name, messages, _ in engine.asked}
    for part in answer.parts:
        assert asked[part.expert][1:] == ["Hello", "Hi.", part.question]
        assert answer.text[part.start : part.end].endswith(f"You asked: {part.question}")


async def test_a_question_that_cannot_be_split_goes_whole_to_each_and_each_is_told_its_field() -> None:
    engine = NotingEngine()
    answer = await build(engine, FixedRouter(BOTH)).ask(ask("Why?"))
    assert {part.question for part in answer.parts} == {"Why?"}
    for (_, messages, _), other in zip(engine.asked, (SLEEP, CARS), strict=True):
        assert f"leave {other.title} out" in messages[0].content


async def test_the_parts_are_answered_at_the_same_time() -> None:
    """Each of the two waits for the other to have begun."""
    both_begun = asyncio.Barrier(2)

    class Meeting(EchoEngine):
        async def stream(
            self, expert: Expert, messages: Sequence[Message], params: GenerationParams
        ) -> AsyncGenerator[Chunk]:
            await both_begun.wait()
            async with aclosing(super().stream(expert, messages, params)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async with asyncio.timeout(5):
        answer = await build(Meeting(EchoScript()), FixedRouter(BOTH)).ask(ask("Why?"))
    assert [part.error for part in answer.parts] == [None, None]


async def test_one_expert_alone_is_one_part_that_is_the_whole_answer() -> None:
    answer = await build(EchoEngine()).ask(ask(SLEEP_QUESTION))
    (part,) = answer.parts
    assert (part.expert, part.question, part.start, part.end) == ("sleep", SLEEP_QUESTION, 0, len(answer.text))
    assert (await build(EchoEngine(), FixedRouter(UNSURE)).ask(ask("Why?"))).parts == ()


async def test_a_prompt_beyond_the_context_is_refused_after_the_routing_and_frees_the_slot() -> None:
    dispatcher = build(EchoEngine(EchoScript(context_length=3)))
    received: list[Event] = []
    with pytest.raises(ContextLengthError):
        await read_into(received, dispatcher, ask(SLEEP_QUESTION))
    assert [type(event) for event in received] == [Routed]
    assert dispatcher.admission.running == 0


async def test_beyond_the_door_it_is_overloaded_and_no_engine_is_asked() -> None:
    engine = NotingEngine()
    dispatcher = build(engine, max_running=1, max_queue=0)
    async with dispatcher.admission.slot():
        with pytest.raises(OverloadedError):
            await dispatcher.ask(ask(SLEEP_QUESTION))
    assert engine.asked == []
    await dispatcher.ask(ask(SLEEP_QUESTION))


async def test_no_more_answers_run_at_once_than_may_and_all_are_given() -> None:
    engine = EchoEngine(EchoScript(token_delay_s=0.001, max_slots=3))
    dispatcher = build(engine, max_running=3, max_queue=50)
    answers = await asyncio.gather(*(dispatcher.ask(ask(f"question {n}", model="sleep")) for n in range(30)))
    assert [answer.text for answer in answers] == [f"[Sleep science] You asked: question {n}" for n in range(30)]
    assert counts(dispatcher) == {"finished": 30}


async def test_routing_alone_asks_no_engine() -> None:
    engine, router = NotingEngine(), FixedRouter(BOTH)
    decision = await build(engine, router).deployed.decide("Why?", ["before"])
    assert (decision.kind, decision.experts, decision.router) == ("several", ("cars", "sleep"), "fixed")
    assert router.asked == [("Why?", ("before",))]
    assert engine.asked == []


async def test_closing_closes_the_engine_and_the_router() -> None:
    engine, router = NotingEngine(), FixedRouter(NONE)
    await build(engine, router).close()
    assert engine.closed
    assert router.closed


# What experts read


SLEEP_FOUND = (Found(STAGES, 1.2), Found(NAPS, 1.1))
CARS_FOUND = (Found(BENZ, 1.2),)


def library() -> FixedKnowledge:
    return FixedKnowledge({"sleep": (STAGES, NAPS), "cars": (BENZ,)})


async def test_what_an_expert_reads_is_told_before_its_text_and_is_in_its_prompt() -> None:
    engine = NotingEngine()
    events = await events_of(build(engine, knowledge=library()), ask(SLEEP_QUESTION))
    assert [type(event) for event in events[:4]] == [Routed, Sources, Accepted, Text]
    assert [event for event in events if isinstance(event, Sources)] == [Sources("sleep", SLEEP_FOUND)]
    ((_, (system, user), _),) = engine.asked
    assert system.content == f"{SLEEP.instructions}\n\n{RULES}"
    assert user.content == (
        f"Question: {SLEEP_QUESTION}\n\n"
        f"[1] {STAGES.title}\n{STAGES.text}\n\n[2] {NAPS.title}\n{NAPS.text}\n\n"
        f"Question: {SLEEP_QUESTION}"
    )


async def test_sources_add_nothing_to_the_text() -> None:
    events = await events_of(build(NotingEngine(), knowledge=library()), ask(SLEEP_QUESTION))
    assert text_of(events) == text_of([event for event in events if isinstance(event, Text)]) != ""


async def test_each_of_several_experts_reads_its_own_after_its_heading() -> None:
    engine = NotingEngine()
    events = await events_of(build(engine, FixedRouter(BOTH), knowledge=library()), ask("Why?"))
    marks = [event for event in events if isinstance(event, Section | Sources)]
    assert marks == [
        Section("cars", "**Car history**\n\n"),
        Sources("cars", CARS_FOUND),
        Section("sleep", "\n\n**Sleep science**\n\n"),
        Sources("sleep", SLEEP_FOUND),
    ]
    cars, sleep = (messages[-1].content for _, messages, _ in engine.asked)
    assert BENZ.text in cars
    assert BENZ.text not in sleep
    assert NAPS.text in sleep
    assert NAPS.text not in cars


async def test_the_whole_answer_carries_what_each_expert_read() -> None:
    answer = await build(EchoEngine(), FixedRouter(BOTH), knowledge=library()).ask(ask("Why?"))
    assert answer.sources == (Sources("cars", CARS_FOUND), Sources("sleep", SLEEP_FOUND))
    assert (await build(EchoEngine()).ask(ask(SLEEP_QUESTION))).sources == ()


async def test_an_expert_that_finds_nothing_is_asked_as_it_would_be_without_a_library() -> None:
    reading, plain = NotingEngine(), NotingEngine()
    events = await events_of(build(reading, knowledge=FixedKnowledge({})), ask(SLEEP_QUESTION))
    await build(plain).ask(ask(SLEEP_QUESTION))
    assert not any(isinstance(event, Sources) for event in events)
    assert reading.asked == plain.asked


@pytest.mark.parametrize(("scores", "on_general"), [(NONE, "answer"), (NONE, "refuse"), (UNSURE, "answer")])
async def test_who_is_no_expert_reads_nothing(scores: Scores, on_general: Any) -> None:
    knowledge = library()
    dispatcher = build(EchoEngine(), FixedRouter(scores), knowledge=knowledge, on_general=on_general)
    assert not any(isinstance(event, Sources) for event in await events_of(dispatcher, ask("Why?")))
    assert knowledge.asked == []


async def test_an_expert_without_knowledge_of_its_own_is_not_looked_up() -> None:
    knowledge, router = library(), FixedRouter(BOTH)
    experts = {"sleep": replace(SLEEP, knowledge=Path("sleep")), "cars": CARS}
    policy, admission = Policy(router.thresholds, TITLES), Admission(8, 8, 5.0)
    dispatcher = Dispatcher(Deployment(experts, router, policy, Library(knowledge, 3)), EchoEngine(), admission)
    answer = await dispatcher.ask(ask("Why?"))
    assert answer.answered_by == ("cars", "sleep")
    assert answer.sources == (Sources("sleep", SLEEP_FOUND),)
    assert [expert for expert, _, _ in knowledge.asked] == ["sleep"]


async def test_a_named_expert_reads_too() -> None:
    answer = await build(EchoEngine(), knowledge=library()).ask(ask("Why?", model="cars"))
    assert answer.sources == (Sources("cars", CARS_FOUND),)


async def test_no_more_passages_are_read_than_the_library_says() -> None:
    answer = await build(EchoEngine(), knowledge=FixedKnowledge({"sleep": [NAPS] * 9})).ask(ask("Why?", model="sleep"))
    assert [len(sources.found) for sources in answer.sources] == [3]


async def test_what_matches_far_worse_than_the_best_passages_is_not_read() -> None:
    knowledge, router = FixedKnowledge({"sleep": [NAPS, STAGES, NAPS, STAGES, NAPS]}), FixedRouter(NONE)
    experts = {"sleep": replace(SLEEP, knowledge=Path("sleep")), "cars": CARS}
    library = Library(knowledge, 5, margin=0.25)  # a passage scores 0.1 less than the one before it
    deployed = Deployment(experts, router, Policy(router.thresholds, TITLES), library)
    engine = NotingEngine()
    answer = await Dispatcher(deployed, engine, Admission(8, 8, 5.0)).ask(ask("Why?", model="sleep"))
    assert [hit.passage for hit in answer.sources[0].found] == [NAPS, STAGES, NAPS]
    ((_, messages, _),) = engine.asked
    assert ("[3]" in messages[-1].content, "[4]" in messages[-1].content) == (True, False)


async def test_the_last_question_is_looked_up_with_the_users_earlier_turns() -> None:
    knowledge = library()
    turns = (
        Message("system", "Be brief."), Message("user", "first"), Message("assistant", "ignored [1]"),
        Message("user", "second"), Message("assistant", "ignored"), Message("user", "third"),
    )  # fmt: skip
    await build(EchoEngine(), knowledge=knowledge).ask(ChatRequest(turns, model="sleep"))
    assert knowledge.asked == [("sleep", "third", ("first", "second"))]


class SlowKnowledge(FixedKnowledge):
    """Searches until it is let go on."""

    def __init__(self) -> None:
        super().__init__({"sleep": (STAGES, NAPS)})
        self.searching, self.go_on = threading.Event(), threading.Event()

    def search(self, *args: Any, **kwargs: Any) -> list[Found]:
        self.searching.set()
        assert self.go_on.wait(5)
        return super().search(*args, **kwargs)


async def test_a_slow_search_holds_up_nobody_else() -> None:
    knowledge = SlowKnowledge()
    dispatcher = build(EchoEngine(), knowledge=knowledge)
    asking = asyncio.create_task(dispatcher.ask(ask("Why?", model="sleep")))
    await asyncio.to_thread(knowledge.searching.wait, 5)
    assert (await dispatcher.ask(ask(OTHER_QUESTION))).answered_by == (GENERAL,)
    assert not asking.done()
    knowledge.go_on.set()
    assert (await asking).sources == (Sources("sleep", SLEEP_FOUND),)


class BrokenKnowledge(FixedKnowledge):
    def search(self, *_: Any, **__: Any) -> list[Found]:
        raise OSError("the disk is gone")


async def test_a_failing_search_frees_the_slot_and_asks_no_engine() -> None:
    engine = NotingEngine()
    dispatcher = build(engine, knowledge=BrokenKnowledge({}))
    with pytest.raises(OSError, match="the disk is gone"):
        await dispatcher.ask(ask("Why?", model="sleep"))
    assert (engine.asked, dispatcher.admission.running) == ([], 0)


async def test_an_early_close_at_the_sources_asks_no_engine_and_frees_the_slot() -> None:
    engine = NotingEngine()
    dispatcher = build(engine, knowledge=library())
    async with aclosing(dispatcher.stream(ask("Why?", model="sleep"))) as events:
        async for event in events:
            if isinstance(event, Sources):
                break
    assert (engine.asked, dispatcher.admission.running) == ([], 0)
