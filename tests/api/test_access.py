"""Who may ask, over HTTP: nothing without a key, and what the key's id stands for once there is one."""

from __future__ import annotations

import base64
import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import openai
import pytest

from expert_router.caching.memory import MemoryStore
from expert_router.engines.echo import EchoEngine
from expert_router.keys import changing, new_key, rotated
from support import chat_body, eventually, live_system, make_home, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta
    from pathlib import Path

    import httpx2

    from support import Server

OPERATIONS = [
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/sleep"),
    ("GET", "/v1/experts"),
    ("POST", "/v1/experts"),
    ("DELETE", "/v1/experts/sleep"),
    ("POST", "/v1/explain"),
    ("POST", "/v1/feedback"),
    ("POST", "/query"),
    ("GET", "/v1/no/such/path"),
]
PAGES = [("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/chat/"), ("GET", "/")]
OPEN = [("GET", "/health/live"), ("GET", "/health/ready")]


class Keys:
    """A file of keys; ``add`` gives the secret."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with changing(path):
            pass

    def add(self, name: str, **about: Any) -> str:
        key, secret = new_key(name, **about)
        with changing(self.path) as keys:
            keys[key.id] = key
        return secret

    def rotate(self, secret: str, grace: timedelta) -> str:
        with changing(self.path) as keys:
            key, new = rotated(keys[identifier(secret)], grace)
            keys[key.id] = key
        return new

    def revoke(self, secret: str) -> None:
        with changing(self.path) as keys:
            del keys[identifier(secret)]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys.jsonl")


@pytest.fixture
def server(keys: Keys) -> Iterator[Server]:
    with serve(EchoEngine(), keys=keys.path) as running:
        yield running


def identifier(secret: str) -> str:
    return secret.split("-")[1]


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def basic(secret: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"anybody:{secret}".encode()).decode()}


def error_of(response: httpx2.Response) -> tuple[int, str]:
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return response.status_code, error["code"]


@pytest.mark.parametrize(("method", "path"), [*OPERATIONS, *PAGES])
def test_everything_needs_a_key(server: Server, keys: Keys, method: str, path: str) -> None:
    secret = keys.add("laura")
    for sent in ({}, bearer("wrong"), bearer(f"{secret}x"), {"authorization": secret}, basic("wrong")):
        response = server.http.request(method, path, headers=sent)
        assert error_of(response) == (401, "unauthorized")
        wanted = "Basic" if (method, path) in PAGES else "Bearer"
        assert response.headers["www-authenticate"].split(" ")[0] == wanted
        assert secret not in response.text
    assert server.http.request(method, path, headers=bearer(secret)).status_code != 401
    assert server.counts().get("running") is None


@pytest.mark.parametrize(("method", "path"), OPEN)
def test_health_needs_none(server: Server, method: str, path: str) -> None:
    assert server.http.request(method, path).status_code == 200


@pytest.mark.parametrize("open_metrics", [False, True])
def test_metrics_need_one_unless_they_are_open(keys: Keys, open_metrics: bool) -> None:
    secret = keys.add("scraper")
    with serve(EchoEngine(), keys=keys.path, open_metrics=open_metrics) as server:
        assert server.http.get("/metrics").status_code == (200 if open_metrics else 401)
        assert server.http.get("/metrics", headers=bearer(secret)).status_code == 200
        assert server.http.get("/v1/models").status_code == 401


@pytest.mark.parametrize(("method", "path"), [*OPERATIONS, *PAGES])
def test_a_password_is_a_key_for_what_a_browser_shows_and_never_for_the_api(
    server: Server, keys: Keys, method: str, path: str
) -> None:
    """Browsers send one wherever they are led to; so another site could ask the API in its visitor's name."""
    sent = basic(keys.add("laura"))
    refused = server.http.request(method, path, headers=sent).status_code == 401
    assert refused == ((method, path) in OPERATIONS)


@pytest.mark.parametrize(("site", "status"), [("cross-site", 401), ("same-site", 401), ("same-origin", 404)])
def test_another_site_makes_a_browser_do_nothing_with_the_password(
    server: Server, keys: Keys, site: str, status: int
) -> None:
    sent = {**basic(keys.add("laura")), "sec-fetch-site": site}
    assert server.http.post("/chat/gradio_api/queue/join", headers=sent).status_code == status
    assert server.http.get("/docs", headers=sent).status_code == 200  # but may link to what is shown


