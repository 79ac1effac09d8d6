"""Keys on disk: what opens one and until when, and a file that changes, breaks and disappears while it is used."""

from __future__ import annotations

import json
import logging
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.errors import ConfigError
from expert_router.keys import Key, Keyring, changing, hash_of, new_key, read_keys, rotated, secret_in

if TYPE_CHECKING:
    from pathlib import Path

HOUR = timedelta(hours=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "secrets" / "keys.jsonl"


def put(path: Path, key: Key) -> None:
    with changing(path) as keys:
        keys[key.id] = key


def now() -> datetime:
    return datetime.now(UTC)


def test_a_key_is_found_by_its_secret_which_is_nowhere_in_the_file(path: Path) -> None:
    key, secret = new_key("laura", requests_per_minute=5)
    put(path, key)
    found = Keyring(path).find(secret)
    assert found is not None
    assert (found.name, found.scope, found.requests_per_minute, found.tokens_per_minute) == ("laura", "user", 5, None)
    assert secret not in path.read_text()
    assert secret.rpartition("-")[2] not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(secret.split("-", 2)[2]) == 43  # 256 bits


def test_every_secret_is_another(path: Path) -> None:
    made = [new_key("laura") for _ in range(50)]
    assert len({key.id for key, _ in made}) == len({secret for _, secret in made}) == 50
    put(path, made[0][0])
    assert Keyring(path).find(made[1][1]) is None


@pytest.mark.parametrize("change", [
    lambda s: s[:-1], lambda s: s + "x", lambda s: s.upper(), lambda s: s.replace("er-", "", 1), lambda _: "",
    lambda s: s.rpartition("-")[0], lambda _: "er", lambda _: "er--", lambda _: "é",
])  # fmt: skip
def test_what_is_not_quite_the_secret_opens_nothing(path: Path, change: Any) -> None:
    key, secret = new_key("laura")
    put(path, key)
    keyring = Keyring(path)
    assert keyring.find(change(secret)) is None
    assert keyring.find(key.hash) is None
    assert keyring.find(secret) == key


def test_a_key_ends_when_it_expires(path: Path) -> None:
    late, late_secret = new_key("late", expires=now() - HOUR)
    fresh, fresh_secret = new_key("fresh", expires=now() + HOUR)
    put(path, late)
    put(path, fresh)
    keyring = Keyring(path)
    assert keyring.find(late_secret) is None
    assert keyring.find(fresh_secret) == fresh


def test_after_a_rotation_both_secrets_count_and_the_old_one_only_until_its_time_is_over(path: Path) -> None:
    key, old = new_key("laura", tokens_per_minute=7)
    put(path, key)
    keyring = Keyring(path)
    turned, new = rotated(key, HOUR)
    put(path, turned)
    assert keyring.find(old) == keyring.find(new) == turned
    assert (turned.id, turned.tokens_per_minute) == (key.id, 7)
    at_once, newest = rotated(turned, timedelta())
    put(path, at_once)
    assert keyring.find(old) is None
    assert keyring.find(new) is None
    assert keyring.find(newest) == at_once


def test_keys_that_are_added_and_revoked_count_at_once(path: Path) -> None:
    first, first_secret = new_key("first")
    put(path, first)
    keyring = Keyring(path)
    second, second_secret = new_key("second")
    assert keyring.find(second_secret) is None
    put(path, second)
    assert keyring.find(second_secret) == second
    with changing(path) as keys:
        del keys[first.id]
    assert keyring.find(first_secret) is None
    assert keyring.find(second_secret) == second


BROKEN = [
    ("{", "JSON"),
    ("[]", "JSON"),
    ('{"id": "a"}', "name: Field required"),
    ('{"id": "a", "name": "a", "hash": "secret-word", "created": "2026-01-01T00:00:00Z"}', "hash: String should match"),
    (f'{{"id": "a", "name": "a", "hash": "{"0" * 64}", "created": "2026-01-01T00:00:00Z", "request_per_minute": 5}}',
     "request_per_minute: Extra inputs are not permitted"),
    (f'{{"id": "a", "name": "a", "hash": "{"0" * 64}", "created": "2026-01-01T00:00:00Z", "scope": "root"}}',
     "scope: Input should be 'user' or 'admin'"),
    (f'{{"id": "a", "name": "a", "hash": "{"0" * 64}", "created": "2026-01-01T00:00:00"}}', "created: "),
]  # fmt: skip


@pytest.mark.parametrize(("line", "problem"), BROKEN)
def test_a_broken_file_keeps_the_last_good_keys_and_warns_once(
    path: Path, caplog: pytest.LogCaptureFixture, line: str, problem: str
) -> None:
    key, secret = new_key("laura")
    put(path, key)
    keyring = Keyring(path)
    good = path.read_text()
    path.write_text(f"{good}{line}\n")
    with caplog.at_level(logging.WARNING, "expert_router"):
        assert keyring.find(secret) == keyring.find(secret) == key
    (record,) = caplog.records
    assert "line 2" in record.__dict__["reason"]
    assert problem in record.__dict__["reason"]
    assert "secret-word" not in record.__dict__["reason"]
    with pytest.raises(ConfigError, match="line 2"):
        Keyring(path)
    path.write_text("\n")
    assert keyring.find(secret) is None  # an empty file is a good one: nobody may ask


def test_a_file_that_is_gone_keeps_the_last_good_keys_too(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key, secret = new_key("laura")
    put(path, key)
    keyring = Keyring(path)
    path.unlink()
    with caplog.at_level(logging.WARNING, "expert_router"):
        assert keyring.find(secret) == key
    assert "There is no file of keys" in caplog.records[0].__dict__["reason"]


def test_the_same_id_twice_is_an_error(path: Path) -> None:
    key, _ = new_key("laura")
    put(path, key)
    path.write_text(path.read_text() * 2)
    with pytest.raises(ConfigError, match=f"line 2: there is another key {key.id}"):
        read_keys(path)


def test_a_change_that_fails_changes_nothing(path: Path) -> None:
    key, _ = new_key("laura")
    put(path, key)
    with pytest.raises(KeyError), changing(path) as keys:
        assert [keys.pop(name) for name in (key.id, "nobody")]
    assert read_keys(path) == {key.id: key}
    path.write_text("{")  # nor is a file that is broken written over
    with pytest.raises(ConfigError), changing(path) as keys:
        keys[key.id] = key
    assert path.read_text() == "{"


def test_changes_at_the_same_time_are_all_kept(path: Path) -> None:
    made = [new_key(f"number {number}")[0] for number in range(12)]
    threads = [threading.Thread(target=put, args=(path, key)) for key in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(read_keys(path)) == {key.id for key in made}


def test_the_admin_key_of_the_settings_is_an_admins(path: Path) -> None:
    alone = Keyring(admin_key="sixteen letters!")
    assert (alone.required, alone.has_admin) == (False, True)
    found = alone.find("sixteen letters!")
    assert found is not None
    assert (found.id, found.scope) == ("admin", "admin")
    assert alone.find("sixteen letters?") is None
    put(path, new_key("laura")[0])
    assert Keyring(path, "sixteen letters!").find("sixteen letters!") is not None


def test_who_may_change_the_experts_is_known_as_it_changes(path: Path) -> None:
    assert Keyring().has_admin is False
    put(path, new_key("laura")[0])
    keyring = Keyring(path)
    assert (keyring.required, keyring.has_admin) == (True, False)
    put(path, new_key("late", scope="admin", expires=now() - HOUR)[0])
    assert keyring.has_admin is False
    put(path, new_key("root", scope="admin")[0])
    assert keyring.has_admin is True


def test_the_file_is_made_of_plain_lines(path: Path) -> None:
    key, secret = new_key("laura", expires=now() + HOUR)
    put(path, key)
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["hash"] == hash_of(secret)
    assert json.loads(line).keys() == {"id", "name", "hash", "scope", "created", "expires"}


@pytest.mark.parametrize(
    ("header", "bearer", "password"),
    [
        ("Bearer er-1", "er-1", "er-1"),
        ("bearer  er-1 ", "er-1", "er-1"),
        ("Basic bmFtZTplci0x", "", "er-1"),
        ("Basic OmVyLTE=", "", "er-1"),
        ("Basic bmFtZQ==", "", ""),
        ("Basic !", "", ""),
        ("Basic /w==", "", ""),
        ("er-1", "", ""),
        ("Bearer", "", ""),
        ("", "", ""),
    ],
)
def test_a_header_brings_a_token_and_from_a_browser_a_password(header: str, bearer: str, password: str) -> None:
    assert secret_in(header) == bearer
    assert secret_in(header, basic=True) == password
