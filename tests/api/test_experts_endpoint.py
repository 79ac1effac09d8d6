"""Experts over HTTP: anybody may read who there is, the admin key changes it, and answers that run are finished."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.engines.echo import EchoEngine
from support import SLEEP_QUESTION, events, live_system, make_home, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx2

    from support import Server

KEY = "a-key-of-sixteen-characters"
ADMIN = {"authorization": f"Bearer {KEY}"}
EXAMPLES = ["When do I prune roses?", "Why do my roses wilt?", "Which roses climb?"]
GARDENING = {"name": "gardening", "examples": EXAMPLES}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("checkout"))


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    return tmp_path / "catalogue"


@pytest.fixture
def server(home: Path, catalogue: Path) -> Iterator[Server]:
    dispatcher, live = live_system(home, catalogue)
    with serve(dispatcher.engine, dispatcher=dispatcher, live=live, admin_key=KEY) as running:
        yield running


def add(server: Server, **changes: Any) -> httpx2.Response:
    return server.http.post("/v1/experts", json={**GARDENING, **changes}, headers=ADMIN)


def names(server: Server) -> list[str]:
    return [expert["name"] for expert in server.http.get("/v1/experts").json()["experts"]]


def error_of(response: httpx2.Response) -> tuple[int, str, str | None]:
    """Status, code and parameter of an error in OpenAI's shape."""
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return response.status_code, error["code"], error["param"]


# Reading


def test_anybody_may_read_who_can_answer(server: Server) -> None:
    listed = server.http.get("/v1/experts").json()
    assert listed["version"] == 0
    assert [expert["name"] for expert in listed["experts"]] == ["cars", "sleep"]
    (sleep,) = (expert for expert in listed["experts"] if expert["name"] == "sleep")
    assert sleep.keys() == {"name", "title", "description", "examples", "reads", "adapters"}
    assert (sleep["title"], sleep["reads"], sleep["adapters"]) == ("Sleep science", True, {})
    assert server.http.get("/v1/experts/sleep").json() == sleep


@pytest.mark.parametrize("name", ["nobody", "general", "auto", "..%2Fsleep"])
def test_who_is_no_expert_is_not_found(server: Server, name: str) -> None:
    assert server.http.get(f"/v1/experts/{name}").status_code == 404
    if "%" not in name:
        response = server.http.get(f"/v1/experts/{name}")
        assert error_of(response) == (404, "model_not_found", "name")
        assert response.json()["error"]["message"] == f"There is no expert {name!r}. Known: cars, sleep."


# Who may change


