"""``serve --ray`` as people use it: one command, which ends what it started."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import httpx2
import pytest
from cli import one_line

from support import SLEEP_QUESTION, chat_body

if TYPE_CHECKING:
    from cli import CommandLine

RAY_IS_THERE = find_spec("ray") is not None


@pytest.mark.skipif(RAY_IS_THERE, reason="Ray is installed")
def test_without_ray_it_says_what_to_install(cli: CommandLine) -> None:
    assert "pip install 'expert-router[ray]'" in one_line(cli.run("serve", "--ray", "--port", "0"))


def test_placement_is_measured_on_an_engine_that_loads_experts(cli: CommandLine) -> None:
    assert "choose --config tiny" in one_line(cli.run("bench", "placement"))
    assert "numbers from 1 on" in one_line(cli.run("bench", "placement", "--replicas", "0"))


@pytest.mark.ray
@pytest.mark.skipif(not RAY_IS_THERE, reason="Ray is not installed: make test-ray")
def test_it_starts_answers_and_ends_what_it_started(cli: CommandLine) -> None:
    process = cli.start("serve", "--ray", "--port", "0")
    try:
        assert process.stdout is not None
        address = None
        while address is None:
            line = process.stdout.readline()
            assert line, process.communicate()
            address = re.search(r"expert-router is at (http://127\.0\.0\.1:\d+)", line)
        asked = httpx2.post(f"{address[1]}/v1/chat/completions", json=chat_body(), timeout=10, trust_env=False)
        assert asked.json()["choices"][0]["message"]["content"] == f"[Sleep science] You asked: {SLEEP_QUESTION}"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(address[1], trust_env=False)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.ray
@pytest.mark.skipif(not RAY_IS_THERE, reason="Ray is not installed: make test-ray")
def test_a_machine_that_is_too_small_is_told_so(cli: CommandLine) -> None:
    """Ray would wait for ever."""
    small = replace(cli, settings={"EXPERT_ROUTER_RAY__GATEWAY_CPUS": "1000"})
    done = small.run("serve", "--ray", "--port", "0")
    assert done.status == 2
    assert "counted with 1001 processors" in done.error
