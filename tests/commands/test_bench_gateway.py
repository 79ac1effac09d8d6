from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cli import CommandLine, one_line

from support import make_home, write_examples

QUICK = ("--seconds", "0.2", "--rounds", "1", "--clients", "1")


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    home = make_home(tmp_path_factory.mktemp("checkout"))
    write_examples(home / "data" / "processed" / "routing_test.csv")
    return CommandLine(home)


def test_each_way_is_asked_by_each_number_of_clients_whole_and_streamed(cli: CommandLine) -> None:
    done = cli.run("bench", "gateway", *QUICK[:4], "--clients", "1,2", "--json")
    assert done.status == 0, done.error
    measured = json.loads(done.out)
    kinds = [(streamed, clients) for streamed in (False, True) for clients in (1, 2)]
    assert [(r["streamed"], r["clients"], r["way"]) for r in measured["results"]] == [
        (*kind, way) for kind in kinds for way in ("direct", "named", "auto")
    ]
    for result in measured["results"]:
        assert (result["errors"], result["answers"] > 0) == (0, True)
        assert 0 < result["first_ms"][0] <= result["ms"][0] <= result["ms"][1]
        assert (result["added_ms"][0] > 0) == (result["way"] != "direct")
    assert 20 < measured["packages"]["ours"] < 60
    assert measured["memory_bytes"]["ours"] > 20e6


def test_the_table_says_how_to_compare(cli: CommandLine) -> None:
    done = cli.run("bench", "gateway", *QUICK)
    assert [line.split()[:3] for line in done.out.splitlines()[2:8]] == [
        ["1", kind, way] for kind in ("whole", "streamed") for way in ("direct", "named", "auto")
    ]
    assert "pip install 'litellm[proxy]'" in done.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--clients", "1,some"), "--clients takes numbers joined by commas, not '1,some'."),
        (("--clients", "0"), "from 1 on"),
        (("--seconds", "0"), "at most 600 s"),
        (("--litellm", sys.executable), "litellm[proxy] is not installed for"),
        (("--litellm", "/no/such/python"), "/no/such/python cannot say what is installed: "),
    ],
)
def test_what_cannot_be_measured_is_one_line(cli: CommandLine, arguments: tuple[str, ...], said: str) -> None:
    assert said in one_line(cli.run("bench", "gateway", *QUICK, *arguments))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the servers in /proc")
def test_ended_in_the_middle_it_leaves_no_server_behind(cli: CommandLine) -> None:
    mark = os.urandom(8).hex()
    process = replace(cli, settings={"MARK": mark}).start("bench", "gateway", "--seconds", "60")
    assert process.stderr is not None
    try:
        assert process.stderr.readline() == "1 clients, whole …\n"
        assert _processes_with(mark) >= 3
    finally:
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in error, _processes_with(mark)) == (130, False, 0)


def _processes_with(mark: str) -> int:
    found = 0
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += f"MARK={mark}".encode() in environment.read_bytes()
        except OSError:  # it ended, or is another's
            continue
    return found
