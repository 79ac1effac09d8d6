"""The command as a user meets it: its table, its notes, its errors and exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
EXPERT = """
name = "cars"
title = "Cars"
description = "About cars."
instructions = "Answer."
[data]
questions = "data/raw/car_history_qa.csv"
split_name = "car"
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "experts/cars").mkdir(parents=True)
    (tmp_path / "experts/cars/expert.toml").write_text(EXPERT)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/default.toml").touch()
    (tmp_path / "data/raw").mkdir(parents=True)
    rows = "".join(f"{word} one,yes,yes,t\n" for word in ("alpha", "beta", "gamma", "delta"))
    (tmp_path / "data/raw/car_history_qa.csv").write_text("question,answer,key,topic\n" + rows + "bad\n")
    return tmp_path


def command(home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.data_preparation", *options],
        cwd=CHECKOUT,
        env={**os.environ, "EXPERT_ROUTER_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_table_notes_and_place(home: Path) -> None:
    done = command(home)
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert lines[0].split() == ["file", "rows", "kept", "duplicates", "quarantined", "train", "calibration", "test"]
    assert lines[1].split()[:5] == ["data/raw/car_history_qa.csv", "5", "4", "0", "1"]
    assert lines[2].split()[:5] == ["all", "5", "4", "0", "1"]
    assert lines[3].startswith("note: there is no out_of_scope.csv")
    assert lines[-1].startswith(f"written to {home}/data/processed: see manifest.json")
    assert done.stderr == ""


def test_dry_run_lists_what_is_wrong(home: Path) -> None:
    done = command(home, "--dry-run")
    assert (
        "data/raw/car_history_qa.csv:6: the row has 1 cells where the header has 4\nnothing was written\n"
        in done.stdout
    )
    assert not (home / "data/processed").exists()


def test_quiet_prints_nothing(home: Path) -> None:
    done = command(home, "--quiet", "--seed", "3", "--output", str(home / "out"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert '"seed": 3' in (home / "out/manifest.json").read_text()


def test_error_names_the_file_and_exits_2(home: Path) -> None:
    own = home / "own.csv"
    own.write_text("a,b\n")
    done = command(home, "--questions", f"cars={own}")
    assert done.returncode == 2
    assert "own.csv:1: the columns question, answer, key, topic not found" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--questions", "cars"), "'cars' is not NAME=FILE"), (("--raw", "/no/such"), "there is no folder /no/such")],
)
def test_wrong_options_exit_2(home: Path, options: tuple[str, ...], message: str) -> None:
    done = command(home, *options)
    assert done.returncode == 2
    assert message in done.stderr
