from __future__ import annotations

import json
from typing import TYPE_CHECKING

from support import write_examples

if TYPE_CHECKING:
    from cli import CommandLine


def test_each_answer_has_the_length_that_is_asked_for_unless_it_may_end_as_it_ends(cli: CommandLine) -> None:
    write_examples(cli.home / "data/processed/routing_test.csv")
    options = ("bench", "engine", "--clients", "1,2", "--requests", "3", "--max-tokens", "50", "--model", "sleep")
    exact = json.loads(cli.run(*options, "--json").out)
    assert [(result["requests"], result["tokens"]) for result in exact["results"]] == [(3, 150), (6, 300)]
    natural = json.loads(cli.run(*options, "--json", "--natural").out)
    assert all(3 * 5 < result["tokens"] / result["clients"] < 3 * 20 for result in natural["results"])
    assert "exactly 50 tokens an answer" in cli.run(*options).out.splitlines()[1]
