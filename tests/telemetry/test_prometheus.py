"""A real Prometheus reads a real server under a little load, and answers every query of the dashboard with data."""

from __future__ import annotations

import shutil
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import yaml  # type: ignore[import-untyped]
from monitoring import ALERTS, PANELS, PROMETHEUS, filled

from expert_router.caching.memory import MemoryStore
from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.types import AUTO
from support import CARS_QUESTION, SLEEP_QUESTION, STAGES, FixedKnowledge, eventually, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("prometheus") is None or shutil.which("promtool") is None,
        reason="needs Prometheus: apt-get install --no-install-recommends prometheus",
    ),
]


@contextmanager
def prometheus(folder: Path, server: Server) -> Iterator[httpx2.Client]:
    """With the shipped configuration, but for the server's address and how often it is asked."""
    configuration = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
    configuration["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    configuration["scrape_configs"][0]["static_configs"][0]["targets"] = [server.url.removeprefix("http://")]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration), "utf-8")
    shutil.copy(PROMETHEUS / "alerts.yml", folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        with httpx2.Client(base_url=url, timeout=10, trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        process.wait(20)


def answered(client: httpx2.Client, query: str) -> list[dict[str, Any]]:
    """The series that have a value now; none before Prometheus is ready."""
    try:
        response = client.get("/api/v1/query", params={"query": query})
    except httpx2.TransportError:
        return []
    if response.status_code == httpx2.codes.SERVICE_UNAVAILABLE:
        return []
    body = response.json()
    assert body["status"] == "success", body
    return [series for series in body["data"]["result"] if series["value"][1] != "NaN"]


def test_every_panel_shows_something_and_no_alert_fires_untimely(tmp_path: Path) -> None:
    knowledge = FixedKnowledge({"sleep": [STAGES]})
    waiting = dict.fromkeys(filled(query, "10s") for queries in PANELS.values() for query in queries)
    engine = EchoEngine(EchoScript(0.01, 0.002))
    serving = serve(engine, knowledge=knowledge, answers=MemoryStore(100_000, 60))
    with serving as server, prometheus(tmp_path, server) as client:
        names = iter(range(10**6))

        def all_answered() -> bool:
            number = next(names)
            server.post(question=f"{SLEEP_QUESTION} {number}", model=AUTO)
            server.post(question=CARS_QUESTION, model="cars")
            server.post(model="nobody")
            for query in [query for query in waiting if answered(client, query)]:
                del waiting[query]
            return not waiting

        try:
            eventually(all_answered, within_s=60)
        except AssertionError:
            pytest.fail(f"nothing to show: {list(waiting)}")
        experts = client.get("/api/v1/label/expert/values").json()["data"]
        assert {"sleep", "cars", "general"} <= set(experts)
        groups = client.get("/api/v1/rules").json()["data"]["groups"]
        rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
        assert rules.keys() == ALERTS.keys()
        assert {rule["health"] for rule in rules.values()} <= {"ok", "unknown"}
        assert not [name for name, rule in rules.items() if rule["state"] == "firing"]


def test_every_alert_fires_when_it_should() -> None:
    for arguments in (
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ):
        done = subprocess.run(
            ["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_server_tells_is_what_promtool_takes() -> None:
    with serve(EchoEngine(), knowledge=FixedKnowledge({"sleep": [STAGES]})) as server:
        server.post(model=AUTO)
        text = server.http.get("/metrics").text
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == ""
    assert done.returncode == 0
