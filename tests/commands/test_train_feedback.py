"""``train router --with-feedback`` as people use it, on a few hundred of the project's questions."""

from __future__ import annotations

import csv
import json
import re
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from cli import Finished, one_line

from expert_router.commands import run
from expert_router.decision_log import DecisionStore, LoggedDecision, stamp
from expert_router.types import Feedback
from support import ROOT, make_home
from training_home import training_environment, write_training_data

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

SIZES = {"train": 200, "calibration": 60, "test": 120}
"""Questions of each field and of none, in each split."""


def project_rows(split: str) -> dict[str, list[dict[str, str]]]:
    """The project's questions by what they need; of several experts, none."""
    with (ROOT / "data" / "processed" / f"routing_{split}.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["trap"]]
    return {needed: [row for row in rows if row["experts"] == needed] for needed in ("cars", "sleep", "")}


@pytest.fixture(scope="module")
def spare() -> dict[str, list[str]]:
    """Training questions of the project that the small router has not seen."""
    return {needed: [row["query"] for row in rows[500:]] for needed, rows in project_rows("train").items()}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkout with a router that was fitted on few questions."""
    home = make_home(tmp_path_factory.mktemp("checkout"))
    prepared = write_training_data(home)
    for split, size in SIZES.items():
        rows = [row for group in project_rows(split).values() for row in islice(group, size)]
        with (prepared / f"routing_{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {**training_environment(home), "EXPERT_ROUTER_HOME": str(home)}.items():
            environment.setenv(name, value)
        yield home


@pytest.fixture(scope="module")
def fitted(home: Path) -> Path:
    assert run(["--config", "default", "train", "router"]) == 0
    return home / "artifacts" / "router"


def train(capsys: pytest.CaptureFixture[str], log: Path, *arguments: str) -> Finished:
    capsys.readouterr()
    status = run(["--config", "default", "train", "router", "--with-feedback", str(log), *arguments])
    return Finished(status, *capsys.readouterr())


def write_log(path: Path, said: Iterable[tuple[str, Feedback]]) -> Path:
    store = DecisionStore(path, retention_days=None, max_rows=10_000)
    for number, (question, feedback) in enumerate(said):
        identifier = f"d{number}"
        store.add(
            LoggedDecision(identifier, stamp(), question, (), "embedding", "1", None, "single", ("sleep",), None, {})
        )
        assert store.rate(identifier, feedback)
    store.close()
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def accuracies(done: Finished, row: str) -> tuple[int, float, float]:
    """How many questions a row of the table is of, and how many per cent of them were right before and are now."""
    found = re.search(rf"\| {row} \| (\d+) \| ([\d.]+)% .*? \| ([\d.]+)% ", done.out)
    assert found is not None, done.out
    return int(found[1]), float(found[2]), float(found[3])


def test_without_a_router_in_place_there_is_nothing_to_compare_with(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not (home / "artifacts").exists()  # first of all, before another test fits one
    log = write_log(tmp_path / "log.sqlite", [("Is a van a car?", Feedback(None, ("cars",)))])
    done = train(capsys, log)
    assert (done.status, "There is no router in" in done.error) == (2, True)


def test_what_people_said_is_learnt_and_nothing_is_forgotten(
    fitted: Path, tmp_path: Path, spare: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    measured = project_rows("test")["cars"][0]["query"]
    right = [(text, Feedback(None, (needed,) if needed else ())) for needed in spare for text in spare[needed][:8]]
    log = write_log(tmp_path / "log.sqlite", [*right, (measured, Feedback(None, ("sleep",)))])
    done = train(capsys, log, "--output", str(tmp_path / "new"))
    assert done.status == 0, done.error
    learnt, kept_out = map(int, re.findall(r"Feedback: (\d+) questions to learn from, (\d+) kept out", done.out)[0])
    assert learnt + kept_out == 24
    assert "1 are calibration or test questions." in done.out
    assert accuracies(done, "feedback kept out")[0] == kept_out
    assert accuracies(done, "feedback learnt from")[0] == learnt
    count, before, after = accuracies(done, "the project's test questions")
    assert count == 360
    assert after >= before - 1.0
    assert json.loads((tmp_path / "new" / "manifest.json").read_text("utf-8"))["feedback"] == learnt
    assert "feedback" not in json.loads((fitted / "manifest.json").read_text("utf-8"))


def test_a_router_that_forgets_is_not_saved_unless_it_is_forced(
    fitted: Path, tmp_path: Path, spare: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [(text, Feedback("down", ("sleep",))) for text in spare["cars"][:100]]
    log = write_log(tmp_path / "log.sqlite", wrong)
    before = contents(fitted)
    done = train(capsys, log)
    assert done.status == 1
    assert "Not saved: the router in place stays as it was." in done.error
    assert "saved in" not in done.out.lower()
    assert contents(fitted) == before
    _, was, now = accuracies(done, "the project's test questions")
    assert now < was - 1.0
    forced = train(capsys, log, "--force", "--output", str(tmp_path / "forced"))
    assert forced.status == 0
    assert "saved all the same (--force)" in forced.error
    assert (tmp_path / "forced" / "manifest.json").is_file()


@pytest.mark.usefixtures("fitted")
def test_a_log_without_anything_to_learn_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_log(tmp_path / "log.sqlite", [("Is a van a car?", Feedback("down"))])
    done = train(capsys, log)
    assert done.status == 2
    assert "has no feedback to learn from: 1 decisions" in one_line(done)
    assert one_line(train(capsys, tmp_path / "none.sqlite")).startswith("There is no decision log")


@pytest.mark.usefixtures("home")
def test_only_the_router_learns_from_feedback(capsys: pytest.CaptureFixture[str]) -> None:
    status = run(["--config", "default", "train", "encoder", "--with-feedback", "log.sqlite"])
    assert one_line(Finished(status, *capsys.readouterr())).startswith("--with-feedback is for the router")
