"""Gateway and engines on a Ray cluster of three nodes: answers, errors, deaths, updates, and where requests go."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("ray", reason="Ray is not installed: make test-ray")

import ray
from ray_cluster import ADMIN_KEY, QUESTION, Nodes, Stream, System, cluster, settings, system, write_expert

from expert_router.deploy.ray_serve import application, build_app
from expert_router.errors import ConfigError
from support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.ray

REPLICAS = 3
WHOLE = f"[The calm one] You asked: {QUESTION}"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with cluster() as started:
        yield started


@pytest.fixture(scope="module")
def running(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with system(nodes.port, tmp_path_factory.mktemp("ray"), min_replicas=REPLICAS, max_replicas=REPLICAS) as started:
        yield started


@pytest.fixture(autouse=True)
def _whole_again(request: pytest.FixtureRequest) -> None:
    """Whoever was killed is there again, and nobody runs."""
    if "running" in request.fixturenames:
        started = request.getfixturevalue("running")
        eventually(lambda: len(started.replicas()) == REPLICAS, within_s=30)
        eventually(lambda: started.totals("running") == 0, within_s=10)


def error_of(events: list) -> dict:
    (error,) = (event["error"] for event in events if "error" in event)
    return error


def test_what_cannot_be_deployed_is_said_before_anything_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Unknown arguments: profile\. Known: config"):
        build_app({"profile": "echo"})
    with pytest.raises(ConfigError, match=r"ray\.max_replicas is less"):
        application(settings(tmp_path, min_replicas=2, max_replicas=1))


def test_an_answer_streams_through_gateway_and_engine_piece_by_piece(running: System) -> None:
    stream = running.streaming("calm").wait_for_text()
    assert WHOLE.startswith(stream.said)
    assert len(stream.said) < len(WHOLE) / 2
    assert stream.answer() == WHOLE


def test_a_whole_answer_says_who_answered_and_what_it_took(running: System) -> None:
    body = running.ask("quick", "Who are you?").json()
    assert body["choices"][0]["message"]["content"] == "[The quick one] You asked: Who are you?"
    assert body["usage"]["completion_tokens"] == 8
    assert body["expert_router"]["served"] == {"quick": {"base": "echo", "adapter": None}}


def test_several_experts_answer_a_question_at_once(running: System) -> None:
    """Their runs share the id that Ray knows the request by."""
    body = running.ask("auto", "Does a car driver need sleep?").json()["expert_router"]
    assert sorted(body["experts"]) == ["cars", "sleep"]


@pytest.mark.parametrize(
    ("expert", "status", "code"),
    [("tight", 400, "context_length_exceeded"), ("broken", 502, "engine_failed"), ("full", 429, "overloaded")],
)
def test_an_engines_error_is_the_same_over_http(running: System, expert: str, status: int, code: str) -> None:
    for stream in (False, True):
        response = running.ask(expert, "Is there room for all of this?", stream=stream)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    if expert == "full":
        assert response.headers["retry-after"] == "1"


def test_a_client_that_leaves_ends_the_run_on_the_replica(running: System) -> None:
    before = running.totals("cancelled")
    body = {"model": "calm", "stream": True, "messages": [{"role": "user", "content": QUESTION}]}
    with running.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        eventually(lambda: running.totals("running") == 1)
    eventually(lambda: running.totals("running") == 0, within_s=3)  # the whole answer would take longer
    assert running.totals("cancelled") == before + 1


# Where requests go


def test_an_experts_requests_go_where_it_is_loaded_and_experts_are_spread(running: System) -> None:
    where = {}
    for expert in ("calm", "quick", "late"):
        before = running.replicas()
        for n in range(4):
            running.ask(expert, f"Are you there? {n}", max_tokens=1)
        finished = {name: each["finished"] - before[name]["finished"] for name, each in running.replicas().items()}
        assert sorted(finished.values()) == [0, 0, 4]
        where[expert] = max(finished, key=finished.__getitem__)
    assert len(set(where.values())) >= 2  # there are eight experts on three replicas


def test_past_the_bound_an_expert_overflows_to_another_replica(running: System) -> None:
    streams = calm_streams(running, 6)
    at_once = [each["running"] for each in running.replicas().values()]
    assert (sum(at_once), max(at_once) <= 4) == (6, True), at_once
    assert [stream.answer() for stream in streams.values()] == list(streams)


# Deaths


def questions(count: int) -> list[str]:
    return [f"{number} {QUESTION}" for number in range(count)]


def calm_streams(running: System, count: int) -> dict[str, Stream]:
    """Under way, by what each is to say."""
    return {f"[The calm one] You asked: {q}": running.streaming("calm", q).wait_for_text() for q in questions(count)}


def test_a_replica_killed_in_the_middle_of_an_answer_is_an_error_event_and_disturbs_nobody_else(
    running: System,
) -> None:
    streams = calm_streams(running, 5)  # one past the bound of a replica
    victim = min((each for each in running.replicas().values() if each["running"]), key=lambda each: each["running"])
    os.kill(victim["pid"], signal.SIGKILL)
    eventually(lambda: sum(stream.failed for stream in streams.values()) == victim["running"], within_s=3)
    assert running.ask("quick").status_code == 200
    for whole, stream in streams.items():
        if stream.failed:
            assert error_of(stream.ended())["code"] == "engine_failed"
            assert whole.startswith(stream.said)
        else:
            assert stream.answer() == whole
    assert 0 < victim["running"] < len(streams)


def test_a_replica_killed_before_the_first_token_is_made_good_by_another(running: System) -> None:
    retried = running.http.get("/health/ready").json()["engine"]["retried"]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(running.ask, "late", "Who comes late?")
        os.kill(running.replica_running(1)["pid"], signal.SIGKILL)
        response = answer.result(timeout=15)
    assert response.json()["choices"][0]["message"]["content"] == "[The late one] You asked: Who comes late?"
    assert running.http.get("/health/ready").json()["engine"]["retried"] == retried + 1


def test_a_replica_that_stops_without_dying_is_given_up(running: System) -> None:
    stream = running.streaming("calm").wait_for_text()
    pid = running.replica_running(1)["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        error = error_of(stream.ended(within_s=15))
    finally:
        os.kill(pid, signal.SIGKILL)  # Ray would, once its health checks have failed
    assert error["code"] == "engine_failed"


def test_a_node_that_dies_takes_only_the_answers_of_its_replicas_along(running: System, nodes: Nodes) -> None:
    streams = calm_streams(running, 9)  # on all replicas
    head = ray.get_runtime_context().get_node_id()
    by_node = Counter[str]()
    for each in running.replicas().values():
        by_node[each["node"]] += each["running"]
    del by_node[head]
    lost, dead = by_node.most_common(1)[0]
    nodes.kill(lost)
    try:
        whole = [stream.said for said, stream in streams.items() if stream.ended() and said == stream.said]
        assert len(whole) == len(streams) - dead < len(streams)
        failed = [stream for stream in streams.values() if stream.failed]
        assert [error_of(stream.ended())["code"] for stream in failed] == ["engine_failed"] * dead
    finally:
        nodes.add()


# Updates


def test_an_expert_is_replaced_while_it_answers_and_no_stream_is_dropped(running: System) -> None:
    old = running.streaming("calm").wait_for_text()
    proposal = {"name": "calm", "title": "Another", "examples": ["Who is calm now?"], "replace": True}
    admin = {"authorization": f"Bearer {ADMIN_KEY}"}
    assert running.http.post("/v1/experts", json=proposal, headers=admin).status_code == 201
    try:
        new = running.ask("calm", "Who are you?").json()["choices"][0]["message"]["content"]
        assert new == "[Another] You asked: Who are you?"
        assert old.answer() == WHOLE
    finally:
        running.http.post("/v1/experts/rollback", json={}, headers=admin)


def test_a_rolling_update_of_all_replicas_drops_no_stream(running: System) -> None:
    """The manifest has changed, so that gateway and engines are replaced, while streams come and go."""
    before = set(running.replicas())
    write_expert(running.settings.home, "quick", "The quicker one")
    with ThreadPoolExecutor(2) as pool:
        old = calm_streams(running, 3)
        update = pool.submit(running.deploy)
        during = []
        while not update.done():
            during.append(running.streaming("calm", f"{len(during)} during {QUESTION}"))
            time.sleep(0.5)
        update.result()
    assert [stream.answer() for stream in old.values()] == list(old)
    assert [stream.answer()[-len(QUESTION) :] for stream in during] == [QUESTION] * len(during)
    assert len(during) > 2
    assert before.isdisjoint(running.replicas())
    assert running.ask("quick", "Who?").json()["choices"][0]["message"]["content"].startswith("[The quicker one]")


# More of them


def test_replicas_come_with_load_and_go_without_dropping_a_stream(nodes: Nodes, tmp_path: Path) -> None:
    growing = {"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 2}
    with system(nodes.port, tmp_path, **growing, upscale_delay_s=0, downscale_delay_s=1) as started:
        assert len(started.replicas()) == 1
        long = " ".join([QUESTION] * 6)
        streams = {f"{n} {long}": started.streaming("calm", f"{n} {long}") for n in range(8)}
        eventually(lambda: len(started.replicas()) == 3, within_s=30)
        assert [stream.answer(40) for stream in streams.values()] == [f"[The calm one] You asked: {q}" for q in streams]
        eventually(lambda: len(started.replicas()) == 1, within_s=60)
