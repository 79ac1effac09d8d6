"""Servers behind a running system, and the command that takes one of them out."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx2
from cli import one_line
from test_serve import serving

from support import chat_body, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cli import CommandLine
    from test_serve import Serving

STAND_IN = [sys.executable, "-m", "expert_router.evaluation.fake_vllm"]
A, B = "http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"


def with_settings(cli: CommandLine, catalogue: Path, **engine: str) -> CommandLine:
    settings = {f"EXPERT_ROUTER_ENGINE__{name.upper()}": value for name, value in engine.items()}
    return replace(cli, settings={**settings, "EXPERT_ROUTER_PATHS__CATALOGUE": str(catalogue)})


@contextmanager
def stand_in() -> Iterator[str]:
    """A server of its own process; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([*STAND_IN, "serve", "base", "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def ready(server: Serving) -> tuple[int, dict[str, Any]]:
    response = httpx2.get(f"{server.url}/health/ready", trust_env=False)
    return response.status_code, response.json()


def ask(server: Serving) -> httpx2.Response:
    return httpx2.post(
        f"{server.url}/v1/chat/completions", json=chat_body(model="general"), timeout=10, trust_env=False
    )


def test_servers_are_taken_out_one_by_one(cli: CommandLine, tmp_path: Path) -> None:
    """The server of the settings is asked for the rest, and there is none here."""
    several = with_settings(cli, tmp_path, name="openai_http", upstreams=json.dumps([A, B]))
    drained = several.run("upstream", "drain", f"{A}/")
    assert [line.split(";")[0] for line in drained.out.splitlines()] == [f"{A}  draining", f"{B}  in use"]
    assert (tmp_path / "draining").read_text() == f"{A}\n"
    assert "No other server is left" in several.run("upstream", "drain", B).out


def test_a_server_that_is_not_of_the_settings_is_refused(cli: CommandLine, tmp_path: Path) -> None:
    several = with_settings(cli, tmp_path, name="openai_http", upstreams=json.dumps([A, B]))
    done = several.run("upstream", "resume", "http://127.0.0.1:3/v1")
    assert done.status == 2
    assert f"one of {A}, {B}" in one_line(done)
    assert "engine.name is echo" in one_line(cli.run("upstream", "list"))


def test_a_running_system_heeds_it_at_once_and_says_what_each_server_does(cli: CommandLine, tmp_path: Path) -> None:
    with ExitStack() as stack:
        addresses = [stack.enter_context(stand_in()) for _ in range(2)]
        several = with_settings(
            cli, tmp_path, name="openai_http", base_model="base", check_interval_s="0.05",
            upstreams=json.dumps(addresses),
        )  # fmt: skip
        server = stack.enter_context(serving(several, "--no-page"))
        eventually(lambda: ready(server)[0] == 200)
        assert ask(server).status_code == 200
        several.run("upstream", "drain", addresses[0])
        assert {each["state"] for each in ready(server)[1]["engine"]["upstreams"]} == {"up", "draining"}
        assert ask(server).status_code == 200
        listed = several.run("upstream", "list", "--url", server.url).out.splitlines()
        assert f"{addresses[0]}  draining  0 running" in listed[0]
        assert f"{addresses[1]}  up  0 running" in listed[1]
        several.run("upstream", "drain", addresses[1])
        refused = ask(server)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "upstreams_down")
        assert int(refused.headers["retry-after"]) >= 1
        status, body = ready(server)
        assert (status, body["status"]) == (503, "failed")
        assert "is draining" in body["reason"]
        several.run("upstream", "resume", addresses[1])
        assert ask(server).status_code == 200
        assert ready(server)[0] == 200


def test_a_system_that_was_started_first_is_ready_once_its_server_is_there(cli: CommandLine, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    one = with_settings(
        cli, tmp_path, name="openai_http", base_model="base", check_interval_s="0.05",
        base_url=f"http://127.0.0.1:{port}/v1",
    )  # fmt: skip
    with serving(one, "--no-page") as server:
        eventually(lambda: ready(server)[1]["status"] == "failed")
        assert "cannot be reached" in ready(server)[1]["reason"]
        command = [*STAND_IN, "serve", "base", "--port", str(port)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            eventually(lambda: ready(server)[0] == 200)
            assert ask(server).status_code == 200
        finally:
            process.kill()
            process.wait()


# serve --engine vllm


def vllm(cli: CommandLine, catalogue: Path, command: list[str]) -> CommandLine:
    """An adapter's base is in models.lock as a GGUF file; what vLLM would load of it is named apart."""
    return with_settings(cli, catalogue, vllm_command=json.dumps(command), vllm_model="some/model")


def _leader(server: Serving) -> int:
    pid = ready(server)[1]["engine"]["server"]["pid"]
    assert isinstance(pid, int)
    return pid


def _gone(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return True
    return False


def test_serve_starts_vllm_answers_by_it_and_takes_it_along(cli: CommandLine, tmp_path: Path) -> None:
    with serving(vllm(cli, tmp_path, STAND_IN), "--no-page", "--engine", "vllm") as server:
        eventually(lambda: ready(server)[0] == 200, within_s=20)
        response = ask(server)
        assert response.json()["choices"][0]["message"]["content"].startswith("[qwen2.5-coder-0.5b-instruct]")
        leader = _leader(server)
        assert not _gone(leader)
        status, error = server.end()
        assert status == 0
        assert _gone(leader)
    lines = [json.loads(line) for line in error.splitlines()]
    assert "serving qwen2.5-coder-0.5b-instruct" in [line["message"] for line in lines if line.get("child") == "vLLM"]
    assert "vLLM is ready" in [line["message"] for line in lines]


def test_vllm_does_not_outlive_a_server_that_is_killed(cli: CommandLine, tmp_path: Path) -> None:
    with serving(vllm(cli, tmp_path, STAND_IN), "--no-page", "--engine", "vllm") as server:
        eventually(lambda: ready(server)[0] == 200, within_s=20)
        leader = _leader(server)
        server.end(signal.SIGKILL)
        eventually(lambda: _gone(leader))


def test_the_reason_why_vllm_does_not_start_is_in_ready(cli: CommandLine, tmp_path: Path) -> None:
    dying = vllm(cli, tmp_path, ["sh", "-c", "echo 'RuntimeError: no CUDA device'; exit 1"])
    with serving(dying, "--no-page", "--engine", "vllm") as server:
        eventually(lambda: "no CUDA device" in ready(server)[1]["reason"], within_s=10)
        assert ready(server)[0] == 503
        refused = ask(server)
        assert (refused.status_code, "no CUDA device" in refused.text) == (503, True)


def test_without_vllm_its_workers_or_its_model_it_is_said_in_one_line(cli: CommandLine, tmp_path: Path) -> None:
    missing = vllm(cli, tmp_path, ["no-such-vllm"]).run("serve", "--port", "0", "--engine", "vllm", "--no-page")
    assert missing.status == 2
    assert "vllm is not installed: pip install vllm on a machine with an NVIDIA GPU" in one_line(missing)
    several = vllm(cli, tmp_path, STAND_IN).run("serve", "--port", "0", "--engine", "vllm", "--workers", "2")
    assert "set engine.name to openai_http" in one_line(several)
    gguf = with_settings(cli, tmp_path, vllm_command=json.dumps(STAND_IN)).run(
        "serve", "--port", "0", "--engine", "vllm", "--no-page"
    )
    assert "set engine.vllm_model to a folder or a hub name" in one_line(gguf)
