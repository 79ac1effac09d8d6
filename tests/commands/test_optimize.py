"""``optimize`` as people use it, on a llama of random weights with an adapter that changes next to nothing."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from cli import CommandLine, Finished, one_line
from tiny_gguf import write_llama, write_lora

from expert_router.artifacts import install_adapter, load_expert, sha256_of
from expert_router.commands import run
from expert_router.engines.canary import canary_answer
from expert_router.engines.loaded_model import LoadedModel, OpenVINOOptions
from expert_router.engines.prepared import prepare_model
from expert_router.types import Adapter, ModelVariant
from expert_router.weights import load_lock
from support import SLEEP_QUESTION, make_home, run_on_full_disk
from training_home import training_environment, write_training_data

if TYPE_CHECKING:
    from pathlib import Path

BASE, SMALL = "tiny-random", "tiny-random-3-layers"
PROMPT = "Which expert are you?"
LOCK = """
[[{base}.files]]
name = "tiny.gguf"
size = {size}
sha256 = "{sha256}"
licence = "none"
upstream = "random"
sources = [{{ kind = "path", path = "tiny.gguf" }}]
"""
REPORT = "runs/measured"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A checkout whose base has four layers and answers g to the canary's question, and two questions to measure on."""
    home = make_home(tmp_path / "checkout")
    weights = home / "tiny.gguf"
    write_llama(weights, context_tokens=2048, blocks=4, seed=3)
    brought = home / "cache" / "weights" / BASE
    brought.mkdir(parents=True)
    shutil.copy(weights, brought)
    entry = LOCK.format(base=BASE, size=weights.stat().st_size, sha256=sha256_of(weights))
    with (home / "models.lock").open("a", encoding="utf-8") as lock:
        lock.write(entry)
    with (home / "data" / "processed" / "test_sleep.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [("question", "answer", "key"), (SLEEP_QUESTION, "Rapid eyes.", "rapid eye"), ("Why?", "So.", "so")]
        csv.writer(file).writerows(rows)
    return home


@dataclass(frozen=True)
class InProcess:
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: str, config: str = "echo") -> Finished:
        self.capsys.readouterr()
        status = run(["--config", config, "optimize", *arguments])
        return Finished(status, *self.capsys.readouterr())


def environment(home: Path) -> dict[str, str]:
    return {
        "EXPERT_ROUTER_HOME": str(home),
        "EXPERT_ROUTER_PATHS__CACHE": str(home / "cache"),
        "EXPERT_ROUTER_ENGINE__NAME": "openvino",
        "EXPERT_ROUTER_ENGINE__BASE_MODEL": BASE,
        "EXPERT_ROUTER_SERVING__MAX_TOKENS": "6",
    }


