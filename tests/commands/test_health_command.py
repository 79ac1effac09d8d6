from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from expert_router.engines.echo import EchoEngine
from expert_router.engines.openai_http import OpenAIHTTPEngine, served_model_names
from support import eventually, serve

if TYPE_CHECKING:
    from cli import CommandLine


def test_a_server_that_can_answer_is_ready_and_the_status_0(cli: CommandLine) -> None:
    with serve(EchoEngine()) as server:
        done = cli.run("health", "--url", server.url)
    assert (done.status, done.out, done.error) == (0, "ready\n", "")


def test_where_the_server_is_comes_from_the_settings(cli: CommandLine) -> None:
    with serve(EchoEngine()) as server:
        there = type(cli)(cli.home, {"EXPERT_ROUTER_SERVER__PORT": server.url.rpartition(":")[2]})
        assert there.run("health").out == "ready\n"


def test_one_that_still_loads_says_why_with_status_1(cli: CommandLine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        engine = OpenAIHTTPEngine(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", None, served_model_names("base"))
        with serve(engine, warm_up=True) as server:
            eventually(lambda: server.http.get("/health/ready").json()["status"] == "loading")
            done = cli.run("health", "--url", server.url)
    assert (done.status, done.out) == (1, "loading: the models are being loaded\n")


def test_where_nobody_listens_it_is_unreachable(cli: CommandLine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closing:
        url = f"http://127.0.0.1:{closing.getsockname()[1]}"
    done = cli.run("health", "--url", url)
    assert done.status == 1
    assert done.out.startswith(f"unreachable: {url}/health/ready: ")
    assert "Connection refused" in done.out
    assert done.error == ""


def test_what_never_answers_is_not_waited_for_long(cli: CommandLine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = cli.run("health", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}", "--timeout", "0.3")
    assert (done.status, done.error) == (1, "")
    assert done.out.startswith("unreachable: ")
