from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cli import CommandLine

PROGRAM = """
from argparse import ArgumentParser
from expert_router.commands import bench_leaving
from expert_router.settings import load_settings
parser = ArgumentParser()
bench_leaving.add_arguments(parser)
args = parser.parse_args(["--times", "1", "--words", "20"])
for args.json in (True, False):
    assert bench_leaving.run(args, load_settings("echo")) == 0
"""


def test_every_way_in_is_left_at_every_point(cli: CommandLine) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=cli.environment(), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    measured, table = json.JSONDecoder().raw_decode(done.stdout)[0], done.stdout
    assert [(each["way"], each["point"], each["cancelled"]) for each in measured["results"]] == [
        (way, point, int(point != "queued"))
        for way in ("stream", "whole", "query", "page")
        for point in ("queued", "prompt", "answer")
    ]
    assert all(0 < each["worst_ms"] < 1000 for each in measured["results"])
    assert len(measured["batch_s"]) == 1
    assert "A batch that is interrupted is over after" in table
