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

QUICK = ("--seconds", "0.2", "--rounds", "1", "--clients", "1,2")


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    home = make_home(tmp_path_factory.mktemp("checkout"))
    write_examples(home / "data" / "processed" / "routing_test.csv")
    return CommandLine(home)


def test_each_way_is_asked_by_each_number_of_clients_whole_and_streamed(cli: CommandLine) -> None:
    done = cli.run("bench", "gateway", *QUICK, "--json")
    assert done.status == 0, done.error
    measured = json.loads(done.out)
    results = measured["results"]
    assert [(r["streamed"], r["clients"], r["way"]) for r in results] == [
        (streamed, clients, way)
        for streamed in (False, True)
        for clients in (1, 2)
        for way in ("direct", "named", "auto")
    ]
    for result in results:
        assert (result["errors"], result["answers"] > 0) == (0, True)
        assert 0 < result["first_ms"][0] <= result["ms"][0] <= result["ms"][1]
        assert (result["added_ms"][0] > 0) == (result["way"] != "direct")
    assert measured["router"] == "lexical"
    assert 20 < measured["packages"]["ours"] < 60
    assert measured["memory_bytes"]["ours"] > 20e6


def test_the_table_says_how_to_compare(cli: CommandLine) -> None:
    done = cli.run("bench", "gateway", *QUICK[:4], "--clients", "1")
    assert [line.split()[:3] for line in done.out.splitlines()[2:8]] == [
        ["1", kind, way] for kind in ("whole", "streamed") for way in ("direct", "named", "auto")
    ]
    assert "ours: " in done.out
    assert "pip install 'litellm[proxy]'" in done.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--clients", "1,some"), "--clients takes numbers joined by commas, not '1,some'."),
        (("--clients", "0"), "from 1 on"),
        (("--seconds", "0"), "at most 600 s"),
        (("--litellm", sys.executable), "litellm[proxy] is not installed for"),
        (("--litellm", "/no/such/python"), "/no/such/python cannot be started: No such file or directory."),
    ],
)
def test_what_cannot_be_measured_is_one_line(cli: CommandLine, arguments: tuple[str, ...], said: str) -> None:
    assert said in one_line(cli.run("bench", "gateway", *QUICK, *arguments))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the servers in /proc")
def test_ended_in_the_middle_it_leaves_no_server_behind(cli: CommandLine) -> None:
    mark = {"MARK_OF_THIS_RUN": str(os.urandom(8).hex())}
    process = replace(cli, settings=mark).start("bench", "gateway", "--seconds", "60", "--rounds", "1")
    assert process.stderr is not None
    try:
        assert process.stderr.readline() == "1 clients, whole …\n"
        assert len(_processes_with(mark)) >= 3
    finally:
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert _processes_with(mark) == []


def _processes_with(mark: dict[str, str]) -> list[str]:
    wanted = "".join(f"{name}={value}" for name, value in mark.items()).encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text())
        except OSError:  # it ended, or is another's
            continue
    return found
