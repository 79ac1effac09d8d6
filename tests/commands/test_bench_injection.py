from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cli import one_line

from support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from cli import CommandLine


def test_an_engine_that_repeats_what_it_is_told_obeys_what_is_in_the_question(cli: CommandLine) -> None:
    cases = str(ROOT / "data" / "injection" / "cases.jsonl")
    done = cli.run("bench", "injection", "--data", cases, "--json")
    assert (done.status, done.error) == (0, "")
    report = json.loads(done.out)
    assert report["engine"] == "echo"
    assert "link-1" in report["succeeded"]
    assert report["kinds"]["history"]["value"] == 0
    table = cli.run("bench", "injection", "--data", cases).out
    assert table.count(" obeyed ") == len(report["kinds"]) + 1


def test_without_cases_it_is_one_line(cli: CommandLine, tmp_path: Path) -> None:
    assert "cannot be read" in one_line(cli.run("bench", "injection", "--data", str(tmp_path / "none.jsonl")))