@pytest.fixture
def cli(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    for name, value in environment(home).items():
        monkeypatch.setenv(name, value)
    return InProcess(capsys)


def adapt(home: Path, base: str, *, canary: str | None = None) -> None:
    """Give the sleep expert an adapter that changes nothing to speak of; its canary is what the q8_0 model says."""
    weights = home / "tiny.gguf" if base == BASE else home / "cache" / "weights" / base / f"{base}.gguf"
    trained = write_lora(home / "runs" / base, weights, size=1e-5).folder
    if canary is None:
        adapter = Adapter(trained, sha256_of(trained / "adapter_model.safetensors"))
        prepared = prepare_model(base, weights, sha256_of(weights), home / "cache", adapter=adapter, progress=False)
        model = LoadedModel("recorder", prepared, OpenVINOOptions(base, 2, 2**36, 2**30, 4, reproducible=False))
        canary = canary_answer(model, PROMPT)
        assert set(canary) == {"g"}
        model.close()
    install_adapter(home / "experts" / "sleep", base, trained, {"canary": {"prompt": PROMPT, "answer": canary}})


def served_as(home: Path) -> dict[str, ModelVariant]:
    return dict(load_expert(home / "experts" / "sleep" / "expert.toml", home).serve_as)


def write_report(home: Path, **losses: float) -> None:
    """What measuring 100 questions leaves, as far as installing reads it."""
    adapters = load_expert(home / "experts" / "sleep" / "expert.toml", home).adapters
    variants = {
        name: {
            "model": {"base": BASE, "quantization": name},
            "adapter": adapters[BASE].sha256,
            "size_bytes": 10**6,
            "load_s": 1.0,
            "speed": {"first_token_s": [0.1, 0.2], "tokens_per_s": 100.0},
            "accuracy": {"value": 0.8 - loss, "low": 0.7, "high": 0.9, "n": 100},
            "difference": {"value": -loss, "low": -0.1, "high": 0.1, "n": 100} if loss else None,
        }
        for name, loss in {"q8_0": 0.0, **losses}.items()
    }
    report = {"experts": [{"expert": "sleep", "base": BASE, "variants": variants, "refused": {}}]}
    (home / REPORT).mkdir(parents=True, exist_ok=True)
    (home / REPORT / "report.json").write_text(json.dumps(report), "utf-8")


# Measuring


def test_every_variant_is_measured_and_the_table_says_what_each_costs(cli: InProcess, home: Path) -> None:
    """Eight bits, four, and a base of three layers, whose adapter is not the one that it says it is."""
    assert cli.run("prune", "--without", "1").status == 0
    adapt(home, BASE)
    adapt(home, SMALL, canary="somebody else")
    done = cli.run("--experts", "sleep", "--variants", "q4_0,3-layers-q4_0", "--output", str(home / "new"))
    assert done.status == 0, done.error
    assert done.error.splitlines()[-1] == f"Saved in {home / 'new'}: report.md, report.json, variants.png."
    assert {path.name for path in (home / "new").iterdir()} == {"report.md", "report.json", "variants.png"}
    found: dict[str, Any] = json.loads((home / "new" / "report.json").read_text("utf-8"))
    (expert,) = found["experts"]
    assert (expert["expert"], expert["base"], found["reference"]) == ("sleep", BASE, "q8_0")
    eight, four = expert["variants"].pop("q8_0"), expert["variants"].pop("q4_0")
    assert expert["variants"] == {}
    assert four["size_bytes"] < eight["size_bytes"]
    assert (eight["accuracy"]["n"], eight["difference"], four["difference"]["n"]) == (2, None, 2)
    assert eight["adapter"] == load_expert(home / "experts" / "sleep" / "expert.toml", home).adapters[BASE].sha256
    assert eight["load_s"] > 0
    assert eight["speed"]["first_token_s"][0] > 0
    assert list(expert["refused"]) == ["3-layers-q4_0"]
    assert "is refused: asked" in expert["refused"]["3-layers-q4_0"]
    assert "| q4_0 | " in done.out
    assert served_as(home) == {}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--experts", "birds"), "--experts does not know birds. Known: cars, sleep."),
        (("--limit", "0"), "--limit takes a number from 1 on, not 0."),
        (("--tolerance", "-1"), "--tolerance takes points from 0 to 100, not -1."),
        ((), f"The expert 'cars' has no adapter for {BASE}: expert-router train expert cars."),
        (("--run", REPORT), "--run goes with --install VARIANT."),
    ],
)
def test_a_mistake_is_one_line_that_names_it(cli: InProcess, home: Path, arguments: tuple[str, ...], said: str) -> None:
    assert one_line(cli.run(*arguments)).startswith(said)
    assert not (home / "runs").exists()


