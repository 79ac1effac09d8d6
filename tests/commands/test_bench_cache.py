from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cli import one_line

if TYPE_CHECKING:
    from cli import CommandLine

WAYS = ["engine alone", "engine, miss", "engine, hit", "dispatcher, no cache", "dispatcher, miss", "dispatcher, hit"]


def test_each_way_is_timed_and_answered_from_where_it_says(cli: CommandLine) -> None:
    done = cli.run("bench", "cache", "--answers", "20", "--json")
    assert (done.status, done.error) == (0, "")
    measured = json.loads(done.out)
    assert (measured["store"], measured["router"]) == ("memory", "lexical")
    assert [result["way"] for result in measured["results"]] == WAYS
    for result in measured["results"]:
        assert result["answers"] == 20
        assert 0 < result["p50_ms"] <= result["p95_ms"] <= result["p99_ms"]
    assert measured["results"][2]["p50_ms"] < 1.0


def test_the_table_has_a_line_for_each(cli: CommandLine) -> None:
    done = cli.run("bench", "cache", "--answers", "2")
    assert done.status == 0
    assert [way for way in WAYS if done.out.count(f"  {way} ") == 1] == WAYS


@pytest.mark.parametrize(
    ("settings", "arguments", "said"),
    [
        ({"EXPERT_ROUTER_CACHE__STORE": "none"}, (), "cache.store is none"),
        ({}, ("--answers", "0"), "--answers takes a number from 1 on, not 0."),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    cli: CommandLine, settings: dict[str, str], arguments: tuple[str, ...], said: str
) -> None:
    done = replace(cli, settings=settings).run("bench", "cache", *arguments)
    assert said in one_line(done)
