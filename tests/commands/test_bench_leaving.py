from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cli import CommandLine

BRIEFLY = ("bench", "leaving", "--times", "1", "--words", "20")


def test_every_way_in_is_left_at_every_point(cli: CommandLine) -> None:
    done = cli.run(*BRIEFLY, "--json")
    assert done.status == 0, done.error
    measured = json.loads(done.out)
    assert [(each["way"], each["point"], each["cancelled"]) for each in measured["results"]] == [
        (way, point, int(point != "queued"))
        for way in ("stream", "whole", "query", "page")
        for point in ("queued", "prompt", "answer")
    ]
    assert all(0 < each["worst_ms"] < 1000 for each in measured["results"])
    assert len(measured["batch_s"]) == 1


def test_the_table_says_it_in_words(cli: CommandLine) -> None:
    assert "A batch that is interrupted is over after" in cli.run(*BRIEFLY).out
