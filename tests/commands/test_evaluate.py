"""``evaluate`` as people use it: on the echo engine, which knows nothing, and once on a real base."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from cli import CommandLine, Finished, one_line

from expert_router.commands import run
from expert_router.settings import load_settings
from support import CARS_QUESTION, OTHER_QUESTION, ROOT, SLEEP_QUESTION, make_home

if TYPE_CHECKING:
    from pathlib import Path

QUESTIONS = {
    "sleep": [
        (SLEEP_QUESTION, "Sleep with rapid eye movements.", "rapid eye"),
        ("Why sleep?", "It restores.", "Restores"),
    ],
    "car": [(CARS_QUESTION, "Carl Benz built it.", "Benz"), ("Which car came next?", "Another one.", "Daimler")],
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = make_home(tmp_path / "checkout")
    data = home / "data" / "processed"
    for name, rows in QUESTIONS.items():
        with (data / f"test_{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("question", "answer", "key"), *rows])
    shutil.copy(data / "routing_train.csv", data / "routing_test.csv")
    nobodys = home / "data" / "unanswerable"
    nobodys.mkdir()
    for name in ("sleep", "cars"):
        (nobodys / f"{name}.csv").write_text("question\nWho fed the three cats?\n", "utf-8")
    return home


@dataclass(frozen=True)
class InProcess:
    """The command in this process: the libraries that measure take seconds to import."""

    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: str) -> Finished:
        self.capsys.readouterr()
        status = run(["--config", "echo", *arguments])
        return Finished(status, *self.capsys.readouterr())


@pytest.fixture
def cli(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    monkeypatch.setenv("EXPERT_ROUTER_HOME", str(home))
    return InProcess(capsys)


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text("utf-8"))
    return found


def test_it_measures_router_and_experts_and_leaves_a_report(cli: InProcess, home: Path) -> None:
    """The echo says the question and no more, with instructions as without: the gate stays shut."""
    done = cli.run("evaluate", "--gate")
    (folder,) = (home / "runs").iterdir()
    assert folder.name.startswith("evaluation-")
    saved, refused = done.error.splitlines()[-2:]
    assert saved.startswith(f"Saved in {folder}: report.md, report.json, answers.jsonl, ")
    assert (done.status, refused.rpartition(": ")[2]) == (1, "cars (test), sleep (test)")
    found = report(folder)
    assert {e["expert"]: (e["questions"], list(e["variants"])) for e in found["experts"]} == {
        "cars": (2, ["base", "instructions"]),
        "sleep": (2, ["base", "instructions"]),
    }
    assert found["experts"][0]["gate"]["passed"] is False
    assert found["router"]["name"] == "lexical"
    assert sum(map(sum, found["router"]["confusion"])) == 10
    assert any("left out: base+knowledge, adapter, adapter+knowledge" in note for note in found["notes"])
    assert (folder / "report.md").read_text("utf-8").startswith(done.out.rstrip("\n"))


def test_public_questions_are_matched_by_alias_and_long_ones_are_not(cli: InProcess, tmp_path: Path) -> None:
    data = tmp_path / "public.jsonl"
    rows = [
        {"question": SLEEP_QUESTION, "aliases": ["REM sleep", "rapid"], "answer_type": "short"},
        {"question": "Why sleep?", "aliases": ["Why sleep? Because."], "answer_type": "long"},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    done = cli.run("evaluate", "--experts", "sleep", "--data", str(data), "--json", "--output", str(tmp_path / "new"))
    assert done.status == 0, done.error
    found = json.loads(done.out)
    assert found == report(tmp_path / "new")
    (expert,) = found["experts"]
    metrics = expert["variants"]["instructions"]["metrics"]
    assert expert["data"] == "public"
    assert (metrics["key"]["value"], metrics["key"]["n"], metrics["token_f1"]["n"]) == (1.0, 1, 2)
    assert metrics["chrf"] is None
    assert list(found["router"]["kinds"]) == ["sleep, public"]


def test_no_report_is_written_over(cli: InProcess, tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("mine", "utf-8")
    assert one_line(cli.run("evaluate", "--output", str(tmp_path))) == (
        f"{tmp_path} is there already: name a new folder with --output."
    )
    assert (tmp_path / "report.md").read_text("utf-8") == "mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--experts", "sleep,birds"), "--experts does not know birds. Known: cars, sleep."),
        (("--variants", "bass"), "--variants does not know bass."),
        (("--variants", "adapter"), "The expert 'cars' has none of these variants; it has: base, instructions."),
        (("--variants", "base", "--gate"), "--gate compares instructions of 'cars' with the base"),
        (("--limit", "0"), "--limit takes a number from 1 on, not 0."),
        (("--data", "nowhere.jsonl"), "nowhere.jsonl cannot be read"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(cli: InProcess, arguments: tuple[str, ...], said: str) -> None:
    assert one_line(cli.run("evaluate", *arguments)).startswith(said)


def test_without_its_packages_it_names_the_extra_before_anything_is_loaded(home: Path) -> None:
    program = "import sys; sys.modules['sacrebleu'] = None\nfrom expert_router.commands import run; sys.exit(run())"
    environment = CommandLine(home).environment()
    done = subprocess.run(
        [sys.executable, "-c", program, "--config", "echo", "evaluate"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = one_line(Finished(done.returncode, done.stdout, done.stderr))
    assert said.startswith("Evaluating needs more packages")
    assert said.endswith("pip install 'expert-router[evaluate]'")
    assert not (home / "runs").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_base_reads_and_is_measured_with_and_without_the_answer(home: Path, tmp_path: Path) -> None:
    """The tiny profile's base and encoder, two questions for each expert, on texts small enough to read at once."""
    texts = {
        "sleep/rem.md": "# REM sleep\nREM sleep is sleep with rapid eye movements.\n# Why\nSleep restores the body.\n",
        "sleep/naps.md": "# Naps\nA nap of twenty minutes helps.\n",
        "cars/early.md": "# Carl Benz\nCarl Benz built the first car.\n# Daimler\nGottlieb Daimler came next.\n",
        "cars/late.md": "# Ford\nHenry Ford came later.\n",
    }
    for name, text in texts.items():
        file = home / "data" / "knowledge" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    shutil.copytree(ROOT / "artifacts", home / "artifacts")
    cache = load_settings("tiny").paths.cache
    cli = CommandLine(home, {"EXPERT_ROUTER_PATHS__CACHE": str(cache), "EXPERT_ROUTER_SERVING__MAX_TOKENS": "24"})
    command = cli.command("evaluate", "--limit", "2", "--output", str(tmp_path / "new"), config="tiny")
    done = subprocess.run(command, env=cli.environment(), capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    found = report(tmp_path / "new")
    for expert in found["experts"]:
        reading = expert["variants"]["base+knowledge"]
        assert expert["questions"] == 2
        assert reading["held"]["value"] == 1.0
        assert reading["refusal"]["unanswerable"]["n"] == 1
        assert reading["refusal"]["recall"]["n"] == 2
        assert 0 < reading["metrics"]["similarity"]["value"] <= 1.0
        assert reading["latency"]["tokens"] > 0
        assert reading["failed"] == 0
    assert OTHER_QUESTION not in (tmp_path / "new" / "answers.jsonl").read_text("utf-8")
