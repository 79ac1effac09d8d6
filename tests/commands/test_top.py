from __future__ import annotations

import os
import pty
import re
import signal
import socket
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cli import CommandLine, one_line

from expert_router.caching.memory import MemoryStore
from expert_router.commands.top import view
from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.keys import changing, new_key
from expert_router.telemetry.reading import Between, Scrape
from support import ROOT, eventually, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def top() -> CommandLine:
    return CommandLine(ROOT)


def rows(text: str) -> dict[str, list[str]]:
    """The cells by expert."""
    *_, table = text.rstrip("\n").split("\n\n")
    return {cells[0]: cells[1:] for cells in (re.split(r"\s{2,}", line) for line in table.splitlines()[1:])}


def test_a_view_is_what_happened_between_two_scrapes() -> None:
    with serve(EchoEngine(EchoScript(0.02, 0.002)), answers=MemoryStore(100_000, 60)) as server:
        server.post(model="cars")
        before = Scrape(server.http.get("/metrics").text)
        for question in ("Why?", "Why?", "When?"):
            tokens = server.post(question=question).json()["usage"]["completion_tokens"]
        server.post(model="nobody")
        after = Scrape(server.http.get("/metrics").text)
    shown = view(Between(before, after, 2.0), "http://here")
    told = rows(shown)
    assert list(told) == ["cars", "general", "sleep"]
    adapter, ready, answers, first, _, between, per_second, kept, errors = told["sleep"]
    assert (adapter, ready, answers, kept, errors) == ("-", "yes", "1.5", "33%", "0.0")
    assert float(per_second) == tokens  # of two new answers in two seconds
    assert 20 <= float(first.removesuffix(" ms")) <= 250
    assert 2 <= float(between.removesuffix(" ms")) <= 250
    assert told["cars"] == ["-", "yes", "0.0", "-", "-", "-", "0.0", "-", "0.0"]
    assert "answers/s 2.0" in shown  # one that nobody answered
    assert "errors/s 0.5" in shown
    assert "again 33%" in shown


def exposition(worker: int, buckets: dict[str, int], errors: int) -> str:
    label = f'worker="{worker}"'
    lines = [f'took_seconds_bucket{{{label},le="{end}"}} {count}' for end, count in buckets.items()]
    return "\n".join(["# HELP took_seconds x", *lines, f'errors_total{{{label},said="a \\"b\\"\\\\n"}} {errors}', ""])


def test_processes_are_added_up_and_one_that_began_anew_counts_from_nothing() -> None:
    before = Scrape(exposition(0, {"1.0": 5, "2.0": 10, "+Inf": 10}, 7))
    after = Scrape(
        exposition(0, {"1.0": 5, "2.0": 15, "+Inf": 15}, 2) + exposition(1, {"1.0": 5, "2.0": 5, "+Inf": 5}, 1)
    )
    between = Between(before, after, 2.0)
    assert between.rate("errors_total") == 1.5
    assert between.rate("errors_total", said='a "b"\\n') == 1.5
    assert between.quantile(0.5, "took_seconds") == 1.0
    assert between.quantile(0.75, "took_seconds") == 1.5
    assert between.quantile(0.5, "took_seconds", worker="2") is None


def test_what_is_beyond_the_last_bucket_is_as_long_as_its_end() -> None:
    after = Scrape(exposition(0, {"1.0": 0, "2.0": 1, "+Inf": 10}, 0))
    assert Between(Scrape(""), after, 1.0).quantile(0.95, "took_seconds") == 2.0


def test_once_prints_one_view_of_a_running_server(top: CommandLine) -> None:
    with serve(EchoEngine()) as server:
        done = top.run("top", "--url", server.url, "--interval", "0.1", "--once")
    assert (done.status, done.error) == (0, "")
    assert done.out.startswith(f"expert-router  {server.url}")
    assert set(rows(done.out)) == {"sleep", "cars", "general"}
    assert "\x1b" not in done.out


def test_a_server_with_keys_is_asked_with_one(top: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    key, secret = new_key("on-call")
    with changing(file) as kept:
        kept[key.id] = key
    with serve(EchoEngine(), keys=file) as server:
        once = ("top", "--url", server.url, "--interval", "0.1", "--once")
        refused = one_line(top.run(*once))
        by_option = top.run(*once, "--key", secret)
        by_variable = replace(top, settings={"EXPERT_ROUTER_KEY": secret}).run(*once)
    assert refused == f"The server at {server.url} asks for a key that it knows: --key, or EXPERT_ROUTER_KEY"
    for done in (by_option, by_variable):
        assert (done.status, done.error) == (0, "")
        assert set(rows(done.out)) == {"sleep", "cars", "general"}


def test_without_an_address_it_asks_this_machine_at_the_settings_port(top: CommandLine) -> None:
    with serve(EchoEngine()) as server:
        here = replace(top, settings={"EXPERT_ROUTER_SERVER__PORT": server.url.rsplit(":", 1)[1]})
        done = here.run("top", "--interval", "0.1", "--once")
    assert (done.status, done.error) == (0, "")
    assert done.out.startswith(f"expert-router  {server.url}")


def test_in_a_terminal_it_goes_on_until_ctrl_c_and_leaves_the_screen_as_it_was(top: CommandLine) -> None:
    with serve(EchoEngine()) as server:
        pid, terminal = pty.fork()
        if pid == 0:
            command = top.command("top", "--url", server.url, "--interval", "0.05", config="echo")
            os.execve(command[0], command, top.environment())
        said: list[bytes] = []
        threading.Thread(target=lambda: said.extend(read_all(terminal)), daemon=True).start()
        eventually(lambda: b"".join(said).count(b"\x1b[H\x1b[J") >= 2, within_s=20)
        os.kill(pid, signal.SIGINT)
        _, status = os.waitpid(pid, 0)
        eventually(lambda: b"".join(said).endswith(b"\x1b[?25h\x1b[?1049l"))
    assert os.waitstatus_to_exitcode(status) == 130
    assert b"".join(said).startswith(b"\x1b[?1049h\x1b[?25l")
    assert b"sleep" in b"".join(said)


def read_all(terminal: int) -> Iterator[bytes]:
    try:
        while piece := os.read(terminal, 4096):
            yield piece
    except OSError:  # the other side is closed
        return


def test_where_nothing_answers_it_says_how_to_begin(top: CommandLine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    said = one_line(top.run("top", "--url", f"http://127.0.0.1:{port}", "--once"))
    assert said.startswith(f"Nothing answers at http://127.0.0.1:{port} (")
    assert "expert-router serve" in said


def test_what_is_another_server_is_said(top: CommandLine) -> None:
    with serve(EchoEngine()) as server:
        said = one_line(top.run("top", "--url", f"{server.url}/v1", "--once"))
    assert said.endswith("GET /metrics is HTTP 404. Name another: --url")
