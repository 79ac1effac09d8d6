"""The dashboard and the alerts ask for what the server tells."""

from __future__ import annotations

import re

import pytest
import yaml  # type: ignore[import-untyped]
from monitoring import ALERTS, DASHBOARD, PANELS, PROMETHEUS, asked

from expert_router.telemetry.metrics import Metrics
from expert_router.telemetry.workers import UP

OF_PROMETHEUS = {"job", "instance", "worker"}
TOLD: dict[str, set[str]] = {
    f"{family.name}{suffix}": {*family.labels, *(["le"] if suffix == "_bucket" else [])}
    for family in (*Metrics().families, UP)
    for suffix in (["_bucket", "_sum", "_count"] if family.kind == "histogram" else [""])
}
QUERIES = {**{f"alert {name}": [query] for name, query in ALERTS.items()}, **PANELS}


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_asks_for_metrics_and_labels_that_there_are(name: str) -> None:
    for query in QUERIES[name]:
        metrics = asked(query) or [("up", set())]
        assert {metric for metric, _ in metrics} <= TOLD.keys() | {"up"}
        known = OF_PROMETHEUS.union(*(TOLD.get(metric, set()) for metric, _ in metrics))
        grouped = {label for labels in re.findall(r"(?:by|on) \((.*?)\)", query) for label in re.split(r",\s*", labels)}
        assert grouped <= known
        for metric, labels in metrics:
            assert labels <= TOLD.get(metric, set()) | OF_PROMETHEUS


def test_every_alert_is_tried() -> None:
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text("utf-8"))["tests"]
    tried = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in tried if case.get("exp_alerts")} == set(ALERTS)
    assert {case["alertname"] for case in tried if not case.get("exp_alerts")} == set(ALERTS)


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    panels = DASHBOARD["panels"]
    assert (DASHBOARD["uid"], DASHBOARD["schemaVersion"]) == ("expert-router", 39)
    assert {panel["type"] for panel in panels} == {"timeseries", "table"}
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert len({(place["x"], place["y"]) for place in places}) == len(places)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", "".join(str(panel) for panel in panels)))
    assert used - {"__rate_interval"} == variables
    assert all(panel["targets"] and panel["datasource"]["uid"] == "${datasource}" for panel in panels)