CHANGES = [
    ("POST", "/v1/experts", GARDENING),
    ("DELETE", "/v1/experts/sleep", None),
    ("POST", "/v1/experts/rollback", {}),
]


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
@pytest.mark.parametrize(
    "sent", [None, "", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer", "Bearer é", f"Basic {KEY}"]
)
def test_without_the_key_nothing_changes(
    server: Server, method: str, path: str, body: dict[str, Any] | None, sent: str | None
) -> None:
    headers = {} if sent is None else {"authorization": sent.encode()}
    response = server.http.request(method, path, json=body, headers=headers)
    assert error_of(response) == (401, "unauthorized", None)
    assert KEY not in response.text
    if method == "POST":  # nor does it say what is wrong with the body
        assert error_of(server.http.request(method, path, json={"name": 5}, headers=headers))[0] == 401
    assert names(server) == ["cars", "sleep"]


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
def test_a_server_without_a_key_is_closed_and_says_how_to_open_it(
    home: Path, catalogue: Path, method: str, path: str, body: dict[str, Any] | None
) -> None:
    dispatcher, live = live_system(home, catalogue)
    with serve(dispatcher.engine, dispatcher=dispatcher, live=live) as closed:
        response = closed.http.request(method, path, json=body, headers=ADMIN)
        assert error_of(response) == (403, "admin_closed", None)
        assert "EXPERT_ROUTER_SERVER__ADMIN_KEY" in response.json()["error"]["message"]
        assert names(closed) == ["cars", "sleep"]


def test_a_server_whose_experts_cannot_change_is_closed_too() -> None:
    with serve(EchoEngine(), admin_key=KEY) as fixed:
        assert error_of(fixed.http.post("/v1/experts", json=GARDENING, headers=ADMIN))[:2] == (403, "admin_closed")


# Changes


def test_an_expert_is_added_asked_removed_and_brought_back(server: Server) -> None:
    response = add(server, title="Gardening", description="Growing things.")
    added = response.json()
    assert response.status_code == 201
    assert added.keys() == {"version", "change", "added", "hidden", "routed_s", "warnings"}
    assert (added["version"], added["change"], added["added"], added["hidden"]) == (
        1,
        "add gardening",
        ["gardening"],
        [],
    )
    assert 0 < added["routed_s"] < 30
    assert added["warnings"][0].startswith("Taught with 3 examples")
    one = server.http.get("/v1/experts/gardening").json()
    assert (one["title"], one["description"], one["examples"]) == ("Gardening", "Growing things.", EXAMPLES)

    forced = server.post(model="gardening").json()
    assert forced["choices"][0]["message"]["content"] == f"[Gardening] You asked: {SLEEP_QUESTION}"
    routed = server.http.post("/query", json={"query": EXAMPLES[0]}).json()
    assert routed["classification"] == "gardening"
    assert "gardening" in [model["id"] for model in server.http.get("/v1/models").json()["data"]]
    assert "gardening" in server.http.get("/health/ready").json()["experts"]
    assert server.http.post("/v1/explain", json={"query": EXAMPLES[0]}).json()["decision"]["experts"] == ["gardening"]

    removed = server.http.delete("/v1/experts/gardening", headers=ADMIN)
    assert (removed.status_code, removed.json()["version"], removed.json()["added"]) == (200, 2, [])
    assert error_of(server.post(model="gardening"))[:2] == (404, "model_not_found")
    assert error_of(server.http.delete("/v1/experts/gardening", headers=ADMIN)) == (404, "model_not_found", "name")

    back = server.http.post("/v1/experts/rollback", json={}, headers=ADMIN).json()
    assert (back["version"], back["added"]) == (1, ["gardening"])
    shipped = server.http.post("/v1/experts/rollback", json={"version": 0}, headers=ADMIN).json()
    assert (shipped["version"], shipped["change"], names(server)) == (0, "as shipped", ["cars", "sleep"])


def test_a_shipped_expert_may_be_removed(server: Server) -> None:
    removed = server.http.delete("/v1/experts/sleep", headers=ADMIN).json()
    assert (removed["hidden"], names(server)) == (["sleep"], ["cars"])
    assert server.http.post("/query", json={"query": SLEEP_QUESTION}).json()["classification"] == "general"


def test_an_expert_is_replaced_when_the_request_says_so(server: Server) -> None:
    add(server, title="Old")
    assert error_of(add(server, title="New")) == (400, "invalid_request", "name")
    assert add(server, title="New", replace=True).status_code == 201
    assert server.http.get("/v1/experts/gardening").json()["title"] == "New"


def test_examples_with_answers_and_passages_to_read_are_kept(server: Server, catalogue: Path) -> None:
    examples = [{"question": "Roses, when?", "answer": 'In "winter".', "key": "winter"}, "Why?"]
    knowledge = [{"title": "Apple\ntrees", "text": "Prune them in winter."}, {"title": "Roses", "text": "Water them."}]
    assert add(server, examples=examples, knowledge=knowledge).status_code == 201
    folder = catalogue / "versions" / "1" / "experts" / "gardening"
    assert (folder / "examples.csv").read_text("utf-8").splitlines() == [
        "question,answer,key",
        '"Roses, when?","In ""winter"".",winter',
        "Why?,,",
    ]
    text = "## Apple trees\n\nPrune them in winter.\n\n## Roses\n\nWater them.\n"
    assert (folder / "knowledge" / "knowledge.md").read_text("utf-8") == text
    assert server.http.get("/v1/experts/gardening").json()["reads"] is True


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"name": "Big Garden"}, "name"),
        ({"name": "sleep"}, "name"),
        ({"name": "none"}, "name"),
        ({"name": 5}, "name"),
        ({"name": None}, "name"),
        ({"examples": []}, "examples"),
        ({"examples": [" "]}, "examples"),
        ({"examples": "Why?"}, "examples"),
        ({"examples": [{"question": ""}]}, "examples"),
        ({"examples": [{"question": "Why?", "label": "x"}]}, "examples"),
        ({"examples": ["w" * 4001]}, "examples"),
        ({"knowledge": [{"title": "T"}]}, "knowledge"),
        ({"knowledge": [{"title": "T", "text": " "}]}, "knowledge"),
        ({"knowledge": [{"title": "T", "text": "x", "file": "../../up"}]}, "knowledge"),
        ({"replace": "yes"}, "replace"),
        ({"instruction": "misspelt"}, "instruction"),
    ],
)
def test_what_cannot_be_is_refused_and_names_the_field(server: Server, changes: dict[str, Any], param: str) -> None:
    assert error_of(add(server, **changes)) == (400, "invalid_request", param)
    assert names(server) == ["cars", "sleep"]
    assert server.http.get("/v1/experts").json()["version"] == 0


