from __future__ import annotations

import asyncio
import socket
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest
from fake_backend import SOURCES, FakeBackend, free_port, wait_until

from expert_router.api.deps import wait_s
from expert_router.errors import ConfigError
from expert_router.settings import ServingSettings
from expert_router.types import (
    Explanation,
    Message,
    NearestExample,
    Scores,
    Served,
    Sources,
    Thresholds,
    Usage,
    WordWeight,
)
from expert_router.ui.client import ChatClient, Done, Event, Failed, Routed, Section, Text

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def backend() -> Iterator[FakeBackend]:
    backend = FakeBackend()
    backend.start()
    yield backend
    backend.stop()


@pytest.fixture
def client(backend: FakeBackend) -> ChatClient:
    return ChatClient(backend.url, silence_timeout_s=1.0)


async def ask(client: ChatClient, question: str, model: str = "auto") -> list[Event]:
    return [event async for event in client.stream_chat([Message("user", question)], model)]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


async def test_the_decision_comes_first_and_the_end_carries_what_it_cost(client: ChatClient) -> None:
    events = await ask(client, "what is rem")
    routed, *_, done = events
    assert isinstance(routed, Routed)
    assert routed.decision.kind == "single"
    assert routed.experts == ("sleep",)
    assert routed.titles == {"sleep": "Sleep science"}
    assert routed.served == {"sleep": Served("fake-base", "ab12cd34" * 8)}
    assert routed.decision.scores is not None
    assert routed.decision.scores.ranked()[0] == ("sleep", 0.97)
    assert routed.decision.scores.none == 0.03
    assert text_of(events).startswith("During REM sleep")
    assert isinstance(done, Done)
    assert done.usage == Usage(40, 25)
    assert done.timings.first_token_s == 0.41
    assert done.cache == {"sleep": "hit"}
    assert not done.truncated


async def test_a_visitor_is_named_and_who_is_none_is_not(client: ChatClient, backend: FakeBackend) -> None:
    for visitor in ("", "laura"):
        async with aclosing(client.stream_chat([Message("user", "what is rem")], visitor=visitor)) as events:
            await anext(events)
    assert [request.get("user") for request in backend.requests[-2:]] == [None, "laura"]


async def test_a_person_waits_longer_than_a_program_that_says_nothing(client: ChatClient, backend: FakeBackend) -> None:
    await ask(client, "what is rem")
    preferred = wait_s([backend.preferences[-1]])
    assert preferred is not None
    assert preferred > (ServingSettings().expected_wait_s or 0)


async def test_an_answer_by_several_experts_names_each_section(client: ChatClient) -> None:
    events = await ask(client, "drowsy driving")
    assert [event.expert for event in events if isinstance(event, Section)] == ["sleep", "cars"]


async def test_what_an_expert_reads_comes_before_its_text_and_in_its_order(client: ChatClient) -> None:
    _, sources, text, *_ = await ask(client, "what is rem")
    assert isinstance(sources, Sources)
    assert isinstance(text, Text)
    assert sources.expert == "sleep"
    assert [(found.passage.title, found.passage.file, found.passage.text) for found in sources.found] == [
        (entry["title"], entry["file"], entry["text"]) for entry in SOURCES["sleep"]
    ]
    assert sources.found[0].score == 1.1


async def test_each_of_several_experts_has_sources_of_its_own(client: ChatClient) -> None:
    events = [event for event in await ask(client, "drowsy driving") if isinstance(event, Section | Sources)]
    assert [(type(event), event.expert) for event in events] == [
        (Section, "sleep"),
        (Sources, "sleep"),
        (Section, "cars"),
        (Sources, "cars"),
    ]


async def test_who_reads_nothing_has_no_sources(client: ChatClient) -> None:
    assert not any(isinstance(event, Sources) for event in await ask(client, "capital of france"))


async def test_a_forced_expert_has_no_scores(client: ChatClient, backend: FakeBackend) -> None:
    routed = (await ask(client, "what is rem", "cars"))[0]
    assert isinstance(routed, Routed)
    assert routed.decision.kind == "forced"
    assert routed.decision.scores is None
    assert backend.requests[-1]["model"] == "cars"


