from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.engines.echo import EchoEngine
from expert_router.routing.nearest import Examples
from support import (
    BOTH_QUESTION,
    CARS_QUESTION,
    EXAMPLES,
    EXPLANATION_KEYS,
    OTHER_QUESTION,
    SLEEP_QUESTION,
    UNSURE_QUESTION,
    WaitingEncoder,
    WordEncoder,
    eventually,
    serve,
    write_examples,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from support import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(EchoEngine()) as running:
        yield running


class SlowEncoder(WordEncoder):
    """Needs a hundredth of a second for a text, and counts them."""

    encoded = 0

    def encode(self, text: str) -> NDArray[np.float32]:
        time.sleep(0.01)
        self.encoded += 1
        return super().encode(text)


def explained(server: Server, query: str, **more: Any) -> dict[str, Any]:
    response = server.http.post("/v1/explain", json={"query": query, **more})
    assert response.status_code == 200
    body: dict[str, Any] = response.json()
    return body


def examples_in(folder: Path, encoder: WordEncoder) -> Examples:
    return Examples(write_examples(folder / "train.csv"), encoder, folder / "examples")


def test_an_explanation_is_whole(server: Server) -> None:
    body = explained(server, SLEEP_QUESTION)
    assert list(body) == EXPLANATION_KEYS
    assert (body["query"], body["history"], body["about"]) == (SLEEP_QUESTION, [], ["sleep"])
    assert (body["thresholds"], body["words_left_out"]) == ({"accept": 0.5, "clarify": 0.4}, 0)
    assert list(body["words"][0]) == ["text", "start", "end", "turns_back", "weights"]
    assert [word["text"] for word in body["words"]] == ["What", "is", "REM", "sleep"]
    assert max(body["words"], key=lambda word: word["weights"]["sleep"])["text"] == "sleep"
    answered = server.http.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": SLEEP_QUESTION}]}
    )
    assert body["decision"] == answered.json()["expert_router"]["decision"]


@pytest.mark.parametrize(
    ("question", "about"),
    [(BOTH_QUESTION, ["cars", "sleep"]), (OTHER_QUESTION, ["general"]), (UNSURE_QUESTION, ["cars", "sleep"])],
)
def test_the_words_are_about_whoever_the_decision_is_about(server: Server, question: str, about: list[str]) -> None:
    body = explained(server, question)
    assert sorted(body["about"]) == about
    assert all(sorted(word["weights"]) == about for word in body["words"])


def test_a_router_without_an_encoder_names_no_examples(server: Server) -> None:
    assert explained(server, SLEEP_QUESTION)["nearest"] == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "query: Field required"),
        ({"query": ""}, "query: String should have at least 1 character"),
        ({"query": " \n"}, "The question is empty."),
        ({"query": 7}, "query: Input should be a valid string"),
        ({"query": "Why?", "history": "REM"}, "history: Input should be a valid list"),
        ({"query": "Why?", "history": [7]}, "history.0: Input should be a valid string"),
        ({"query": "Why?", "nearest": -1}, "nearest: Input should be greater than or equal to 0"),
        ({"query": "Why?", "nearest": 51}, "nearest: Input should be less than or equal to 50"),
        ({"query": "\ud83d"}, "unable to parse raw data as a unicode string"),
    ],
)
def test_what_cannot_be_explained_is_a_bad_request_that_says_why(
    server: Server, body: dict[str, object], says: str
) -> None:
    headers = {"content-type": "application/json"}
    response = server.http.post("/v1/explain", content=json.dumps(body), headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert says in response.json()["error"]["message"]


def test_examples_are_read_behind_the_answers_that_say_null_until_then(tmp_path: Path) -> None:
    encoder = WaitingEncoder()
    with serve(EchoEngine(), examples=examples_in(tmp_path, encoder), warm_up=True) as server:
        assert encoder.begun.wait(5), "nobody has asked yet"
        body = explained(server, CARS_QUESTION)
        assert body["nearest"] is None
        assert body["about"] == ["cars"]
        encoder.let.release(len(EXAMPLES))
        eventually(lambda: explained(server, CARS_QUESTION)["nearest"] is not None)
        first, *others = explained(server, CARS_QUESTION, nearest=3)["nearest"]
        assert first == {"query": CARS_QUESTION, "experts": ["cars"], "cosine": pytest.approx(1, abs=1e-3)}
        assert len(others) == 2
        assert explained(server, CARS_QUESTION, nearest=0)["nearest"] == []


def test_a_server_that_loads_lazily_reads_them_once_somebody_asks(tmp_path: Path) -> None:
    encoder = WordEncoder()
    with serve(EchoEngine(), examples=examples_in(tmp_path, encoder)) as server:
        assert server.http.get("/health/ready").status_code == 200
        assert encoder.read == []
        eventually(lambda: len(explained(server, CARS_QUESTION)["nearest"] or ()) == 5)
        assert len(encoder.read) == len(EXAMPLES)


def test_a_server_that_reads_stops_when_told_to(tmp_path: Path) -> None:
    encoder = SlowEncoder()
    questions = [(f"{SLEEP_QUESTION} {n}", frozenset({"sleep"})) for n in range(5000)]
    examples = Examples(write_examples(tmp_path / "train.csv", questions), encoder, tmp_path / "examples")
    with serve(EchoEngine(), examples=examples, warm_up=True) as server:
        eventually(lambda: encoder.encoded > 0)
        server.stop()
        assert encoder.encoded < len(questions)
        assert len(list((tmp_path / "examples").glob("*.npy"))) == 1, "what was read is kept"


def test_examples_that_cannot_be_read_are_logged_and_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    examples = examples_in(tmp_path, WordEncoder())
    (tmp_path / "train.csv").write_text("a,b\n1,2\n", "utf-8")
    with caplog.at_level(logging.WARNING), serve(EchoEngine(), examples=examples, warm_up=True) as server:
        eventually(lambda: explained(server, CARS_QUESTION)["nearest"] == [])
        assert [record.message for record in caplog.records] == ["explanations name no examples"]
        assert "is not a file of labelled questions" in vars(caplog.records[0])["reason"]
