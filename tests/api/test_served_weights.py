"""Every answer says which weights it is from: the base model, and the hash of the adapter if there is one.

The engine speaks to a second server, which has a model for the adapter and one for the base, and says which was asked.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.engines.echo import EchoEngine
from expert_router.engines.openai_http import OpenAIHTTPEngine, served_model_names
from expert_router.types import Adapter, Expert
from support import (
    BOTH_QUESTION,
    CARS,
    CARS_QUESTION,
    OTHER_QUESTION,
    SLEEP,
    SLEEP_QUESTION,
    UNSURE_QUESTION,
    chat_body,
    events,
    serve,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx2

    from support import Server

HASH = "0123456789abcdef" * 4
ADAPTER = Adapter(Path("experts/sleep/adapters/base"), HASH)
TUNED = {"sleep": replace(SLEEP, adapters={"base": ADAPTER}), "cars": CARS}
SLEEP_SERVED = {"base": "base", "adapter": HASH}
BARE = {"base": "base", "adapter": None}
STREAM = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@contextmanager
def model_server(*names: str) -> Iterator[Server]:
    """A server of models that answer with their own name."""
    models = {name: Expert(name, name, "", "") for name in names}
    with serve(EchoEngine(), experts=models) as running:
        yield running


@contextmanager
def in_front_of(models: Server, experts: dict[str, Expert] | None = None) -> Iterator[Server]:
    engine = OpenAIHTTPEngine(f"{models.url}/v1", None, served_model_names("base"))
    with serve(engine, experts=experts or TUNED) as running:
        yield running


@pytest.fixture(scope="module")
def models() -> Iterator[Server]:
    with model_server("base", f"sleep@{HASH[:12]}") as running:
        yield running


@pytest.fixture(scope="module")
def server(models: Server) -> Iterator[Server]:
    with in_front_of(models) as running:
        yield running


def post(server: Server, question: str, *, stream: bool, model: str = "auto") -> httpx2.Response:
    return server.http.post("/v1/chat/completions", json=chat_body(question, model=model, stream=stream))


def read(response: httpx2.Response, *, stream: bool) -> tuple[dict[str, Any], str]:
    """What is said about the answer at its beginning, and its text."""
    assert response.status_code == 200
    if not stream:
        body = response.json()
        return body["expert_router"], body["choices"][0]["message"]["content"]
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    return chunks[0]["expert_router"], text


@STREAM
@pytest.mark.parametrize("model", ["auto", "sleep"])
def test_an_answer_of_an_adapter_carries_its_whole_hash(server: Server, stream: bool, model: str) -> None:
    response = post(server, SLEEP_QUESTION, stream=stream, model=model)
    about, text = read(response, stream=stream)
    assert about["served"] == {"sleep": SLEEP_SERVED}
    assert response.headers["x-expert-router-adapters"] == f"sleep@{HASH}"
    assert text.startswith(f"[sleep@{HASH[:12]}] You asked:")  # and it is that model which was asked


@STREAM
@pytest.mark.parametrize(("question", "name"), [(CARS_QUESTION, "cars"), (OTHER_QUESTION, "general")])
def test_who_has_no_adapter_is_said_to_be_the_base_itself(
    server: Server, stream: bool, question: str, name: str
) -> None:
    response = post(server, question, stream=stream)
    about, text = read(response, stream=stream)
    assert about["served"] == {name: BARE}
    assert response.headers["x-expert-router-adapters"] == f"{name}@none"
    assert text.startswith("[base] You asked:")


@STREAM
def test_when_several_answer_each_has_its_own(server: Server, stream: bool) -> None:
    response = post(server, BOTH_QUESTION, stream=stream)
    about, text = read(response, stream=stream)
    assert about["served"] == {"cars": BARE, "sleep": SLEEP_SERVED}
    assert response.headers["x-expert-router-adapters"] == f"cars@none,sleep@{HASH}"
    assert text.index("[base]") < text.index(f"[sleep@{HASH[:12]}]")


@STREAM
def test_when_nobody_answers_nothing_is_served(server: Server, stream: bool) -> None:
    response = post(server, UNSURE_QUESTION, stream=stream)
    about, _ = read(response, stream=stream)
    assert about["decision"]["kind"] == "clarify"
    assert about["served"] == {}
    assert response.headers["x-expert-router-adapters"] == ""


def test_a_stream_says_it_in_its_first_event_alone(server: Server) -> None:
    first, *others, _ = events(post(server, BOTH_QUESTION, stream=True).text)
    assert set(first["expert_router"]["served"]) == {"cars", "sleep"}
    assert not any("served" in chunk.get("expert_router", {}) for chunk in others)


@STREAM
def test_an_expert_without_an_adapter_for_this_base_is_503_and_the_base_is_not_asked(stream: bool) -> None:
    stray = {**TUNED, "sleep": replace(SLEEP, adapters={"other": ADAPTER})}
    with model_server("base", f"sleep@{HASH[:12]}") as models, in_front_of(models, stray) as server:
        response = post(server, SLEEP_QUESTION, stream=stream)
        assert response.status_code == 503
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("not_ready_error", "not_ready")
        assert "none for the base model base" in error["message"]
        assert models.counts() == {}
        about, _ = read(post(server, CARS_QUESTION, stream=stream), stream=stream)  # the others answer on
        assert about["served"] == {"cars": BARE}


@STREAM
def test_a_model_server_with_another_adapter_is_an_error_and_never_the_bases_answer(stream: bool) -> None:
    with model_server("base", "sleep@ffffffffffff") as models, in_front_of(models) as server:
        response = post(server, SLEEP_QUESTION, stream=stream)
        assert response.status_code == 502
        assert f"it has no model 'sleep@{HASH[:12]}'" in response.json()["error"]["message"]
        assert models.counts() == {}


def test_the_echo_engine_says_that_it_is_no_model() -> None:
    with serve(EchoEngine()) as server:
        response = server.post()
        assert response.json()["expert_router"]["served"] == {"sleep": {"base": "echo", "adapter": None}}
        assert response.headers["x-expert-router-adapters"] == "sleep@none"
