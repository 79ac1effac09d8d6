"""The server as a process: it starts, answers, and ends as it was asked to."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from cli import one_line
from filelock import FileLock

from processes import children_of, told_of
from support import SLEEP_QUESTION, chat_body, events, eventually

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from cli import CommandLine

LONG = chat_body("word " * 25_000, stream=True, max_tokens=100_000)
"""An answer of some 6 MB: more than sockets hold that nobody reads from, so that it lasts until it was read."""


@dataclass(frozen=True)
class Serving:
    process: subprocess.Popen[str]
    url: str
    announced: str

    def ask(self) -> httpx2.Response:
        return httpx2.post(f"{self.url}/v1/chat/completions", json=chat_body(model="auto"), timeout=10, trust_env=False)

    def end(self, how: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """The exit status and what came on standard error."""
        self.process.send_signal(how)
        _, error = self.process.communicate(timeout=15)
        return self.process.returncode, error


@contextmanager
def serving(cli: CommandLine, *arguments: str) -> Iterator[Serving]:
    process = cli.start("serve", "--port", "0", *arguments)
    try:
        assert process.stdout is not None
        said = ""
        while "for example" not in said:
            line = process.stdout.readline()
            assert line, process.communicate()
            said += line
        address = re.search(r"expert-router is at (https?://127\.0\.0\.1:\d+)", said)
        assert address is not None
        yield Serving(process, address[1], said)
    finally:
        process.kill()
        process.communicate()


def test_it_answers_within_seconds_and_says_where_it_is(cli: CommandLine) -> None:
    started = time.perf_counter()
    with serving(cli, "--no-page") as server:
        response = server.ask()
        assert time.perf_counter() - started < 10
        assert response.json()["choices"][0]["message"]["content"] == f"[Sleep science] You asked: {SLEEP_QUESTION}"
        ready = httpx2.get(f"{server.url}/health/ready", trust_env=False).json()
        assert (ready["status"], ready["engine"]["engine"]) == ("ready", "echo")
        assert f"API           {server.url}/docs" in server.announced
        assert "chat page" not in server.announced
        assert httpx2.get(server.url, trust_env=False).headers["location"] == "/docs"
        assert server.end()[0] == 0


def test_the_announced_example_works_as_it_stands(cli: CommandLine) -> None:
    with serving(cli, "--no-page") as server:
        address, body = re.search(
            r"curl (\S+) -H 'content-type: application/json' -d '(.*)'", server.announced
        ).groups()  # type: ignore[union-attr]
        answer = httpx2.post(address, content=body, headers={"content-type": "application/json"}, trust_env=False)
        assert answer.status_code == 200


def test_a_taken_port_is_said_in_one_line_before_anything_is_loaded(cli: CommandLine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = cli.run("serve", "--port", str(port), "--no-page")
    assert done.status == 2
    assert f"Cannot listen on 127.0.0.1:{port} (Address already in use). Choose another port" in one_line(done)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", "99999"), "Cannot listen on 127.0.0.1:99999 "),
        (("--host", "no.such.host.invalid"), "Cannot listen on no.such.host.invalid:"),
    ],
)
def test_an_address_that_cannot_be_is_said_in_one_line(
    cli: CommandLine, arguments: tuple[str, ...], message: str
) -> None:
    done = cli.run("serve", "--no-page", *arguments)
    assert done.status == 2
    assert message in one_line(done)


def test_asked_to_end_it_finishes_the_stream_and_exits_with_0(cli: CommandLine) -> None:
    with serving(cli, "--no-page") as server, _stream(server) as response:
        pieces = response.iter_text()
        said = next(pieces)
        server.process.send_signal(signal.SIGTERM)
        _refuses_newcomers(server.url)
        assert server.process.poll() is None
        said += "".join(pieces)
        *chunks, last, done = events(said)
        assert (done, last["choices"][0]["finish_reason"]) == ("[DONE]", "stop")
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert text.split()[-25_000:] == ["word"] * 25_000
        _, error = server.process.communicate(timeout=15)
        assert server.process.returncode == 0
        assert "Traceback" not in error


def test_a_client_that_does_not_read_cannot_hold_up_the_end(cli: CommandLine) -> None:
    impatient = replace(cli, settings={"EXPERT_ROUTER_SERVER__SHUTDOWN_GRACE_S": "1"})
    with serving(impatient, "--no-page") as server, _stream(server) as response:
        pieces = response.iter_text()  # kept: with it gone, the client would hang up
        next(pieces)
        started = time.perf_counter()
        status, _ = server.end()
        assert status == 0
        assert 0.9 < time.perf_counter() - started < 8


def test_asked_to_end_while_it_loads_it_does_not_wait(cli: CommandLine, tmp_path: Path) -> None:
    """As a container's first process, for which the system's default is to go on."""
    weights = tmp_path / "weights" / "smollm2-135m-instruct"
    weights.mkdir(parents=True)
    settings = {
        "EXPERT_ROUTER_PATHS__CACHE": str(tmp_path),
        "EXPERT_ROUTER_ENGINE__NAME": "openvino",
        "EXPERT_ROUTER_ENGINE__BASE_MODEL": weights.name,
    }
    with FileLock(weights / ".lock"):
        process = replace(cli, settings=settings).start("serve", "--port", "0", "--no-page")
        assert process.stderr is not None
        assert "waiting" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=15)
    assert process.returncode == 128 + signal.SIGTERM


def test_ctrl_c_ends_it_too(cli: CommandLine) -> None:
    with serving(cli, "--no-page") as server:
        status, error = server.end(signal.SIGINT)
        assert status == 130
        assert "Traceback" not in error


def test_a_worker_that_dies_is_replaced_and_all_end_together(cli: CommandLine) -> None:
    with serving(cli, "--workers", "2") as server:
        first, second = _two_workers(server)
        for stopped in (first, second):  # the other one answers
            os.kill(stopped, signal.SIGSTOP)
            assert server.ask().status_code == 200
            os.kill(stopped, signal.SIGCONT)
        os.kill(first, signal.SIGKILL)
        assert server.ask().status_code == 200
        eventually(lambda: len(worker_ids(server) - {first}) == 2, within_s=20)
        assert second in worker_ids(server)
        workers = worker_ids(server)
        status, error = server.end()
        assert (status, "Traceback" in error) == (0, False)
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_workers_end_when_their_supervisor_is_killed(cli: CommandLine) -> None:
    with serving(cli, "--workers", "2") as server:
        workers = _two_workers(server)
        server.process.kill()
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), within_s=20)


def test_a_scrape_tells_of_all_workers_and_of_one_that_was_replaced(cli: CommandLine) -> None:
    with serving(cli, "--workers", "2") as server:
        both = {"0": 1.0, "1": 1.0}
        eventually(lambda: _told(server, "worker_up") == both, within_s=30)
        for _ in range(6):
            assert server.ask().status_code == 200
        assert [sum(_told(server, "requests_total").values()) for _ in range(4)] == [6.0] * 4
        killed = max(worker_ids(server))
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: killed not in worker_ids(server), within_s=20)
        eventually(lambda: _told(server, "worker_up") == both, within_s=30)
        assert sum(_told(server, "requests_total").values()) <= 6
        assert server.end()[0] == 0


def test_workers_that_cannot_start_end_the_server(cli: CommandLine) -> None:
    broken = replace(cli, settings={"EXPERT_ROUTER_ROUTER__NAME": "no-such"})
    done = broken.run("serve", "--port", "0", "--workers", "2")
    assert (done.status, "Traceback" in done.error) == (2, False)
    assert "expert-router: There is no router named 'no-such'" in done.error


def test_the_log_is_json_lines_without_the_question(cli: CommandLine) -> None:
    with serving(cli, "--no-page") as server:
        identifier = server.ask().headers["x-request-id"]
        status, error = server.end()
    assert status == 0
    entries: list[dict[str, Any]] = [json.loads(line) for line in error.splitlines()]
    (entry,) = (entry for entry in entries if entry["message"] == "request")
    assert (entry["path"], entry["status"], entry["request_id"]) == ("/v1/chat/completions", 200, identifier)
    assert SLEEP_QUESTION not in error


def test_with_the_page_the_root_leads_to_it(cli: CommandLine) -> None:
    with serving(cli) as server:
        assert f"chat page     {server.url}/chat" in server.announced
        page = httpx2.get(server.url, follow_redirects=True, timeout=20, trust_env=False)
        assert (page.status_code, page.url.path.rstrip("/")) == (200, "/chat")
        assert server.ask().status_code == 200
        assert server.end()[0] == 0


def _stream(server: Serving) -> Any:
    return httpx2.stream("POST", f"{server.url}/v1/chat/completions", json=LONG, timeout=20, trust_env=False)


def _refuses_newcomers(url: str) -> None:
    """Wait until the server has taken note that it is to end."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            httpx2.get(f"{url}/health/live", timeout=1, trust_env=False)
        except httpx2.HTTPError:
            return
        time.sleep(0.02)
    raise AssertionError("the server still takes requests")


def worker_ids(server: Serving) -> set[int]:
    return {child for child in children_of(server.process.pid) if "spawn_main" in told_of(child, "cmdline")}


def _told(server: Serving, name: str) -> dict[str, float]:
    """A metric's sum by worker. A scrape is a connection of its own: any of them may be asked."""
    text = httpx2.get(f"{server.url}/metrics", timeout=20, trust_env=False).text
    sums: dict[str, float] = {}
    for worker, value in re.findall(rf'^expert_router_{name}{{worker="(\d+)".*}} (.+)$', text, re.MULTILINE):
        sums[worker] = sums.get(worker, 0.0) + float(value)
    return sums


def _two_workers(server: Serving) -> tuple[int, int]:
    """Their ids, once one of them answers."""
    eventually(lambda: len(worker_ids(server)) == 2, within_s=20)
    first, second = worker_ids(server)
    eventually(lambda: server.ask().status_code == 200, within_s=20)
    return first, second
