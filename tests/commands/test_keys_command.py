"""``expert-router keys``: a secret is shown once, and a key can be used, turned and revoked."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cli import one_line

from expert_router.keys import Keyring

if TYPE_CHECKING:
    from pathlib import Path

    from cli import CommandLine


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.jsonl"


@pytest.fixture
def keys(cli: CommandLine, path: Path) -> CommandLine:
    return replace(cli, settings={"EXPERT_ROUTER_SERVER__KEYS": str(path)})


def test_a_key_is_added_listed_turned_and_revoked(keys: CommandLine, path: Path) -> None:
    limits = ("--requests-per-minute", "60", "--tokens-per-minute", "9000", "--max-running", "3")
    added = keys.run("keys", "add", "laura", "--expires", "90d", *limits)
    secret = added.out.strip()
    key = Keyring(path).find(secret)
    assert key is not None
    assert (key.name, key.scope, key.requests_per_minute, key.max_running) == ("laura", "user", 60, 3)
    assert key.expires is not None
    assert timedelta(days=89) < key.expires - datetime.now(UTC) < timedelta(days=90)
    assert f"The key {key.id} (laura): keep it, it is not shown again." in added.error

    listed = keys.run("keys", "list").out
    assert f"{key.id}  laura" in listed
    assert "60 requests per minute, 9000 tokens per minute, 3 max running" in listed
    assert secret not in listed
    assert key.hash not in listed

    turned = keys.run("keys", "rotate", key.id, "--grace", "1h")
    assert Keyring(path).find(secret) == Keyring(path).find(turned.out.strip()) is not None
    assert "The old one counts until " in turned.error
    assert keys.run("keys", "revoke", key.id).out == f"The key {key.id} (laura) counts no more.\n"
    assert Keyring(path).find(turned.out.strip()) is None
    assert keys.run("keys", "list").out == ""


def test_a_key_that_has_expired_is_listed_as_such(keys: CommandLine, path: Path) -> None:
    secret = keys.run("keys", "add", "late", "--expires", "0m").out.strip()
    assert Keyring(path).find(secret) is None
    assert "  expired 2" in keys.run("keys", "list").out


def test_programs_read_json_without_hashes(keys: CommandLine, path: Path) -> None:
    made = json.loads(keys.run("keys", "add", "root", "--admin", "--json").out)
    assert made.keys() == {"id", "name", "scope", "created", "key"}
    found = Keyring(path).find(made.pop("key"))
    assert found is not None
    assert found.scope == "admin"
    assert json.loads(keys.run("keys", "list", "--json").out) == [made]


def test_a_file_may_be_named(cli: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "others.jsonl"
    secret = cli.run("keys", "add", "laura", "--file", str(path)).out.strip()
    assert Keyring(path).find(secret) is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("add",), "Which key? Say: expert-router keys add NAME"),
        (("revoke",), "Which key? Say: expert-router keys revoke ID"),
        (("rotate", "nobody"), "has no key 'nobody'. Known: none."),
        (("add", "laura", "--max-running", "0"), "There can be no such key: max_running: Input should be"),
        (("list",), "Make it: expert-router keys add NAME"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(keys: CommandLine, arguments: tuple[str, ...], said: str) -> None:
    done = keys.run("keys", *arguments)
    assert done.status == 2
    assert said in one_line(done)


def test_without_a_file_it_says_how_to_name_one(cli: CommandLine) -> None:
    assert "EXPERT_ROUTER_SERVER__KEYS=keys.jsonl" in one_line(cli.run("keys", "list"))
