"""``train expert`` and ``train install`` as people use them; training itself is on a llama of random weights."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cli import CommandLine, one_line
from tiny_gguf import write_lora

from expert_router.artifacts import load_expert, read_artifact, sha256_of
from expert_router.commands.train_expert import read_canaries, read_examples
from expert_router.commands.training_run import new_run_folder
from expert_router.errors import TrainingError
from expert_router.serving.parts import Parts
from expert_router.settings import load_settings
from support import ROOT
from training_home import BASE, QUESTIONS, READING, make_training_home, training_environment, write_training_data

if TYPE_CHECKING:
    from pathlib import Path

    from expert_router.settings import Settings
    from expert_router.types import Expert


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_training_home(tmp_path / "checkout")


@pytest.fixture
def cli(home: Path) -> CommandLine:
    return CommandLine(home, training_environment(home))


CANARY_ANSWER = {
    "prompt": "Question: Why nap?\n\n[1] Naps\nA nap helps.\n\nQuestion: Why nap?",
    "answer": "[1] A nap helps",
}


def finished_run(
    home: Path, *, expert: str = "sleep", base: str = BASE, canary: dict[str, str] | None = CANARY_ANSWER
) -> Path:
    """What ``train expert`` leaves, as far as installing reads it."""
    run = home / "runs" / "one"
    write_lora(run / "adapter", home / "tiny.gguf")
    curves = {"losses": [[1, 2.0]], "validation": [[1, 1.5]]}
    report = {"expert": expert, "base": base, "canary": canary, "loss": 1.5, **curves}
    (run / "report.json").write_text(json.dumps(report), "utf-8")
    return run


def sleep_expert(home: Path) -> Expert:
    return load_expert(home / "experts" / "sleep" / "expert.toml", home)


# Installing


def test_install_puts_the_adapter_beside_its_expert_with_the_runs_canary_and_report(
    cli: CommandLine, home: Path
) -> None:
    run = finished_run(home)
    before = (home / "experts" / "sleep" / "expert.toml").read_text("utf-8")
    done = cli.run("train", "install", "sleep", "--run", str(run))
    digest = sha256_of(run / "adapter" / "adapter_model.safetensors")
    assert (done.status, done.error) == (0, "")
    assert done.out == (
        f"sleep answers on {BASE} with the adapter {digest[:12]} from the next start on.\n"
        "Next: expert-router train abstention sleep, which finds when it should refuse.\n"
    )
    adapter = sleep_expert(home).adapters[BASE]
    assert adapter.sha256 == digest
    manifest = read_artifact(adapter.path)
    assert manifest["canary"] == CANARY_ANSWER
    assert manifest["base_sha256"] == sha256_of(home / "tiny.gguf")
    assert manifest["report"] == {"expert": "sleep", "base": BASE, "loss": 1.5}
    assert (home / "experts" / "sleep" / "expert.toml").read_text("utf-8").startswith(before)


def test_an_installed_adapter_that_does_not_give_its_canary_is_refused_and_the_base_is_silent(
    cli: CommandLine, home: Path
) -> None:
    assert cli.run("train", "install", "sleep", "--run", str(finished_run(home))).status == 0
    engine = {"EXPERT_ROUTER_ENGINE__NAME": "openvino", "EXPERT_ROUTER_KNOWLEDGE__PASSAGES": "0"}
    asking = CommandLine(home, {**cli.settings, **engine})
    done = asking.run("ask", "--model", "sleep", "Hello")
    assert (done.status, done.out) == (2, "")
    said = done.error.splitlines()[-1]
    assert said.startswith(f"expert-router: {BASE}+sleep@")
    assert f"is refused: asked {CANARY_ANSWER['prompt']!r} it answered " in said
    assert f" instead of {CANARY_ANSWER['answer']!r}. " in said


def test_a_run_whose_adapter_nothing_could_prove_is_not_installed(cli: CommandLine, home: Path) -> None:
    run = finished_run(home, canary=None)
    done = cli.run("train", "install", "sleep", "--run", str(run))
    assert one_line(done).startswith(f"The adapter of {run} is sure of no answer that its base would not give as well")
    assert sleep_expert(home).adapters == {}
    assert not list(home.glob("experts/*/adapters"))


def test_a_run_from_before_canaries_were_recorded_is_not_installed(cli: CommandLine, home: Path) -> None:
    run = finished_run(home)
    report = json.loads((run / "report.json").read_text("utf-8"))
    del report["canary"]
    (run / "report.json").write_text(json.dumps(report), "utf-8")
    said = one_line(cli.run("train", "install", "sleep", "--run", str(run)))
    assert said == f"{run} is not the folder of a finished run: KeyError('canary')"


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
        _ = [new_run_folder(tmp_path, "sleep", "tiny.gguf") for _ in range(50)]
    assert all(folder.is_dir() for folder in tmp_path.iterdir())


def test_a_finished_run_is_not_gone_on_with_and_nothing_is_written(cli: CommandLine, home: Path) -> None:
    run = finished_run(home)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    done = cli.run("train", "expert", "sleep", "--resume", str(run))
    assert (done.status, done.error) == (0, "")
    assert done.out.splitlines() == [
        f"{run} is finished; nothing was trained.",
        f"Next: expert-router train install sleep --run {run}",
    ]
    assert cli.run("train", "expert", "sleep", "--resume", str(run), "--install").status == 0
    assert BASE in sleep_expert(home).adapters
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_run_that_does_not_exist_is_not_gone_on_with(cli: CommandLine, home: Path) -> None:
    done = cli.run("train", "expert", "sleep", "--resume", str(home / "runs" / "typo"))
    assert one_line(done) == f"There is no run to go on with in {home / 'runs' / 'typo'}."


def test_the_specifications_mistral_is_the_base_of_its_profile_and_takes_unsloth_on_a_gpu(
    cli: CommandLine, home: Path
) -> None:
    """It gets past the question what the base is, since that is no GGUF file; here there is no GPU, or no torch."""
    settings = {key: value for key, value in cli.settings.items() if not key.endswith("BASE_MODEL")}
    done = CommandLine(home, settings).run("train", "expert", "sleep", "--accelerator", "unsloth", config="mistral-7b")
    assert re.match(r"Unsloth (needs an NVIDIA GPU|cannot be imported)", one_line(done))
    assert not (home / "runs").exists()


def test_unsloth_does_not_train_from_a_gguf_file_and_says_what_to_give(cli: CommandLine, home: Path) -> None:
    done = cli.run("train", "expert", "sleep", "--accelerator", "unsloth")
    said = one_line(done)
    assert said.startswith(
        "Unsloth does not train from a GGUF file (tiny.gguf): name with --base the folder or the hub"
    )
    assert not (home / "runs").exists()


# Training


@pytest.fixture
def prepared(home: Path) -> Path:
    return write_training_data(home)


TRIAL = ("train", "expert", "sleep", "--max-steps", "2", "--passes", "1", "--rank", "1", "--batch-size", "4")


@pytest.mark.train
@pytest.mark.usefixtures("prepared")
def test_a_trial_run_leaves_its_card_and_says_how_to_install_it(cli: CommandLine, home: Path) -> None:
    done = cli.run(*TRIAL, "--max-tokens", "2048")
    assert done.status == 0, done.error
    (run,) = (home / "runs").iterdir()
    counted, losses, saved, then = [line for line in done.out.splitlines() if not line.startswith("{")]
    assert counted.endswith(" of them answerable.")
    assert losses.startswith("Validation loss ")
    assert (saved, then) == (f"Saved in {run}.", f"Next: expert-router train install sleep --run {run}")
    report = json.loads((run / "report.json").read_text("utf-8"))
    assert (report["expert"], report["base"], report["steps"]) == ("sleep", BASE, 2)
    assert report["training"]["rank"] == 1
    assert report["examples"] == int(counted.split()[0])
    assert {"card.md", "loss.png", "report.json", "adapter", "tensorboard"} <= {path.name for path in run.iterdir()}


@pytest.mark.train
@pytest.mark.usefixtures("prepared")
def test_a_run_that_has_learnt_too_little_to_be_known_is_kept_and_not_installed(cli: CommandLine, home: Path) -> None:
    done = cli.run(*TRIAL, "--install")
    (run,) = (home / "runs").iterdir()
    assert done.status == 2
    assert done.out.splitlines()[-1] == f"Saved in {run}."
    assert done.error.splitlines()[-1].startswith(f"expert-router: The adapter of {run} is sure of no answer that its")
    report = json.loads((run / "report.json").read_text("utf-8"))
    assert (report["canary"], report["steps"]) == (None, 2)
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert sleep_expert(home).adapters == {}


@pytest.fixture
def configured(cli: CommandLine, home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of the command in this process."""
    for name, value in {**cli.settings, "EXPERT_ROUTER_HOME": str(home)}.items():
        monkeypatch.setenv(name, value)
    return load_settings("echo")