async def test_an_explanation_is_read_whole(client: ChatClient, backend: FakeBackend) -> None:
    explanation = await client.explain("and the eyes?", ["what is rem"])
    assert backend.explained[-1] == {"query": "and the eyes?", "history": ["what is rem"]}
    assert isinstance(explanation, Explanation)
    assert (explanation.query, explanation.history) == ("and the eyes?", ("what is rem",))
    assert (explanation.about, explanation.thresholds) == (("sleep",), Thresholds(0.5, 0.35))
    assert explanation.decision.scores == Scores({"cars": 0.04, "sleep": 0.97}, 0.03)
    assert explanation.words[1] == WordWeight("the", 4, 7, 0, {"sleep": -1.25})
    assert explanation.words[-1] == WordWeight("rem", 8, 11, 1, {"sleep": 1.5})
    assert (explanation.nearest or ())[1] == NearestExample("Who built the first car?", ("cars", "sleep"), 0.4312)


async def test_examples_that_are_still_being_read_are_told_from_none(client: ChatClient, backend: FakeBackend) -> None:
    backend.examples_read = False
    try:
        explanation = await client.explain("what is rem")
    finally:
        backend.examples_read = True
    assert isinstance(explanation, Explanation)
    assert explanation.nearest is None


@pytest.mark.parametrize(
    ("question", "message"),
    [("unexplained", "The router is away."), ("garbled", "is not this project's API")],
)
async def test_an_explanation_that_fails_is_a_sentence(client: ChatClient, question: str, message: str) -> None:
    failed = await client.explain(question)
    assert isinstance(failed, Failed)
    assert message in failed.message


async def test_the_list_of_models(client: ChatClient) -> None:
    models = await client.models()
    assert not isinstance(models, Failed)
    assert [model.name for model in models] == ["auto", "cars", "sleep", "general"]
    assert models[1].examples[0] == "Who built the first car, and when?"


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("failing", "The engine stopped."),
        ("breaking", "broke before the answer was complete"),
        ("hanging", "silent for 1 s"),
        ("garbage", "is not this project's API"),
    ],
)
async def test_what_goes_wrong_mid_stream_keeps_the_text_and_says_why(
    client: ChatClient, question: str, message: str
) -> None:
    events = await ask(client, question)
    assert text_of(events).startswith("It begins well")
    assert isinstance(events[-1], Failed)
    assert message in events[-1].message
    assert not events[-1].unreachable


async def test_a_refusal_is_the_servers_own_sentence_and_when_to_come_back(client: ChatClient) -> None:
    assert await ask(client, "overload") == [Failed("Too many questions wait. Try again in 7 s.")]


async def test_a_backend_that_is_down() -> None:
    nobody = ChatClient(f"http://127.0.0.1:{free_port()}")
    [failed] = await ask(nobody, "anyone there")
    assert isinstance(failed, Failed)
    assert failed.unreachable
    assert "cannot be reached" in failed.message
    assert await nobody.models() == await nobody.explain("anyone there") == failed


async def test_a_server_that_is_something_else(backend: FakeBackend) -> None:
    elsewhere = ChatClient(f"{backend.url}/docs")
    [failed] = await ask(elsewhere, "hello")
    assert isinstance(failed, Failed)
    assert "status 404" in failed.message


async def test_a_server_that_accepts_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        silent = ChatClient(address, connect_timeout_s=0.3, silence_timeout_s=0.3)
        [failed] = await ask(silent, "hello")
        models = await silent.models()
    assert isinstance(failed, Failed)
    assert isinstance(models, Failed)
    assert "silent for 0.3 s" in failed.message
    assert failed.unreachable
    assert models.unreachable


async def test_closing_the_stream_closes_the_connection(client: ChatClient, backend: FakeBackend) -> None:
    async with aclosing(client.stream_chat([Message("user", "a long one, left early")])) as events:
        async for event in events:
            if isinstance(event, Text):
                break
    await asyncio.to_thread(wait_until, lambda: "a long one, left early" in backend.left, "the server notices", 1.0)


@pytest.mark.parametrize("address", ["localhost:8000", "http://", "http://[::1", "ftp://example.org"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigError, match="not the address of a backend"):
        ChatClient(address)
