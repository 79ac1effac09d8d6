"""``bench load`` as a process, against a server of this process."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest
from cli import one_line

from expert_router.engines.echo import EchoEngine, EchoScript
from support import eventually, serve, write_examples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cli import CommandLine

    from support import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(EchoEngine(EchoScript(first_token_delay_s=0.005))) as running:
        yield running


@pytest.fixture(autouse=True)
def _questions(cli: CommandLine) -> None:
    write_examples(cli.home / "data/processed/routing_test.csv")


def test_each_concurrency_is_measured_and_reported(cli: CommandLine, server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "load"
    options = ("--concurrency", "4,1", "--requests", "12", "--json", "--output", str(folder))
    done = cli.run("bench", "load", "--url", server.url, *options)
    assert done.status == 0, done.error
    told = json.loads(done.out)
    assert told == json.loads((folder / "report.json").read_text("utf-8"))
    assert [(level["clients"], level["answered"], level["good"]) for level in told["levels"]] == [
        (1, 12, 12),
        (4, 12, 12),
    ]
    assert {level["routing"]["value"] for level in told["levels"]} == {1.0}
    assert 5 <= told["levels"][0]["all"]["first_token_ms"]["p50"] <= told["levels"][0]["all"]["answer_ms"]["p99"]
    assert f"Saved in {folder}: load.png, report.json, report.md." in done.error
    assert "is there already" in one_line(cli.run("bench", "load", "--url", server.url, "--output", str(folder)))


def test_each_rate_is_measured_and_reported(cli: CommandLine, server: Server, tmp_path: Path) -> None:
    options = ("--rate", "100,50", "--requests", "10", "--json", "--output", str(tmp_path / "load"))
    done = cli.run("bench", "load", "--url", server.url, *options)
    assert done.status == 0, done.error
    levels = json.loads(done.out)["levels"]
    assert [(level["rate"], level["answered"]) for level in levels] == [(50.0, 10), (100.0, 10)]
    assert levels[0]["seconds"] > levels[1]["seconds"]  # the same arrivals, twice as fast


def test_interrupted_it_reports_what_was_measured(cli: CommandLine, server: Server, tmp_path: Path) -> None:
    def finished() -> int:
        return int(server.counts().get("finished", 0))  # type: ignore[call-overload,no-any-return]

    before = finished()
    process = cli.start("bench", "load", "--url", server.url, "--concurrency", "2", "--output", str(tmp_path / "load"))
    try:
        eventually(lambda: finished() >= before + 20, within_s=20)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, "Traceback" in error, ", interrupted" in out) == (130, False, True)
    (level,) = json.loads((tmp_path / "load/report.json").read_text("utf-8"))["levels"]
    assert level["answered"] >= 10


def test_a_server_that_cannot_answer_is_said_before_anything_is_measured(cli: CommandLine, tmp_path: Path) -> None:
    with serve(EchoEngine(EchoScript(fail_before=True))) as server:
        done = cli.run("bench", "load", "--url", server.url, "--output", str(tmp_path / "load"))
    assert "does not answer a first question: HTTP 502" in one_line(done)
    assert not (tmp_path / "load").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--url", "http://127.0.0.1:9"), "No server answers at http://127.0.0.1:9"),
        (("--url", "127.0.0.1"), "--url takes an address like http://127.0.0.1:8000"),
        (("--concurrency", "1,0"), "--concurrency takes numbers above 0"),
        (("--rate", "2,inf"), "--rate takes numbers above 0"),
        (("--seconds", "nan"), "--seconds takes a number above 0"),
    ],
)
def test_what_cannot_be_measured_is_one_line(cli: CommandLine, options: tuple[str, ...], said: str) -> None:
    assert said in one_line(cli.run("bench", "load", *options))