def test_only_the_embedded_engine_has_variants(cli: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPERT_ROUTER_ENGINE__NAME", "echo")
    assert one_line(cli.run()) == "optimize measures the openvino engine; these settings have echo."


def test_a_variant_that_does_not_exist_is_not_measured(cli: InProcess, home: Path) -> None:
    adapt(home, BASE, canary="I")
    done = cli.run("--experts", "sleep", "--variants", "q4_0,q5_0")
    assert one_line(done) == "--variants does not know q5_0. Known: q8_0, q4_0."


# Installing


def test_a_variant_that_loses_no_more_than_tolerated_is_installed_and_q8_0_takes_it_back(
    cli: InProcess, home: Path
) -> None:
    adapt(home, BASE, canary="I")
    write_report(home, q4_0=0.015)
    installing = ("--experts", "sleep", "--run", str(home / REPORT), "--install")
    done = cli.run(*installing, "q4_0")
    assert (done.status, done.error) == (0, "")
    assert done.out == f"Where {BASE} is configured, sleep is served as q4_0 from the next start on.\n"
    assert served_as(home) == {BASE: ModelVariant(BASE, "q4_0")}
    assert cli.run(*installing, "q8_0").status == 0
    assert served_as(home) == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--install", "q4_0"),
            "q4_0 of sleep loses 3.0 points of key-fact accuracy against q8_0 on 100 questions; 2 ",
        ),
        (("--install", "q4_0", "--tolerance", "2.9"), "q4_0 of sleep loses 3.0 points of key-fact accuracy"),
        (("--install", "3-layers-q8_0"), "3-layers-q8_0 of sleep was never measured, so nobody knows what it loses."),
    ],
)
def test_a_variant_that_loses_too_much_or_was_never_measured_is_refused(
    cli: InProcess, home: Path, options: tuple[str, ...], said: str
) -> None:
    adapt(home, BASE, canary="I")
    write_report(home, q4_0=0.03)
    manifest = (home / "experts" / "sleep" / "expert.toml").read_bytes()
    done = cli.run("--experts", "sleep", "--run", str(home / REPORT), *options)
    assert (done.status, done.out) == (1, "")
    assert done.error.startswith(f"Nothing was installed. {said}")
    assert done.error.count("\n") == 1
    assert (home / "experts" / "sleep" / "expert.toml").read_bytes() == manifest


def test_what_another_adapter_was_measured_for_is_not_installed(cli: InProcess, home: Path) -> None:
    adapt(home, BASE, canary="I")
    write_report(home, q4_0=0.0)
    write_lora(home / "runs" / "anew", home / "tiny.gguf", seed=7)
    install_adapter(home / "experts" / "sleep", BASE, home / "runs" / "anew", {})
    done = cli.run("--experts", "sleep", "--run", str(home / REPORT), "--install", "q4_0")
    assert done.status == 1
    assert done.error.endswith("which is not the one that the expert has now: measure again.\n")
    assert served_as(home) == {}


def test_an_expert_that_the_report_does_not_have_is_named(cli: InProcess, home: Path) -> None:
    adapt(home, BASE, canary="I")
    write_report(home, q4_0=0.0)
    done = cli.run("--run", str(home / REPORT), "--install", "q4_0")
    assert one_line(done).endswith("has not measured cars: name those it has with --experts sleep.")
    assert "is not the folder of a finished" in one_line(cli.run("--run", str(home), "--install", "q4_0"))


# Pruning


def test_a_pruned_base_is_an_entry_of_models_lock_that_any_command_takes(cli: InProcess, home: Path) -> None:
    before = (home / "models.lock").read_text("utf-8")
    done = cli.run("prune", "--without", "3,1,1")
    path = home / "cache" / "weights" / "tiny-random-2-layers" / "tiny-random-2-layers.gguf"
    assert done.status == 0, done.error
    assert done.out.splitlines()[0] == f"{path} is {BASE} without 2 of its 4 layers: 1, 3."
    assert "  expert-router train expert sleep --base tiny-random-2-layers --install" in done.out.splitlines()
    assert (home / "models.lock").read_text("utf-8").startswith(before)
    model = load_lock(home / "models.lock")["tiny-random-2-layers"]
    assert model.pruned is not None
    assert (model.pruned.base.name, model.pruned.without_layers) == (BASE, (1, 3))
    assert model.files[0].sha256 == sha256_of(path)
    beside = json.loads(path.with_suffix(".json").read_text("utf-8"))
    assert (beside["base_sha256"], beside["without_layers"]) == (sha256_of(home / "tiny.gguf"), [1, 3])
    assert not list(path.parent.glob(".scratch*"))


