"""A model's process that is killed, hangs or finds no memory, below a server with clients."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from server_process import ServerProcess, ask_many, serving

from processes import descendants
from support import eventually, until

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG = 6000
"""Tokens: some seconds of the tiny model."""


@pytest.fixture(scope="module")
def server(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(home, log, ENGINE__STEP_TIMEOUT_S="1.5") as running:
        eventually(lambda: running.ready()["status"] == "ready", within_s=40)
        yield running


def running(server: ServerProcess, model: str) -> int:
    models: dict[str, Any] = server.ready()["engine"]["models"]
    return int(models[model]["running"]) if model in models else 0


def answered(server: ServerProcess, model: str) -> None:
    """Ask as long as it takes, which is no longer than the server says itself."""
    response = server.post(model=model)
    while response.status_code == 503:
        time.sleep(float(response.headers["retry-after"]))
        response = server.post(model=model)
    assert response.status_code == 200, response.text


async def test_killed_its_streams_end_with_an_error_at_once_and_the_others_go_on(server: ServerProcess) -> None:
    undisturbed = asyncio.create_task(ask_many(server.url, 1, LONG, lambda _: asyncio.sleep(0), "sleep"))
    ended_at = 0.0

    async def kill(asked: list[asyncio.Task[Any]]) -> None:
        nonlocal ended_at
        await until(lambda: running(server, "other") == 3 and running(server, "random") == 1, within_s=10)
        os.kill(server.pid_of("other"), signal.SIGKILL)
        killed_at = time.monotonic()
        await asyncio.wait(asked)
        ended_at = time.monotonic() - killed_at

    samples = await ask_many(server.url, 3, LONG, kill, "cars")
    assert ended_at < 1
    assert all("process ended (killed; perhaps" in sample.error for sample in samples), samples
    (whole,) = await undisturbed
    assert (whole.error, whole.tokens) == ("", LONG)
    ended = server.ready()["engine"]["ended"]
    assert (ended["other"]["times"], "random" in ended) == (1, False)
    assert server.ready()["requests"] == {"running": 0, "waiting": 0}
    answered(server, "cars")
    assert "other" in server.ready()["engine"]["models"]


async def test_stopped_it_is_replaced_and_its_requests_are_told(server: ServerProcess) -> None:
    async def stop(_: object) -> None:
        await until(lambda: running(server, "random") == 3, within_s=10)
        os.kill(server.pid_of("random"), signal.SIGSTOP)

    samples = await ask_many(server.url, 3, LONG, stop)
    assert all("hangs (a step took longer than 1.5 s)" in sample.error for sample in samples), samples
    assert server.ready()["requests"] == {"running": 0, "waiting": 0}
    assert server.ready()["engine"]["ended"]["random"]["last"] == "hung: a step took longer than 1.5 s"
    answered(server, "sleep")


def test_killed_again_and_again_it_is_left_alone_for_longer_each_time(server: ServerProcess) -> None:
    pauses = []
    for _ in range(3):
        answered(server, "cars")
        os.kill(server.pid_of("other"), signal.SIGKILL)
        eventually(lambda: "other" not in server.ready()["engine"]["models"])
        response = server.post(model="cars")
        pauses.append(int(response.headers.get("retry-after", 0)))
        assert response.status_code in {200, 503}
        if response.status_code == 503:
            assert "times in a row" in response.json()["error"]["message"]
        assert server.post(model="sleep").status_code == 200
    assert pauses == sorted(pauses)
    assert pauses[-1] >= 2


def test_where_memory_is_short_it_goes_before_the_server(server: ServerProcess) -> None:
    answered(server, "sleep")
    server_score, model_score = (
        int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (server.process.pid, server.pid_of("random"))
    )
    assert model_score >= server_score + 500


async def test_without_memory_its_requests_fail_and_the_next_are_answered(server: ServerProcess) -> None:
    answered(server, "sleep")
    pid = server.pid_of("random")

    async def take_memory(_: object) -> None:
        await until(lambda: running(server, "random") == 8, within_s=10)
        resource.prlimit(pid, resource.RLIMIT_AS, (1, 1))

    samples = await ask_many(server.url, 8, LONG, take_memory)
    ends = {sample.error for sample in samples}
    # where a stack has to grow the kernel says no, by SIGSEGV, which nothing in the process can turn into words
    ways = ("no memory left", "ended (out of memory)", "ended (by signal 11)")
    assert all(any(way in end for way in ways) for end in ends), ends
    eventually(lambda: server.ready()["engine"]["ended"]["random"]["last"] in {"out of memory", "by signal 11"})
    assert server.ready()["requests"] == {"running": 0, "waiting": 0}
    answered(server, "sleep")


def test_a_killed_server_leaves_no_process_behind(home: Path, tmp_path: Path) -> None:
    with serving(home, tmp_path / "log") as server:
        models = {server.pid_of("random"), server.pid_of("other")}
        assert models <= descendants(server.process.pid)
        server.end(signal.SIGKILL)
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in models))
