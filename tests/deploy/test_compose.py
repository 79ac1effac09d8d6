"""compose.yaml: right by the Compose specification, closed by default, and with settings that the server knows."""

from __future__ import annotations

import copy
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml  # type: ignore[import-untyped]
from compose_spec import PyCompose
from manifests import ROOT

from expert_router.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT = (ROOT / "compose.yaml").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", TEXT))
"""With each variable's default."""
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {"app": "cpu", "gateway": "cpu", "vllm": "gpu"}


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def test_it_is_right_by_the_specification() -> None:
    assert set(PyCompose.from_json(json.dumps(COMPOSE)).service_names()) == set(SERVICES)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda app: app.update(read_only="perhaps"), "perhaps"),
        (lambda app: app.update(stop_grace_period="soon"), "duration"),
        (lambda app: app["depends_on"]["redis"].update(condition="service_happy"), "service_happy"),
        (lambda app: app.update(read_onlyy=True), "read_onlyy"),
    ],
)
def test_what_is_wrong_would_be_found(spoil: Callable[[dict[str, Any]], None], said: str) -> None:
    spoilt = copy.deepcopy(COMPOSE)
    spoil(spoilt["services"]["app"])
    with pytest.raises(ValueError, match=said):
        PyCompose.from_json(json.dumps(spoilt))


def test_without_a_profile_there_is_no_gpu() -> None:
    assert {name for name, service in SERVICES.items() if not service.get("profiles")} == {
        "app",
        "redis",
        "prometheus",
        "grafana",
    }
    assert {name for name, service in SERVICES.items() if service.get("profiles") == ["vllm"]} == {"vllm", "gateway"}


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
def test_no_service_is_more_than_it_has_to_be(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"]
    assert service.get("privileged") is None
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
def test_every_service_says_whether_it_is_well(service: dict[str, Any]) -> None:
    if "build" in service:  # its image does
        assert f"AS {service['build']['target']}\n" in (ROOT / "Dockerfile").read_text("utf-8")
    else:
        assert service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", ["app", "gateway"])
def test_the_servers_settings_are_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = SERVICES[name]
    for variable, value in service["environment"].items():
        monkeypatch.setenv(variable, value)
    settings = load_settings()
    assert settings.cache.store == "redis"
    assert settings.cache.redis_url == "redis://redis:6379/0"
    assert seconds(service["stop_grace_period"]) >= settings.server.shutdown_grace_s + 5
    assert settings.engine.name == {"app": "openvino", "gateway": "openai_http"}[name]


def test_the_gateway_asks_vllm_for_the_base_that_it_serves() -> None:
    asking, serving = SERVICES["gateway"]["environment"], SERVICES["vllm"]["environment"]
    assert asking["EXPERT_ROUTER_ENGINE__BASE_MODEL"] == serving["BASE_MODEL"]
    assert asking["EXPERT_ROUTER_ENGINE__BASE_URL"] == "http://vllm:8000/v1"


def test_grafana_asks_this_prometheus_and_finds_the_dashboards() -> None:
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text("utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "expert-router.yaml").read_text("utf-8"))["providers"]
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert mounted["./deploy/grafana"] == provider["options"]["path"]
    assert mounted["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"


def test_prometheus_asks_the_servers_by_their_services_names() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "compose.yml").read_text("utf-8"))
    jobs = config["scrape_configs"]
    asked = {
        target.split(":")[0] for job in jobs for each in job.get("static_configs", []) for target in each["targets"]
    }
    found = {name for job in jobs for each in job.get("dns_sd_configs", []) for name in each["names"]}
    assert (asked, found) == ({"app"}, {"gateway", "vllm"})
    assert SERVICES["prometheus"]["command"][0] == "--config.file=/etc/prometheus/compose.yml"
