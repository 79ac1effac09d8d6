"""What an expert read is told with its answer: as a chunk before its text, and in the whole completion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from expert_router.engines.echo import EchoEngine, EchoScript
from support import (
    BENZ,
    BOTH_QUESTION,
    NAPS,
    OTHER_QUESTION,
    SLEEP_QUESTION,
    STAGES,
    UNSURE_QUESTION,
    FixedKnowledge,
    chat_body,
    events,
    passage,
    serve,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support import Server

SLEEP_SOURCES = [
    {
        "expert": "sleep",
        "number": 1,
        "id": "sleep-stages.md#1",
        "title": "REM sleep: what happens",
        "file": "sleep-stages.md",
        "text": "The eyes dart about under closed lids.",
        "score": 1.2,
    },
    {
        "expert": "sleep",
        "number": 2,
        "id": "habits/naps.md#1",
        "title": "Naps",
        "file": "habits/naps.md",
        "text": "A nap of twenty minutes helps for hours.",
        "score": 1.1,
    },
]
CARS_SOURCES = [
    {
        "expert": "cars",
        "number": 1,
        "id": "early-cars.md#1",
        "title": "Carl Benz",
        "file": "early-cars.md",
        "text": "Carl Benz patented his three-wheeler in January 1886.",
        "score": 1.2,
    }
]


@pytest.fixture(scope="module")
def knowledge() -> FixedKnowledge:
    return FixedKnowledge({"sleep": (STAGES, NAPS), "cars": (BENZ,)})


@pytest.fixture(scope="module")
def server(knowledge: FixedKnowledge) -> Iterator[Server]:
    with serve(EchoEngine(), knowledge=knowledge) as running:
        yield running


def whole(server: Server, question: str, model: str = "auto") -> list[Any]:
    body = chat_body(question, model=model)
    sources: list[Any] = server.http.post("/v1/chat/completions", json=body).json()["expert_router"]["sources"]
    return sources


def streamed(server: Server, question: str, model: str = "auto") -> list[dict[str, Any]]:
    """The chunks of a stream, without its end."""
    body = chat_body(question, model=model, stream=True)
    *chunks, done = events(server.http.post("/v1/chat/completions", json=body).text)
    assert done == "[DONE]"
    return chunks


def about(chunk: dict[str, Any]) -> dict[str, Any]:
    extra: dict[str, Any] = chunk.get("expert_router", {})
    return extra


@pytest.mark.parametrize("model", ["auto", "sleep"])
def test_a_whole_answer_carries_what_its_expert_read(server: Server, model: str) -> None:
    assert whole(server, SLEEP_QUESTION, model) == SLEEP_SOURCES


def test_a_stream_tells_what_is_read_in_one_chunk_before_the_text(server: Server) -> None:
    first, second, third, *_ = chunks = streamed(server, SLEEP_QUESTION)
    assert "decision" in about(first)
    assert about(second) == {"sources": SLEEP_SOURCES}
    assert second["choices"] == [{"index": 0, "delta": {}, "finish_reason": None, "logprobs": None}]
    assert third["choices"][0]["delta"]["content"] == "[Sleep"
    assert [chunk for chunk in chunks if "sources" in about(chunk)] == [second]


def test_each_section_has_its_own_sources_numbered_from_one(server: Server) -> None:
    marks = [about(chunk) for chunk in streamed(server, BOTH_QUESTION) if {"section", "sources"} & set(about(chunk))]
    assert marks == [
        {"section": "cars"},
        {"sources": CARS_SOURCES},
        {"section": "sleep"},
        {"sources": SLEEP_SOURCES},
    ]
    assert whole(server, BOTH_QUESTION) == [*CARS_SOURCES, *SLEEP_SOURCES]


@pytest.mark.parametrize("question", [OTHER_QUESTION, UNSURE_QUESTION], ids=["the base model", "nobody"])
def test_who_reads_nothing_has_no_sources(server: Server, question: str) -> None:
    assert whole(server, question) == []
    assert not any("sources" in about(chunk) for chunk in streamed(server, question))


def test_an_expert_that_finds_nothing_has_no_sources() -> None:
    with serve(EchoEngine(), knowledge=FixedKnowledge({"cars": (BENZ,)})) as server:
        assert whole(server, SLEEP_QUESTION) == []
        assert not any("sources" in about(chunk) for chunk in streamed(server, SLEEP_QUESTION))


def test_a_follow_up_is_looked_up_with_the_turns_before_it(server: Server, knowledge: FixedKnowledge) -> None:
    turns = [("user", SLEEP_QUESTION), ("assistant", "It is a stage [1]."), ("user", "How long is it?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert server.post(messages=messages).status_code == 200
    assert knowledge.asked[-1] == ("sleep", "How long is it?", (SLEEP_QUESTION,))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("question", [SLEEP_QUESTION, BOTH_QUESTION], ids=["one expert", "several"])
def test_a_prompt_that_the_engine_refuses_keeps_its_own_status(
    knowledge: FixedKnowledge, question: str, stream: bool
) -> None:
    """Sources come before the engine is asked: they must not be taken for an answer that began well."""
    with serve(EchoEngine(EchoScript(context_length=4)), knowledge=knowledge) as server:
        body = chat_body(question, model="auto", stream=stream)
        response = server.http.post("/v1/chat/completions", json=body)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"


def test_sources_are_whole_passages_where_the_expert_read_an_excerpt() -> None:
    beds = passage("Beds", "beds.md", "Feathers were a luxury. Springs came from coils. Straw drew the fleas.")
    excerpts = {"Beds": "Springs came from coils.", STAGES.title: "The eyes dart about."}
    with serve(EchoEngine(), knowledge=FixedKnowledge({"sleep": (STAGES, beds)}, excerpts=excerpts)) as server:
        body = server.http.post("/v1/chat/completions", json=chat_body(SLEEP_QUESTION, model="sleep")).json()
    read = body["choices"][0]["message"]["content"]  # the echo repeats what it was asked
    assert STAGES.text in read
    assert "[2] Beds\nSprings came from coils.\n" in read
    first, second = body["expert_router"]["sources"]
    assert first == SLEEP_SOURCES[0]
    assert second["text"] == beds.text
    assert first.keys() == second.keys()


def test_the_specifications_endpoint_stays_as_it_is(server: Server) -> None:
    body = server.http.post("/query", json={"query": SLEEP_QUESTION}).json()
    assert list(body) == ["query", "classification", "response", "scores"]
