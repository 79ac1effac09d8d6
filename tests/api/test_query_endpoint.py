from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from expert_router.engines.echo import EchoEngine
from support import (
    BOTH_QUESTION,
    CARS_QUESTION,
    OTHER_QUESTION,
    SLEEP_QUESTION,
    UNSURE_QUESTION,
    serve,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(EchoEngine(), max_tokens=5) as running:
        yield running


@pytest.mark.parametrize(
    ("question", "classification", "response"),
    [
        (SLEEP_QUESTION, "sleep", "[Sleep science] You asked: What"),
        (CARS_QUESTION, "cars", "[Car history] You asked: Who"),
        (OTHER_QUESTION, "general", "[General (no expert)] You asked:"),
        (UNSURE_QUESTION, "clarify", "I am not sure who should answer this: is it about Sleep science or Car history?"),
        (BOTH_QUESTION, "cars,sleep",
         "**Car history**\n\n[Car history] You asked: Which\n\n**Sleep science**\n\n[Sleep science] You asked: Which"),
    ],
)  # fmt: skip
def test_a_question_comes_back_with_who_answered_and_the_scores(
    server: Server, question: str, classification: str, response: str
) -> None:
    answer = server.http.post("/query", json={"query": question})
    assert answer.status_code == 200
    body = answer.json()
    assert list(body) == ["query", "classification", "response", "scores"]
    assert body["query"] == question
    assert body["classification"] == classification
    assert body["response"] == response  # as long as the server's own limit allows
    assert body["scores"].keys() == {"sleep", "cars", "none"}
    assert all(0 <= score <= 1 for score in body["scores"].values())


def test_a_refused_question_is_classified_as_refused() -> None:
    with serve(EchoEngine(), on_general="refuse") as server:
        body = server.http.post("/query", json={"query": OTHER_QUESTION}).json()
        assert body["classification"] == "refused"
        assert body["response"].startswith("None of my experts covers this question.")


@pytest.mark.parametrize(
    "body", [{}, {"query": None}, {"query": 7}, {"query": ""}, {"query": " \n"}, {"question": "Hi"}]
)
def test_without_a_question_it_is_a_bad_request(server: Server, body: dict[str, object]) -> None:
    response = server.http.post("/query", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
