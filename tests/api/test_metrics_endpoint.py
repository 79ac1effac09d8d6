"""``GET /metrics`` of a running server, read by Prometheus' own Python parser."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from expert_router.caching.memory import MemoryStore
from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.records import PartRecord, Period, RequestRecord
from expert_router.telemetry.metrics import Metrics
from expert_router.telemetry.state import ServerState
from expert_router.types import AUTO, ChatRequest, Message, Scores, Served
from support import (
    BOTH_QUESTION,
    CARS,
    STAGES,
    UNSURE_QUESTION,
    FixedKnowledge,
    FixedRouter,
    build,
    eventually,
    live_system,
    make_home,
    serve,
)

if TYPE_CHECKING:
    from pathlib import Path

    from support import Server


def scrape(server: Server) -> dict[str, dict[tuple[str, ...], float]]:
    """By name, then by the labels' values in the order of their names."""
    response = server.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name.removeprefix("expert_router_"), {})[labels] = sample.value
    return found


def test_an_answer_is_counted_once_and_in_all_its_times() -> None:
    knowledge = FixedKnowledge({"sleep": [STAGES]})
    with serve(EchoEngine(EchoScript(0.02, 0.002)), knowledge=knowledge) as server:
        usage = server.post(model=AUTO).json()["usage"]
        told = scrape(server)
    answer = ("", "sleep")  # adapter, expert
    assert told["requests_total"] == {("", "sleep", "stop"): 1}
    assert told["router_decisions_total"] == {("sleep", "single"): 1}
    assert told["prompt_tokens_total"] == {answer: usage["prompt_tokens"]}
    assert told["generation_tokens_total"] == {answer: usage["completion_tokens"]}
    assert told["inter_token_latency_seconds_count"] == {answer: usage["completion_tokens"] - 1}
    for name in ("time_to_first_token", "e2e_request_latency"):
        assert told[f"{name}_seconds_count"] == {answer: 1}
        assert told[f"{name}_seconds_sum"][answer] >= 0.02
    for name in ("request_queue_time", "retrieve"):
        assert told[f"{name}_seconds_count"] == {("sleep",): 1}
    assert told["route_seconds_count"] == {(): 1}
    assert told["http_requests_total"] == {("POST", "/v1/chat/completions", "200"): 1}
    assert "errors_total" not in told


def test_what_the_server_holds_is_told_with_the_weights_that_answer() -> None:
    with serve(EchoEngine(), answers=MemoryStore(10_000, 60)) as server:
        server.post()
        told = scrape(server)
    assert told["expert_info"] == {("", "echo", name): 1 for name in ("sleep", "cars", "general")}
    assert told["expert_ready"] == {(name,): 1 for name in ("sleep", "cars", "general")}
    assert told["engine_status"][("", "finished")] == 1
    assert (told["num_requests_running"], told["num_requests_waiting"]) == ({(): 0}, {(): 0})
    assert told["cache_answers"] == {(): 1}
    assert told["cache_bytes"][()] > 0
    assert told["process_resident_memory_bytes"][()] > 10_000_000
    assert 0 < time.time() - told["process_start_time_seconds"][()] < 120


def test_who_runs_and_who_waits_is_seen_meanwhile() -> None:
    with serve(EchoEngine(EchoScript(hang_after_tokens=1)), max_running=1) as server:
        with server.asking(), server.asking():
            eventually(lambda: scrape(server)["num_requests_waiting"][()] == 1)
            assert scrape(server)["num_requests_running"][()] == 1
        eventually(lambda: scrape(server).get("requests_total") == {("", "sleep", "abort"): 2})


def test_an_answer_that_is_given_again_makes_no_tokens() -> None:
    with serve(EchoEngine(), answers=MemoryStore(10_000, 60)) as server:
        once = scrape(server) if server.post().is_success else {}
        server.post()
        told = scrape(server)
    assert told["cache_requests_total"] == {("sleep", "miss"): 1, ("sleep", "hit"): 1}
    assert told["requests_total"] == {("", "sleep", "stop"): 2}
    for name in ("generation_tokens_total", "inter_token_latency_seconds_count", "request_queue_time_seconds_count"):
        assert told[name] == once[name]


def test_errors_are_told_by_their_codes() -> None:
    both = FixedRouter(Scores({"sleep": 0.7, "cars": 0.8}, 0.05))
    failing = EchoEngine(by_expert={"cars": EchoScript(fail_before=True)})
    with serve(failing, both) as server:
        server.post(model="cars")
        server.post(question=BOTH_QUESTION, model=AUTO)
        server.post(model="nobody")
        server.http.post("/v1/chat/completions", json={})
        told = scrape(server)
    assert told["errors_total"] == {("engine_failed", "cars"): 2, ("model_not_found", ""): 1}
    assert told["requests_total"] == {
        ("", "cars", "error"): 2,
        ("", "sleep", "stop"): 1,
        ("", "", "error"): 1,
    }
    assert told["router_decisions_total"] == {("cars", "forced"): 1, ("sleep", "several"): 1, ("cars", "several"): 1}
    path = "/v1/chat/completions"
    assert {key[2]: count for key, count in told["http_requests_total"].items() if key[1] == path} == {
        "200": 1,
        "400": 1,
        "404": 1,
        "502": 1,
    }