def test_the_documentation_asks_for_a_key_where_one_is_needed(server: Server, keys: Keys) -> None:
    schema = server.http.get("/openapi.json", headers=basic(keys.add("laura"))).json()
    assert schema["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    for path, item in schema["paths"].items():
        for operation in item.values():
            assert operation.get("security") == (None if path in {path for _, path in OPEN} else [{"key": []}])
    with serve(EchoEngine()) as open_to_all:
        assert "securitySchemes" not in open_to_all.http.get("/openapi.json").json()["components"]


def test_what_is_wrong_with_a_request_is_not_said_before_the_key_is_right(server: Server) -> None:
    assert error_of(server.http.post("/v1/chat/completions", json={"messages": 5})) == (401, "unauthorized")
    assert error_of(server.http.post("/v1/chat/completions", content=b"x" * 2_000_000)) == (401, "unauthorized")


def test_keys_come_go_expire_and_turn_while_the_server_runs(server: Server, keys: Keys) -> None:
    from datetime import timedelta

    def asks(secret: str) -> int:
        return server.http.post("/v1/chat/completions", json=chat_body(), headers=bearer(secret)).status_code

    laura, late = keys.add("laura"), keys.add("late", expires=datetime(2020, 1, 1, tzinfo=UTC))
    assert (asks(laura), asks(late)) == (200, 401)
    turned = keys.rotate(laura, timedelta(hours=1))
    assert (asks(laura), asks(turned)) == (200, 200)
    again = keys.rotate(laura, timedelta())
    assert (asks(laura), asks(turned), asks(again)) == (401, 401, 200)
    keys.path.write_text("no keys at all")
    assert asks(again) == 200
    with pytest.raises(Exception, match="not a key"):
        keys.revoke(again)
    keys.path.write_text("")
    assert asks(again) == 401


def test_openais_client_understands_the_refusal(server: Server, keys: Keys) -> None:
    secret = keys.add("laura")
    messages: Any = [{"role": "user", "content": "Hi"}]
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="not known"),
    ):
        client.chat.completions.create(model="sleep", messages=messages)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0) as client:
        assert client.chat.completions.create(model="sleep", messages=messages).choices[0].message.content


def test_only_an_admins_key_changes_the_experts(tmp_path: Path, keys: Keys) -> None:
    dispatcher, live = live_system(make_home(tmp_path / "home"), tmp_path / "catalogue")
    user = keys.add("user")
    with serve(dispatcher.engine, dispatcher=dispatcher, live=live, keys=keys.path) as server:

        def remove(secret: str) -> httpx2.Response:
            return server.http.delete("/v1/experts/cars", headers=bearer(secret))

        assert error_of(remove(user)) == (403, "admin_closed")
        admin = keys.add("admin", scope="admin")
        response = remove(user)
        assert error_of(response) == (403, "insufficient_scope")
        assert response.json()["error"]["type"] == "permission_error"
        assert remove(admin).status_code == 200
        listed = server.http.get("/v1/experts", headers=bearer(user)).json()["experts"]
        assert [expert["name"] for expert in listed] == ["sleep"]


def test_the_admin_key_of_the_settings_opens_everything(keys: Keys) -> None:
    with serve(EchoEngine(), keys=keys.path, admin_key="a-key-of-sixteen-characters") as server:
        sent = bearer("a-key-of-sixteen-characters")
        assert server.http.get("/v1/models", headers=sent).status_code == 200
        assert server.http.get("/v1/models").status_code == 401


def test_who_asks_is_the_keys_id_in_the_log_and_its_secret_is_in_none(
    server: Server, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    secret = keys.add("laura")

    def entries() -> dict[str, str | None]:
        """Who asked, by path; each is logged when its answer is over, which the client does not wait for."""
        logged = [record.__dict__ for record in caplog.records if record.getMessage() == "request"]
        return {entry["path"]: entry.get("key") for entry in logged}

    with caplog.at_level(logging.INFO, "expert_router"):
        server.http.post("/v1/chat/completions", json=chat_body(), headers=bearer(secret))
        server.http.get("/health/live")
        server.http.get("/v1/models", headers=bearer("er-nobody"))
        eventually(lambda: len(entries()) == 3)
    assert entries() == {"/v1/chat/completions": identifier(secret), "/health/live": None, "/v1/models": None}
    assert secret not in json.dumps([record.__dict__ for record in caplog.records], default=str)


def test_each_keys_answers_are_its_own_also_after_a_rotation(keys: Keys) -> None:
    from datetime import timedelta

    def came_from(secret: str) -> str:
        answer = server.http.post("/v1/chat/completions", json=chat_body(), headers=bearer(secret)).json()
        return answer["expert_router"]["cache"]["sleep"]

    laura, hugo = keys.add("laura"), keys.add("hugo")
    with serve(EchoEngine(), keys=keys.path, answers=MemoryStore(10**6, 60), per_client=True) as server:
        assert [came_from(laura), came_from(laura), came_from(hugo)] == ["miss", "hit", "miss"]
        assert came_from(keys.rotate(laura, timedelta())) == "hit"
