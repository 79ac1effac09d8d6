"""The manifests: right by Kubernetes' own schemas, and at one with the server that they start."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml  # type: ignore[import-untyped]
from manifests import K8S, ROOT, Manifest, containers, documents, named, pod_specs, rendered

from expert_router.engines.echo import EchoEngine
from expert_router.settings import Settings, load_settings
from support import serve

if TYPE_CHECKING:
    from pathlib import Path

OVERLAYS = sorted(path.parent for path in K8S.glob("overlays/*/kustomization.yaml"))
RAY = K8S / "ray" / "rayservice.yaml"
VERSIONS = ("1.30", "1.37")
"""The first that knows what is used (a preStop's sleep), and the newest whose schemas are installed."""

overlays = pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)


def everything() -> list[tuple[str, Manifest]]:
    found = [(overlay.name, manifest) for overlay in OVERLAYS for manifest in rendered(overlay)]
    return [*found, *(("ray", manifest) for manifest in documents(RAY))]


WITH_PODS = {
    f"{where}-{each['kind']}-{each['metadata']['name']}": each for where, each in everything() if pod_specs(each)
}


def settings_of(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in manifest["data"].items():
        monkeypatch.setenv(name, value)
    return load_settings()


def test_there_are_the_overlays_that_the_documentation_names() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text("utf-8")
    assert {overlay.name for overlay in OVERLAYS} == {"cpu", "redis", "gpu"}
    assert all(f"deploy/k8s/overlays/{overlay.name}" in text for overlay in OVERLAYS)


@pytest.mark.parametrize("version", VERSIONS)
@overlays
def test_every_manifest_is_right_by_kubernetes_schemas(overlay: Path, version: str) -> None:
    for manifest in rendered(overlay):
        assert kubernetes_validate.validate(manifest, version, strict=True) == version


def test_a_misspelt_field_would_be_found() -> None:
    deployment = named(rendered(K8S / "overlays" / "cpu"), "Deployment", "expert-router")
    containers(deployment)[0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


@pytest.mark.skipif(
    not shutil.which("kubectl"), reason="kubectl is not installed: what Kustomize makes is not compared"
)
@overlays
def test_kustomize_makes_the_same_of_it(overlay: Path) -> None:
    done = subprocess.run(["kubectl", "kustomize", overlay], capture_output=True, text=True, check=True, timeout=60)
    unhashed = re.sub(r"(expert-router-settings|vllm-settings)-[a-z0-9]{10}\b", r"\1", done.stdout)

    def by_name(manifests: list[Manifest]) -> dict[tuple[str, str], Manifest]:
        return {(each["kind"], each["metadata"]["name"]): each for each in manifests}

    assert by_name(list(yaml.safe_load_all(unhashed))) == by_name(rendered(overlay))


# What the restricted profile of the pod security standards asks for, and a file system that cannot be written


@pytest.mark.parametrize("manifest", WITH_PODS.values(), ids=WITH_PODS)
def test_no_pod_is_more_than_it_has_to_be(manifest: Manifest) -> None:
    for pod in pod_specs(manifest):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["enableServiceLinks"] is False
    for container in containers(manifest):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        assert manifest["kind"] == "RayService" or container["securityContext"]["readOnlyRootFilesystem"] is True


@overlays
def test_the_server_runs_as_the_image_says_and_writes_where_it_says(overlay: Path) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    (pod,) = pod_specs(named(rendered(overlay), "Deployment", "expert-router"))
    user = f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    assert f"\nUSER {user}\n" in dockerfile
    mounted = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert f"\nVOLUME {mounted['data']}\n" in dockerfile
    assert {volume["name"] for volume in pod["volumes"]} == mounted.keys()


# The server


@overlays
def test_every_setting_is_one(overlay: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(named(rendered(overlay), "ConfigMap", "expert-router-settings"), monkeypatch)
    assert settings.cache.store == ("redis" if overlay.name == "redis" else "memory")
    assert settings.engine.name == ("openai_http" if overlay.name == "gpu" else "openvino")


@overlays
def test_a_pod_has_the_time_to_finish_its_streams(overlay: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = rendered(overlay)
    (pod,) = pod_specs(named(manifests, "Deployment", "expert-router"))
    settings = settings_of(named(manifests, "ConfigMap", "expert-router-settings"), monkeypatch)
    before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    closing = pod["terminationGracePeriodSeconds"] - before - settings.server.shutdown_grace_s
    assert closing >= 5


def test_every_probe_asks_what_the_server_answers() -> None:
    (pod,) = pod_specs(named(rendered(K8S / "overlays" / "cpu"), "Deployment", "expert-router"))
    (container,) = pod["containers"]
    asked = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")}
    assert asked == {"startup": "/health/ready", "readiness": "/health/ready", "liveness": "/health/live"}
    with serve(EchoEngine()) as server:
        assert {server.http.get(path).status_code for path in asked.values()} == {200}


@overlays
def test_ports_go_by_names_that_are_there(overlay: Path) -> None:
    manifests = rendered(overlay)
    deployments = [each for each in manifests if each["kind"] == "Deployment"]
    for service in (each for each in manifests if each["kind"] == "Service"):
        (behind,) = (each for each in deployments if _selects(service["spec"]["selector"], each))
        ports = {port["name"] for container in containers(behind) for port in container.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


@overlays
def test_what_selects_pods_selects_some(overlay: Path) -> None:
    manifests = rendered(overlay)
    deployments = [each for each in manifests if each["kind"] == "Deployment"]
    selectors = [each["spec"]["podSelector"] for each in manifests if each["kind"] == "NetworkPolicy"]
    selectors += [each["spec"]["selector"] for each in manifests if each["kind"] == "PodDisruptionBudget"]
    selectors += [each["spec"]["selector"] for each in deployments]
    for selector in selectors:
        assert len([each for each in deployments if _selects(selector["matchLabels"], each)]) == 1
    assert len([each for each in manifests if each["kind"] == "NetworkPolicy"]) == len(deployments)


def _selects(labels: dict[str, str], deployment: Manifest) -> bool:
    return labels.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def test_the_autoscaler_reads_the_metric_that_the_adapter_gives_it() -> None:
    scaler = named(rendered(K8S / "overlays" / "cpu"), "HorizontalPodAutoscaler", "expert-router")["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "expert-router"}
    (metric,) = scaler["metrics"]
    (rules,) = documents(K8S / "prometheus-adapter-rules.yaml")
    (rule,) = rules["rules"]["custom"]
    name = metric["pods"]["metric"]["name"]
    assert rule["name"]["as"] == name == "expert_router_num_requests_waiting"
    assert rule["seriesQuery"].startswith(f"{name}{{")
    assert re.search(rule["name"]["matches"], name)


# Ray


RAY_FIELDS: dict[str, Any] = {
    "serveConfigV2": str,
    "rayClusterConfig": {
        "rayVersion": str,
        "enableInTreeAutoscaling": bool,
        "autoscalerOptions": {"idleTimeoutSeconds": int, "securityContext": dict},
        "headGroupSpec": {"rayStartParams": dict, "template": dict},
        "workerGroupSpecs": [
            {
                "groupName": str,
                "replicas": int,
                "minReplicas": int,
                "maxReplicas": int,
                "rayStartParams": dict,
                "template": dict,
            }
        ],
    },
}
"""The fields of RayService (ray.io/v1) that are used here, as KubeRay's types have them."""


def test_the_ray_service_has_only_fields_that_kuberay_knows() -> None:
    service = named(documents(RAY), "RayService", "expert-router")
    assert service["apiVersion"] == "ray.io/v1"
    _check(service["spec"], RAY_FIELDS)


def _check(value: Any, kind: Any) -> None:
    if isinstance(kind, dict):
        assert value.keys() == kind.keys()
        for key, inner in kind.items():
            _check(value[key], inner)
    elif isinstance(kind, list):
        for each in value:
            _check(each, kind[0])
    else:
        assert type(value) is kind


def test_the_pods_of_the_ray_cluster_are_right_by_kubernetes_schemas() -> None:
    service, claim = documents(RAY)
    cluster = service["spec"]["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "ray"}, "template": group["template"]}
        kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)
    kubernetes_validate.validate(claim, VERSIONS[-1], strict=True)


def test_the_ray_service_deploys_the_application_on_the_version_of_its_image() -> None:
    service = named(documents(RAY), "RayService", "expert-router")["spec"]
    (application,) = yaml.safe_load(service["serveConfigV2"])["applications"]
    assert application["import_path"] == "expert_router.deploy.ray_serve:build_app"
    assert (application["route_prefix"], application["args"]) == ("/", {"config": "default"})
    assert f"ray[serve]=={service['rayClusterConfig']['rayVersion']}" in RAY.read_text("utf-8")