def test_a_question_that_is_asked_back_is_nobodys() -> None:
    with serve(EchoEngine(), FixedRouter(Scores({"sleep": 0.45, "cars": 0.42}, 0.4))) as server:
        server.post(question=UNSURE_QUESTION, model=AUTO)
        told = scrape(server)
    assert told["router_decisions_total"] == {("", "clarify"): 1}
    assert told["requests_total"] == {("", "", "stop"): 1}


def test_what_clients_make_up_begins_no_series() -> None:
    with serve(EchoEngine()) as server:
        for name in ("LOCK", "COPY", "PURGE"):
            server.http.get(f"/v1/models/made-up-{name}")
            server.http.get(f"/made/up/{name}")
            server.http.request(name, "/v1/models")
        told = scrape(server)
    assert told["http_requests_total"] == {
        ("GET", "/v1/models/{name}", "404"): 3,
        ("GET", "other", "404"): 3,
        ("other", "/v1/models", "405"): 3,
    }


def test_a_scrape_is_not_logged_as_a_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "expert_router"), serve(EchoEngine()) as server:
        server.http.get("/metrics")
        server.http.get("/health/live")
        eventually(lambda: "request" in caplog.messages)
    assert [vars(record)["path"] for record in caplog.records if record.message == "request"] == ["/health/live"]
    with serve(EchoEngine()) as server:
        assert "/metrics" not in server.http.get("/openapi.json").json()["paths"]


def test_an_expert_that_goes_away_takes_its_series_with_it(tmp_path: Path) -> None:
    dispatcher, live = live_system(make_home(tmp_path / "home"), tmp_path / "catalogue")
    with serve(EchoEngine(), dispatcher=dispatcher, live=live) as server:
        server.post(model="cars")
        server.post(model="sleep")
        live.remove("cars")
        last, after = scrape(server), scrape(server)
    assert ("", "cars", "stop") in last["requests_total"]  # what it came to is told once more
    assert after["requests_total"] == {("", "sleep", "stop"): 1}
    labels: set[Any] = {value for series in after.values() for key in series for value in key}
    assert "cars" not in labels


def test_an_adapter_that_was_replaced_takes_its_series_with_it() -> None:
    metrics = Metrics()
    metrics.observe(answered("sleep", "a" * 64))
    metrics.observe(answered("sleep", "b" * 64))
    state = server_state({"sleep": Served("base", "b" * 64)})
    metrics.exposition(state)
    assert "aaa" not in metrics.exposition(state)
    assert 'requests_total{expert="sleep",adapter="bbbbbbbbbbbb",finished_reason="stop"} 1' in metrics.exposition(state)


@pytest.mark.parametrize("experts", [200])
def test_ten_thousand_series_are_told_in_the_time_of_a_few_tokens(experts: int) -> None:
    """A scrape runs in the event loop: answers that stream wait for it. Some 10 ms here, 200 are let pass."""
    metrics, names = Metrics(), [f"expert-{number}" for number in range(experts)]
    for name in names:
        metrics.observe(answered(name, "a" * 64))
    state = server_state({name: Served("base", "a" * 64) for name in names})
    began = time.process_time()
    text = metrics.exposition(state)
    took_s = time.process_time() - began
    assert len([line for line in text.splitlines() if not line.startswith("#")]) >= 10_000
    assert took_s < 0.2


def answered(expert: str, adapter: str) -> RequestRecord:
    period = Period(0.01, 0.5)
    part = PartRecord(
        expert=expert,
        served=Served("base", adapter),
        period=period,
        outcome="stop",
        retrieval=period,
        queue=(period,),
        first_token_s=0.1,
        gaps_s=(0.01, 0.02),
        cache="miss",
    )
    request = ChatRequest((Message("user", "Why?"),))
    return RequestRecord(request=request, request_id=None, arrived=0.0, total_s=0.5, outcome="stop", parts=(part,))


def server_state(served: dict[str, Served | None]) -> ServerState:
    return ServerState(running=0, waiting=0, served=served, ready=dict.fromkeys(served, True))


def test_an_expert_that_is_refused_is_not_ready() -> None:
    class Refusing(EchoEngine):
        def served(self, expert: Any) -> Served:
            if expert.name == CARS.name:
                from expert_router.errors import NotReadyError

                raise NotReadyError("no adapter")
            return super().served(expert)

        async def warm_up(self, expert: Any) -> None:
            self.served(expert)

    with serve(Refusing(), warm_up=True) as server:
        eventually(lambda: server.http.get("/health/ready").json()["status"] == "degraded")
        told = scrape(server)
    assert told["expert_ready"] == {("sleep",): 1, ("cars",): 0, ("general",): 1}
    assert told["expert_info"][("", "", "cars")] == 1


def test_a_dispatcher_without_a_server_is_not_observed() -> None:
    assert build(EchoEngine()).observers == []
