"""The images' recipe, as far as it can be judged without building one, which deploy/try-image.sh does."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from manifests import ROOT

from expert_router.artifacts import load_experts
from expert_router.engines.openai_http import served_model_names
from expert_router.settings import load_settings

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
LINES = [line for line in re.sub(r"\\\n", " ", DOCKERFILE).splitlines() if line.strip() and not line.startswith("#")]
STAGES = dict(re.findall(r"^FROM (\S+) AS (\w+)$", DOCKERFILE, re.MULTILINE))
SERVE_VLLM = ROOT / "deploy" / "vllm" / "serve.py"


def stage(name: str) -> list[str]:
    """Its lines, with those of the stage that it is made from."""
    starts = [number for number, line in enumerate(LINES) if line.startswith("FROM ")]
    (start,) = (number for number in starts if LINES[number].endswith(f" AS {name}"))
    after = [number for number in starts if number > start]
    base = LINES[start].split()[1]
    inherited = [] if base.startswith("$") else stage(base)
    return [*inherited, *LINES[start + 1 : after[0] if after else None]]


def last(name: str, instruction: str) -> str:
    return [line.removeprefix(instruction).strip() for line in stage(name) if line.startswith(f"{instruction} ")][-1]


def variables(name: str) -> dict[str, str]:
    words = [word for line in stage(name) if line.startswith("ENV ") for word in shlex.split(line)[1:]]
    return dict(word.split("=", 1) for word in words)


def test_cpu_is_what_is_built_unless_told() -> None:
    assert [line for line in LINES if line.startswith("FROM ")][-1].endswith(" AS cpu")


@pytest.mark.parametrize("target", ["cpu", "baked", "gpu"])
def test_it_runs_as_a_number_that_is_not_root_and_is_asked_to_end_itself(target: str) -> None:
    user, group = last(target, "USER").split(":")
    assert min(int(user), int(group)) > 0
    assert isinstance(json.loads(last(target, "ENTRYPOINT")), list)  # no shell stands between it and its signals
    assert " CMD [" in last(target, "HEALTHCHECK")


def test_it_writes_to_its_volume_alone() -> None:
    volume = last("cpu", "VOLUME")
    settings = variables("cpu")
    for name in ("TMPDIR", "HF_HOME", "EXPERT_ROUTER_PATHS__CACHE", "EXPERT_ROUTER_PATHS__CATALOGUE"):
        assert settings[name] == volume or settings[name].startswith(f"{volume}/")
    assert not settings["HOME"].startswith(volume)  # it has the refusal of telemetry


@pytest.mark.parametrize("target", ["cpu", "baked"])
def test_its_variables_are_settings(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables(target).items():
        if name.startswith("EXPERT_ROUTER_") and name != "EXPERT_ROUTER_HOME":
            monkeypatch.setenv(name, value.replace("${PROFILE}", "tiny"))
    settings = load_settings()
    assert settings.server.host == "0.0.0.0"
    assert settings.paths.cache == Path("/opt/cache" if target == "baked" else "/var/lib/expert-router/cache")


def test_an_index_and_its_certificate_are_mounted_and_left_in_no_layer() -> None:
    installing = [line for line in LINES if line.startswith("RUN ") and "pip install" in line]
    assert len(installing) == 2
    assert all("--mount=type=secret,id=pip.conf" in line and "--no-cache-dir" in line for line in installing)
    assert not re.search(r"index-url|trusted-host|http://|https://", DOCKERFILE)


def test_what_it_copies_is_there_and_is_let_in_and_nothing_else_is() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    let_in = [rule[1:] for rule in rules if rule.startswith("!")]
    copied = [
        word for line in LINES if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    assert copied
    for path in copied:
        assert list(ROOT.glob(path)), f"{path} is not there"
    for rule in let_in:
        assert list(ROOT.glob(rule)), f"{rule} lets nothing in"
        assert any(fnmatch(rule, path) or rule.startswith(f"{path}/") or path.startswith(f"{rule}/") for path in copied)
    assert not {".env", ".git", "runs", "catalogue", "tests"} & set(let_in)


# vLLM


def vllm_command(**environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in {"BASE_MODEL", "MODEL", "EXPERTS"}}
    return subprocess.run(
        [sys.executable, SERVE_VLLM, "--print", "--max-model-len", "2048"],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.mark.parametrize("base", ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"])
def test_vllm_serves_every_expert_by_the_name_that_a_gateway_asks_for(base: str) -> None:
    done = vllm_command(BASE_MODEL=base, MODEL="owner/weights", EXPERTS=str(ROOT / "experts"))
    words = json.loads(done.stdout)
    assert words[:5] == ["vllm", "serve", "owner/weights", "--served-model-name", base]
    assert words[-2:] == ["--max-model-len", "2048"]
    named = served_model_names(base)
    experts = load_experts(ROOT / "experts", ROOT).values()
    wanted = {f"{named(expert)}={expert.adapters[base].path}" for expert in experts}
    assert wanted
    assert set(words[words.index("--lora-modules") + 1 : -2]) == wanted
    assert words[words.index("--max-lora-rank") + 1] == "8"  # of rank 6


def test_a_base_without_adapters_is_served_alone() -> None:
    words = json.loads(
        vllm_command(BASE_MODEL="mistralai/Mistral-7B-Instruct-v0.3", EXPERTS=str(ROOT / "experts")).stdout
    )
    assert words[2] == "mistralai/Mistral-7B-Instruct-v0.3"
    assert "--enable-lora" not in words


def test_without_a_base_it_says_what_to_set() -> None:
    done = vllm_command()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("BASE_MODEL is not set")