def test_the_same_again_is_no_mistake_and_other_layers_under_that_name_are(cli: InProcess, home: Path) -> None:
    assert cli.run("prune", "--without", "1").status == 0
    lock = (home / "models.lock").read_text("utf-8")
    for again in (("--without", "1"), ("--layers", "3")):
        done = cli.run("prune", *again)
        assert (done.status, done.out) == (0, f"models.lock has {BASE} without layers 1 already, as {SMALL}.\n")
    said = one_line(cli.run("prune", "--without", "2"))
    assert said == f"models.lock has another {SMALL} already: take that out first."
    assert (home / "models.lock").read_text("utf-8") == lock


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Say how many layers stay, with --layers, or which ones do not, with --without."),
        (("--layers", "2", "--without", "1"), "Say how many layers stay"),
        (("--layers", "0"), "--layers takes a number from 1 to 3, not 0: there are 4 layers."),
        (("--layers", "4"), "--layers takes a number from 1 to 3, not 4: there are 4 layers."),
        (("--without", "0,1,2,3"), "--without takes some of the layers 0 to 3, not all: 0,1,2,3."),
        (("--without", "4"), "--without takes some of the layers 0 to 3"),
        (("--without", "one"), "--without takes numbers joined by commas, not 'one'."),
        (("--layers", "2", "--prompts", "0"), "--prompts takes a number from 1 on, not 0."),
        (("--base", "huge", "--layers", "2"), "models.lock has no model 'huge'."),
    ],
)
def test_layers_that_cannot_be_left_out_are_named(
    cli: InProcess, home: Path, arguments: tuple[str, ...], said: str
) -> None:
    lock = (home / "models.lock").read_bytes()
    assert one_line(cli.run("prune", *arguments)).startswith(said)
    assert (home / "models.lock").read_bytes() == lock
    assert not (home / "cache" / "weights" / SMALL).exists()


def test_a_pruned_base_is_not_pruned_again(cli: InProcess) -> None:
    assert cli.run("prune", "--without", "1").status == 0
    said = one_line(cli.run("prune", "--base", SMALL, "--without", "1"))
    assert said == f"{SMALL} is not a whole model of one GGUF file: name another with --base."


def test_a_full_disk_is_one_sentence_and_leaves_neither_file_nor_entry(home: Path) -> None:
    lock = (home / "models.lock").read_bytes()
    command = CommandLine(home).command("optimize", "prune", "--without", "1,2", config="echo")
    done = run_on_full_disk(command, 30_000, {**CommandLine(home).environment(), **environment(home)})
    said = one_line(Finished(done.returncode, done.stdout, done.stderr))
    assert said.startswith("tiny-random-2-layers cannot be made in ")
    assert said.endswith(". Free some space there and retry.")
    assert not (home / "cache" / "weights" / "tiny-random-2-layers").exists()
    assert (home / "models.lock").read_bytes() == lock


@pytest.mark.train
@pytest.mark.filterwarnings("default")
def test_how_many_stay_is_enough_and_training_takes_the_base_by_its_name(home: Path) -> None:
    shutil.rmtree(home / "cache")
    write_training_data(home)
    data = home / "data" / "processed"
    (data / "calibration_car.csv").write_bytes((data / "calibration_sleep.csv").read_bytes())
    settings = {**training_environment(home), **environment(home)}
    process = CommandLine(home, {**settings, "EXPERT_ROUTER_KNOWLEDGE__PASSAGES": "2"})
    done = process.run("optimize", "prune", "--layers", "3", "--prompts", "4")
    assert done.status == 0, done.error
    folder = home / "cache" / "weights" / SMALL
    beside = json.loads((folder / f"{SMALL}.json").read_text("utf-8"))
    assert len(beside["influences"]) == 4
    assert beside["without_layers"] == [beside["influences"].index(min(beside["influences"]))]
    trial = ("--max-steps", "1", "--passes", "1", "--rank", "1", "--batch-size", "4", "--max-tokens", "2048")
    done = process.run("train", "expert", "sleep", "--base", SMALL, *trial)
    assert done.status == 0, done.error
    (report,) = home.glob("runs/sleep-*/report.json")
    assert json.loads(report.read_text("utf-8"))["base"] == SMALL
