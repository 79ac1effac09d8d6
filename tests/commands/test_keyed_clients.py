"""The project's own clients against a server that asks for keys: with one they are answered, without one told so."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cli import one_line

from expert_router.engines.echo import EchoEngine
from expert_router.types import Message
from expert_router.ui.client import ChatClient, Failed, Text
from support import SLEEP_QUESTION, serve, write_examples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cli import CommandLine

    from support import Server


@pytest.fixture(scope="module")
def server(keys_file: Path, secret: str) -> Iterator[Server]:  # noqa: ARG001 - the file has a key
    with serve(EchoEngine(), keys=keys_file) as running:
        yield running


async def test_the_page_asks_with_its_own_key_or_its_visitors(server: Server, secret: str) -> None:
    refused = await ChatClient(server.url).models()
    assert isinstance(refused, Failed)
    assert refused.message == "This server needs a key. Send one: Authorization: Bearer <key>."
    assert not refused.unreachable
    with_its_own = ChatClient(server.url, key=secret)
    for client in (with_its_own, with_its_own.with_key(""), ChatClient(server.url, key="wrong").with_key(secret)):
        assert not isinstance(await client.models(), Failed)
        events = [event async for event in client.stream_chat([Message("user", SLEEP_QUESTION)], "sleep")]
        text = "".join(event.text for event in events if isinstance(event, Text))
        assert text == f"[Sleep science] You asked: {SLEEP_QUESTION}"
    assert isinstance(await with_its_own.with_key("wrong").models(), Failed)


@pytest.mark.parametrize("by", ["option", "environment"])
def test_bench_load_asks_with_a_key(cli: CommandLine, server: Server, secret: str, tmp_path: Path, by: str) -> None:
    write_examples(cli.home / "data/processed/routing_test.csv")
    options = ("--concurrency", "1", "--requests", "3", "--json", "--output", str(tmp_path / "load"))
    command = ("bench", "load", "--url", server.url, *options)
    if by == "option":
        done = cli.run(*command, "--key", secret)
    else:
        done = replace(cli, settings={"EXPERT_ROUTER_KEY": secret}).run(*command)
    assert done.status == 0, done.error
    assert json.loads(done.out)["levels"][0]["answered"] == 3
    assert secret not in done.out + (tmp_path / "load/report.md").read_text("utf-8")


def test_bench_load_says_that_it_needs_one(cli: CommandLine, server: Server) -> None:
    write_examples(cli.home / "data/processed/routing_test.csv")
    done = cli.run("bench", "load", "--url", server.url)
    assert one_line(done) == f"{server.url} needs a key: --key, or EXPERT_ROUTER_KEY."


def test_expert_asks_with_one(cli: CommandLine, server: Server, secret: str) -> None:
    there = ("expert", "list", "--url", server.url)
    assert "This server needs a key." in one_line(cli.run(*there))
    assert "Sleep science" in replace(cli, settings={"EXPERT_ROUTER_KEY": secret}).run(*there).out
    removed = cli.run("expert", "remove", "sleep", "--url", server.url, "--admin-key", secret)
    assert "the server has no admin key" in one_line(removed)
