from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from expert_router.decision_log import DecisionStore, read_decisions
from expert_router.engines.echo import EchoEngine
from expert_router.serving.decision_writer import DecisionWriter
from expert_router.types import Feedback
from support import SLEEP_QUESTION, events, eventually, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support import Server


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "decisions.sqlite"


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[Server]:
    store = DecisionStore(path, retention_days=30, max_rows=1000)
    with serve(EchoEngine(), log=DecisionWriter(store)) as running:
        yield running


@pytest.fixture
def decision(server: Server) -> str:
    identifier: str = server.post().json()["expert_router"]["decision"]["id"]
    return identifier


def kept(path: Path, decision: str) -> Feedback | None:
    """Decisions are written beside the answers, so that one may come a moment later."""
    found: list[Feedback | None] = []

    def is_there() -> bool:
        found[:] = [each.feedback for each in read_decisions(path) if each.id == decision]
        return bool(found)

    eventually(is_there)
    return found[0]


def test_every_answer_names_its_decision_whole_streamed_and_by_query(server: Server) -> None:
    whole = server.post(model="auto").json()["expert_router"]["decision"]["id"]
    first, *later = events(server.post(model="auto", stream=True).text)
    streamed = first["expert_router"]["decision"]["id"]
    assert all("decision" not in (frame.get("expert_router") or {}) for frame in later[:-1])
    answer = server.http.post("/query", json={"query": SLEEP_QUESTION}).json()
    assert list(answer) == ["query", "classification", "response", "scores", "expert_router"]
    assert len({whole, streamed, answer["expert_router"]["decision"]["id"]}) == 3
    assert server.http.get("/health/ready").json()["decision_log"].keys() == {"written", "dropped", "failed"}


@pytest.mark.parametrize(
    ("said", "feedback"),
    [
        ({"rating": "up"}, Feedback("up")),
        ({"rating": "down", "expert": "cars"}, Feedback("down", ("cars",))),
        ({"expert": ["sleep", "cars", "sleep"]}, Feedback(None, ("sleep", "cars"))),
        ({"expert": "general"}, Feedback(None, ())),
        ({"expert": ["general"], "comment": "not kept"}, Feedback(None, ())),
    ],
)
def test_feedback_is_kept_with_its_decision(
    server: Server, path: Path, decision: str, said: dict[str, Any], feedback: Feedback
) -> None:
    response = server.http.post("/v1/feedback", json={"decision": decision, **said})
    assert (response.status_code, response.content) == (204, b"")
    assert kept(path, decision) == feedback
    assert b"not kept" not in path.read_bytes()


def test_the_last_feedback_counts(server: Server, path: Path, decision: str) -> None:
    for said in ({"rating": "down", "expert": "cars"}, {"rating": "up"}):
        assert server.http.post("/v1/feedback", json={"decision": decision, **said}).status_code == 204
    assert kept(path, decision) == Feedback("up")


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ({}, (422, "invalid_feedback", "Send a rating (up or down), an expert, or both.")),
        ({"expert": []}, (422, "invalid_feedback", "expert takes one or more of sleep, cars, or general alone.")),
        ({"expert": "birds"}, (422, "invalid_feedback", "expert takes one or more of sleep, cars, or general alone.")),
        ({"expert": ["cars", "general"]}, (422, "invalid_feedback", "expert takes one or more of")),
        ({"rating": "sideways"}, (400, "invalid_request", "rating: Input should be 'up' or 'down'")),
        ({"rating": True}, (400, "invalid_request", "rating: ")),
        ({"rating": "up", "decision": "nope"}, (404, "decision_not_found", "The decision log has no decision 'nope'")),
        ({"rating": "up", "decision": ""}, (400, "invalid_request", "decision: ")),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_and_says_why(
    server: Server, path: Path, decision: str, said: dict[str, Any], refused: tuple[int, str, str]
) -> None:
    status, code, message = refused
    response = server.http.post("/v1/feedback", json={"decision": decision, **said})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert error["message"].startswith(message)
    assert kept(path, decision) is None


def test_where_nothing_is_kept_no_id_is_given_and_feedback_says_how_to_keep_it() -> None:
    with serve(EchoEngine()) as server:
        assert "id" not in server.post().json()["expert_router"]["decision"]
        assert "expert_router" not in server.http.post("/query", json={"query": SLEEP_QUESTION}).json()
        assert server.http.get("/health/ready").json()["decision_log"] is None
        response = server.http.post("/v1/feedback", json={"decision": "a", "rating": "up"})
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (409, "decision_log_off")
        assert "EXPERT_ROUTER_DECISION_LOG__PATH=" in error["message"]