def test_an_adapter_may_be_known_by_validation_questions_with_what_serving_finds_for_them(
    configured: Settings, home: Path, prepared: Path
) -> None:
    expert = sleep_expert(home)
    (prepared / "train_sleep.csv").unlink()
    who, *others = read_canaries(Parts(configured, {"sleep": expert}, progress=False), prepared, expert)
    assert who == "Which expert are you?"
    nap, rem = "Question: How long should a nap be?", f"Question: {QUESTIONS[1][0]}"
    assert [text.split("\n") for text in others] == [
        [nap, "", "[1] Naps", "A nap of twenty minutes helps for hours.", "", nap],
        [rem, "", "[1] REM sleep", "In REM sleep the eyes dart about under closed lids.", "", rem],
    ]


def test_questions_about_passages_are_learnt_from_and_not_measured_on(
    configured: Settings, home: Path, prepared: Path
) -> None:
    expert = sleep_expert(home)
    _, about, _ = READING

    def asked(split: str, expert: Expert) -> set[str]:
        parts = Parts(configured, {"sleep": expert}, progress=False)
        examples = read_examples(parts, prepared, expert, split, [0])
        return {e.user.rpartition("Question: ")[2] for e in examples if e.answerable}

    own = {question for question, *_ in QUESTIONS}
    assert asked("train", expert) == {*own, about}
    assert asked("calibration", expert) == own
    assert asked("train", replace(expert, reading=None)) == own
    assert asked("train", replace(expert, knowledge=None)) == own


