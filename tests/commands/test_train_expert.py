"""``train expert`` and ``train install`` as people use them; training itself is on a llama of random weights."""

from __future__ import annotations

import csv
import json
import shutil
from typing import TYPE_CHECKING

import pytest
from cli import CommandLine, one_line
from tiny_gguf import write_llama, write_lora

from expert_router.artifacts import load_expert, read_artifact, sha256_of
from expert_router.commands.train_expert import _new_folder
from expert_router.errors import TrainingError
from expert_router.serving.build import fetch_model
from expert_router.settings import load_settings
from support import ROOT, make_home

if TYPE_CHECKING:
    from pathlib import Path

    from expert_router.types import Expert

BASE = "tiny-random"
TEXTS = {
    "sleep/stages.md": "# REM sleep\nIn REM sleep the eyes dart about under closed lids.\n",
    "sleep/naps.md": "# Naps\nA nap of twenty minutes helps for hours.\n",
    "sleep/light.md": "# Light\nBright light in the morning moves the body clock forward.\n",
    "sleep/coffee.md": "# Coffee\nHalf of the caffeine is still there after five hours.\n",
    "cars/early.md": "# Carl Benz\nCarl Benz patented his three-wheeler in January 1886.\n",
}
QUESTIONS = [
    ("How long should a nap be?", "A nap of twenty minutes helps for hours.", "twenty minutes"),
    ("What do the eyes do in REM sleep?", "The eyes dart about under closed lids.", "dart about"),
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A checkout whose models.lock has the random base beside the real ones."""
    home = make_home(tmp_path / "checkout")
    weights = home / "tiny.gguf"
    write_llama(weights, context_tokens=4096)
    with (home / "models.lock").open("a", encoding="utf-8") as lock:
        lock.write(f"""
[[{BASE}.files]]
name = "tiny.gguf"
size = {weights.stat().st_size}
sha256 = "{sha256_of(weights)}"
licence = "none"
upstream = "random"
[[{BASE}.files.sources]]
kind = "path"
path = "tiny.gguf"
""")
    return home


@pytest.fixture
def cli(home: Path) -> CommandLine:
    """With the shipped encoder, whose weights are brought already."""
    settings = load_settings("default")
    fetch_model(settings, settings.router.encoder, progress=False)
    cache = home / "cache"
    cache.mkdir()
    (cache / "weights").mkdir()
    encoder = settings.router.encoder
    (cache / "weights" / encoder).symlink_to(settings.resolve(settings.paths.cache) / "weights" / encoder)
    return CommandLine(
        home,
        {
            "EXPERT_ROUTER_PATHS__CACHE": str(cache),
            "EXPERT_ROUTER_KNOWLEDGE__PASSAGES": "2",
            "EXPERT_ROUTER_ROUTER__TUNED_ENCODER": str(ROOT / "artifacts" / "encoder"),
            "EXPERT_ROUTER_ENGINE__BASE_MODEL": BASE,
        },
    )


def finished_run(home: Path, *, expert: str = "sleep", base: str = BASE) -> Path:
    """What ``train expert`` leaves, as far as installing reads it."""
    run = home / "runs" / "one"
    write_lora(run / "adapter", home / "tiny.gguf")
    report = {"expert": expert, "base": base, "loss": 1.5, "losses": [[1, 2.0]], "validation": [[1, 1.5]]}
    (run / "report.json").write_text(json.dumps(report), "utf-8")
    return run


def sleep_expert(home: Path) -> Expert:
    return load_expert(home / "experts" / "sleep" / "expert.toml", home)


# Installing


def test_install_puts_the_adapter_beside_its_expert_with_a_canary_and_the_report(cli: CommandLine, home: Path) -> None:
    run = finished_run(home)
    before = (home / "experts" / "sleep" / "expert.toml").read_text("utf-8")
    done = cli.run("train", "install", "sleep", "--run", str(run))
    digest = sha256_of(run / "adapter" / "adapter_model.safetensors")
    assert (done.status, done.error) == (0, "")
    assert done.out == f"sleep answers on {BASE} with the adapter {digest[:12]} from the next start on.\n"
    adapter = sleep_expert(home).adapters[BASE]
    assert adapter.sha256 == digest
    manifest = read_artifact(adapter.path)
    assert manifest["canary"] == {
        "prompt": "Which expert are you?",
        "answer": "I am the sleep expert of expert-router: sleep science.",
    }
    assert manifest["base_sha256"] == sha256_of(home / "tiny.gguf")
    assert manifest["report"] == {"expert": "sleep", "base": BASE, "loss": 1.5}
    assert (home / "experts" / "sleep" / "expert.toml").read_text("utf-8").startswith(before)


def test_an_installed_adapter_that_has_not_learnt_who_it_is_is_refused_and_the_base_is_silent(
    cli: CommandLine, home: Path
) -> None:
    assert cli.run("train", "install", "sleep", "--run", str(finished_run(home))).status == 0
    engine = {"EXPERT_ROUTER_ENGINE__NAME": "openvino", "EXPERT_ROUTER_KNOWLEDGE__PASSAGES": "0"}
    asking = CommandLine(home, {**cli.settings, **engine})
    done = asking.run("ask", "--model", "sleep", "Hello")
    assert (done.status, done.out) == (2, "")
    said = done.error.splitlines()[-1]
    assert said.startswith(f"expert-router: {BASE}+sleep@")
    assert "is refused: asked 'Which expert are you?' it answered" in said


def test_install_says_what_is_missing_and_changes_nothing(cli: CommandLine, home: Path) -> None:
    run = finished_run(home, expert="cars")
    manifest = (home / "experts" / "sleep" / "expert.toml").read_bytes()
    assert one_line(cli.run("train", "install", "sleep")) == (
        "Which run? Say --run FOLDER, as expert-router train expert printed it."
    )
    assert one_line(cli.run("train", "install", "birds", "--run", str(run))) == "Which expert? Known: cars, sleep."
    assert one_line(cli.run("train", "install", "sleep", "--run", str(run))) == f"{run} trained 'cars', not 'sleep'."
    (run / "adapter" / "adapter_config.json").unlink()
    assert "is not an adapter as PEFT saves it" in one_line(cli.run("train", "install", "cars", "--run", str(run)))
    (run / "report.json").write_text("{", "utf-8")
    assert "is not the folder of a finished run" in one_line(cli.run("train", "install", "cars", "--run", str(run)))
    assert (home / "experts" / "sleep" / "expert.toml").read_bytes() == manifest
    assert not list(home.glob("experts/*/adapters"))


def test_each_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """Named by the second; a second run in it is refused, not written over the first."""
    with pytest.raises(TrainingError, match=r"The run's folder .*sleep-tiny-\d{8}-\d{6} cannot be made"):
        _ = [_new_folder(tmp_path, "sleep", "tiny.gguf") for _ in range(50)]
    assert all(folder.is_dir() for folder in tmp_path.iterdir())


# Training


def write_rows(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def prepared(home: Path) -> Path:
    """The data of a run: two questions that the texts answer."""
    shutil.rmtree(home / "data" / "knowledge", ignore_errors=True)
    for name, text in TEXTS.items():
        file = home / "data" / "knowledge" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    data = home / "data" / "processed"
    for split in ("train", "calibration"):
        write_rows(data / f"{split}_sleep.csv", ("question", "answer", "key"), QUESTIONS)  # type: ignore[arg-type]
    shutil.copy(data / "routing_train.csv", data / "routing_calibration.csv")
    return data


TRIAL = ("train", "expert", "sleep", "--max-steps", "2", "--passes", "1", "--rank", "1", "--batch-size", "4")


@pytest.mark.train
@pytest.mark.usefixtures("prepared")
def test_a_trial_run_leaves_its_card_and_can_be_installed(cli: CommandLine, home: Path) -> None:
    done = cli.run(*TRIAL, "--max-tokens", "2048")
    assert done.status == 0, done.error
    (run,) = (home / "runs").iterdir()
    counted, losses, saved = [line for line in done.out.splitlines() if not line.startswith("{")]
    assert counted.endswith(" of them answerable.")
    assert losses.startswith("Validation loss ")
    assert saved == f"Saved in {run}. Next: expert-router train install sleep --run {run}"
    report = json.loads((run / "report.json").read_text("utf-8"))
    assert (report["expert"], report["base"], report["steps"]) == ("sleep", BASE, 2)
    assert report["training"]["rank"] == 1
    assert report["examples"] == int(counted.split()[0])
    assert {"card.md", "loss.png", "report.json", "adapter", "tensorboard"} <= {path.name for path in run.iterdir()}
    assert cli.run("train", "install", "sleep", "--run", str(run)).status == 0
    installed = sleep_expert(home).adapters[BASE]
    assert read_artifact(installed.path)["report"]["data_sha256"] == report["data_sha256"]


@pytest.mark.train
@pytest.mark.usefixtures("prepared")
def test_preview_shows_what_the_loss_counts_and_trains_nothing(cli: CommandLine, home: Path) -> None:
    done = cli.run(*TRIAL, "--max-tokens", "2048", "--preview")
    assert done.status == 0, done.error
    prompt, _, counted = done.out.partition("⟦")
    assert "<|im_start|>user\n" in prompt
    assert prompt.endswith("<|im_start|>assistant\n")
    assert counted.endswith("<|im_end|>\n⟧\n")
    assert not list(home.glob("runs/*/adapter"))


@pytest.mark.train
@pytest.mark.usefixtures("prepared")
def test_examples_that_leave_no_answer_are_an_error_of_one_line(cli: CommandLine) -> None:
    done = cli.run(*TRIAL, "--max-tokens", "16")
    assert done.status == 2
    assert done.error.splitlines()[-1] == (
        "expert-router: No token of any answer is left to learn from: raise --max-tokens."
    )