def test_half_a_character_is_refused(server: Server) -> None:
    body = json.dumps({**GARDENING, "title": "\ud83c"})
    headers = {**ADMIN, "content-type": "application/json"}
    assert error_of(server.http.post("/v1/experts", content=body, headers=headers))[:2] == (400, "invalid_request")


@pytest.mark.parametrize("version", [9, -1, "1", 1.5])
def test_a_version_that_is_none_is_refused(server: Server, version: object) -> None:
    response = server.http.post("/v1/experts/rollback", json={"version": version}, headers=ADMIN)
    assert error_of(response) == (400, "invalid_request", "version")


def test_before_the_first_change_there_is_nothing_to_go_back_to(server: Server) -> None:
    response = server.http.post("/v1/experts/rollback", json={}, headers=ADMIN)
    assert error_of(response)[:2] == (400, "invalid_request")
    assert error_of(server.http.post("/v1/experts/rollback", json={"to": 0}, headers=ADMIN))[2] == "to"


# While others are answered


def test_an_answer_that_runs_while_its_expert_is_removed_is_finished_whole(server: Server) -> None:
    add(server, title="Gardening")
    question = "word " * 25_000
    body = {
        "model": "gardening",
        "stream": True,
        "max_tokens": 100_000,
        "messages": [{"role": "user", "content": question}],
    }
    with server.http.stream("POST", "/v1/chat/completions", json=body, timeout=60) as response:
        pieces = response.iter_text()
        said = next(pieces)
        assert server.http.delete("/v1/experts/gardening", headers=ADMIN).status_code == 200
        assert error_of(server.post(model="gardening"))[0] == 404
        assert server.counts()["running"] == 1
        said += "".join(pieces)
    *chunks, last, done = events(said)
    assert (done, last["choices"][0]["finish_reason"]) == ("[DONE]", "stop")
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text.startswith("[Gardening] You asked: word")
    assert text.split()[-25_000:] == ["word"] * 25_000


def test_no_request_fails_while_experts_come_and_go(server: Server) -> None:
    done = threading.Event()
    failed: list[str] = []

    def ask() -> None:
        while not done.is_set():
            response = server.post(model="auto")
            if response.status_code != 200 or "[Sleep science]" not in response.text:
                failed.append(response.text)

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        for _ in range(5):
            assert add(server).status_code == 201
            assert server.http.delete("/v1/experts/gardening", headers=ADMIN).status_code == 200
    finally:
        done.set()
        for asker in askers:
            asker.join()
    assert failed == []
    assert server.http.get("/v1/experts").json()["version"] == 10