@pytest.mark.train
@pytest.mark.usefixtures("prepared")
def test_an_expert_that_reads_nothing_learns_plain_answers(cli: CommandLine) -> None:
    plain = CommandLine(cli.home, {**cli.settings, "EXPERT_ROUTER_KNOWLEDGE__PASSAGES": "0"})
    done = plain.run(*TRIAL, "--preview")
    assert done.status == 0, done.error
    assert done.out.startswith("26 examples, 2 of them answerable.\n")
    assert "[1]" not in done.out


@pytest.mark.train
@pytest.mark.usefixtures("prepared")
def test_two_processes_train_one_adapter(cli: CommandLine, home: Path) -> None:
    """As on a machine with several GPUs; here on its processor."""
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--mixed_precision", "no"]
    program = ["-m", "scripts.fine_tune_model", *TRIAL[2:], "--micro-batch-size", "2"]
    environment = {**cli.environment(), "PYTHONPATH": str(ROOT), "EXPERT_ROUTER_CONFIG": "echo"}
    done = subprocess.run(
        [sys.executable, *launch, *program],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = (home / "runs").iterdir()
    assert done.stdout.count("Saved in") == 1
    report = json.loads((run / "report.json").read_text("utf-8"))
    assert report["steps"] == 2
    assert (run / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.train
@pytest.mark.usefixtures("prepared")
def test_preview_shows_what_the_loss_counts_and_trains_nothing(cli: CommandLine, home: Path) -> None:
    done = cli.run(*TRIAL, "--max-tokens", "2048", "--whole-answers", "1", "--preview")
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
