"""Kustomize as far as ``deploy/k8s`` uses it, so that what is applied can be checked where there is no kubectl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy" / "k8s"
KNOWN = {"apiVersion", "kind", "namespace", "labels", "resources", "configMapGenerator", "images", "patches"}

Manifest = dict[str, Any]


def documents(path: Path) -> list[Manifest]:
    """Those of a file; what an alias of YAML repeats is repeated, so that a change to one is none to the other."""
    loaded = [each for each in yaml.safe_load_all(path.read_text("utf-8")) if each is not None]
    manifests: list[Manifest] = json.loads(json.dumps(loaded))
    return manifests


def rendered(folder: Path) -> list[Manifest]:
    """What ``kubectl kustomize`` makes of a folder, but for the hashes that it adds to the names of settings."""
    (kustomization,) = documents(folder / "kustomization.yaml")
    assert kustomization.keys() <= KNOWN, f"{folder} uses more of Kustomize than this knows"
    found: list[Manifest] = []
    for resource in kustomization["resources"]:
        path = (folder / resource).resolve()
        found += rendered(path) if path.is_dir() else documents(path)
    for generated in kustomization.get("configMapGenerator", []):
        _generate(found, generated)
    for patch in kustomization.get("patches", []):
        target = named(found, patch["target"]["kind"], patch["target"]["name"])
        for operation in yaml.safe_load(patch["patch"]):
            _apply(target, operation)
    _name_images(found, kustomization.get("images", []))
    for manifest in found:
        if manifest["kind"] != "Namespace" and "namespace" in kustomization:
            manifest["metadata"]["namespace"] = kustomization["namespace"]
        for labels in kustomization.get("labels", []):
            manifest["metadata"].setdefault("labels", {}).update(labels["pairs"])
    return found


def pod_specs(manifest: Manifest) -> list[Manifest]:
    """Of a deployment, or of a Ray cluster's groups."""
    spec = manifest.get("spec", {})
    cluster = spec.get("rayClusterConfig", {})
    groups = [*([cluster["headGroupSpec"]] if cluster else []), *cluster.get("workerGroupSpecs", [])]
    return [each["template"]["spec"] for each in [spec, *groups] if "template" in each]


def containers(manifest: Manifest) -> list[Manifest]:
    return [each for pod in pod_specs(manifest) for each in [*pod.get("initContainers", []), *pod["containers"]]]


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """The one of that kind and name."""
    (found,) = (each for each in manifests if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def _name_images(found: list[Manifest], images: list[Manifest]) -> None:
    full = {image["name"]: f"{image['newName']}:{image['newTag']}" for image in images}
    for container in (each for manifest in found for each in containers(manifest)):
        container["image"] = full.get(container["image"], container["image"])


def _generate(found: list[Manifest], generated: Manifest) -> None:
    data = dict(literal.split("=", 1) for literal in generated["literals"])
    if generated.get("behavior") == "merge":
        named(found, "ConfigMap", generated["name"])["data"].update(data)
    else:
        metadata = {"name": generated["name"]}
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def _apply(manifest: Manifest, operation: Manifest) -> None:
    """An operation of RFC 6902 on an object's key or a list's place."""
    *parents, last = operation["path"].lstrip("/").split("/")
    place: Any = manifest
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    if operation["op"] == "add" and isinstance(place, list):
        assert last == "-", "only the end of a list is known here"
        place.append(operation["value"])
    else:
        assert operation["op"] == "add" or last in place, f"there is no {operation['path']} to replace"
        assert operation["op"] in {"add", "replace"}
        place[last] = operation["value"]
