"""``bench soak``: a real server and all its clients, for seconds here and for three minutes in the slow tier."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from cli import CommandLine, one_line

from random_home import make_random_home
from support import write_examples

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = make_random_home(tmp_path / "checkout")
    write_examples(home / "data" / "processed" / "routing_test.csv")
    return home


def test_a_short_soak_asks_in_every_way_and_finds_nothing_left_behind(home: Path, tmp_path: Path) -> None:
    output = tmp_path / "soak"
    done = CommandLine(home).run("bench", "soak", "--minutes", "0.06", "--output", str(output))
    assert done.status in {0, 1}, done.error
    report = json.loads((output / "report.json").read_text())
    assert [each for each in report["complaints"] if "memory grew" not in each] == []
    assert report["passed"] == (done.status == 0)
    assert {"short stream", "whole", "leaves midway", "an expert comes and goes"} <= report["ends"].keys()
    assert report["ends"]["an expert comes and goes"] == {"asked: 200, removed: 200": 1}
    assert report["after"]["tasks"] <= report["before"]["tasks"]
    assert {"report.json", "report.md", "soak.png"} >= {file.name for file in output.iterdir()}


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize("config", ["echo", "random"])
def test_three_minutes_leave_nothing_behind(home: Path, tmp_path: Path, config: str) -> None:
    """With an attention cache that is full after seconds; one of a GiB takes pages for longer than that."""
    small = {"EXPERT_ROUTER_ENGINE__KV_CACHE_BYTES": str(4 * 1024**2)}
    cli = CommandLine(home, {"EXPERT_ROUTER_PATHS__CACHE": str(home / "cache"), **small})
    output = tmp_path / "soak"
    done = cli.run("bench", "soak", "--minutes", "3", "--output", str(output), config=config, within_s=480)
    complaints = json.loads((output / "report.json").read_text())["complaints"]
    assert complaints == [], done.error
    assert done.status == 0


def test_what_cannot_be_measured_is_refused(home: Path) -> None:
    cli = CommandLine(home)
    assert "--minutes takes a number above 0" in one_line(cli.run("bench", "soak", "--minutes", "0"))
