"""The decision log on disk: what it keeps, for how long, and what it refuses to touch."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from expert_router.decision_log import DecisionStore, LoggedDecision, read_decisions, stamp
from expert_router.errors import ConfigError, DataError
from expert_router.types import Feedback, Scores
from support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

LOGGED = LoggedDecision(
    id="a1",
    time=stamp(),
    question="Is jane@example.com's BMW 328 from 1936?",
    history=("Hello, I am on +49 170 1234567", "And?"),
    router="embedding",
    router_version="0123456789ab",
    scores=Scores({"sleep": 0.25, "cars": 0.75}, 0.1),
    kind="single",
    experts=("cars",),
    forced=None,
    adapters={"cars": "f" * 64},
)
WRITE_MANY = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from dataclasses import replace
from test_decision_log import LOGGED, store_at
store = store_at(Path(sys.argv[1]))
for n in range(40):
    store.add(replace(LOGGED, id=f"{sys.argv[3]}-{n}"))
store.close()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "decisions.sqlite"


def store_at(path: Path, *, retention_days: float | None = 30.0, max_rows: int = 1000) -> DecisionStore:
    return DecisionStore(path, retention_days=retention_days, max_rows=max_rows)


def ago(days: float) -> str:
    return stamp(datetime.now(UTC) - timedelta(days=days))


def kept(path: Path) -> list[str]:
    return [logged.id for logged in read_decisions(path)]


def test_what_was_logged_is_read_again_without_what_tells_who_asked(path: Path) -> None:
    with closing(store_at(path)) as store:
        store.add(LOGGED)
        (read,) = read_decisions(path)  # while it is open
    assert read == replace(
        LOGGED, question="Is [email]'s BMW 328 from 1936?", history=("Hello, I am on [phone]", "And?")
    )
    assert b"jane" not in path.read_bytes()


def test_redaction_may_be_switched_off(path: Path) -> None:
    with closing(DecisionStore(path, retention_days=None, max_rows=9, redacted=False)) as store:
        store.add(LOGGED)
    assert read_decisions(path) == [LOGGED]


def test_a_decision_that_the_request_named_has_no_scores(path: Path) -> None:
    named = replace(
        LOGGED, question="Why?", history=(), scores=None, kind="forced", forced="cars", adapters={"cars": None}
    )
    with closing(store_at(path)) as store:
        store.add(named)
    assert read_decisions(path) == [named]


def test_nothing_is_made_before_the_first_decision(path: Path) -> None:
    with closing(store_at(path)) as store:
        store.check()
        store.prune()
        assert not path.exists()
        store.add(LOGGED)
        assert path.exists()


def test_only_the_owner_may_read_it_and_what_lies_beside_it(path: Path) -> None:
    path.parent.mkdir()
    path.touch(0o644)
    with closing(store_at(path)) as store:
        store.add(LOGGED)
        files = list(path.parent.iterdir())
        assert len(files) == 3  # the log that is written ahead and its index, too
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


# Feedback


def test_the_last_feedback_counts_and_all_of_it_is_replaced(path: Path) -> None:
    with closing(store_at(path)) as store:
        store.add(LOGGED)
        assert store.rate("a1", Feedback("down", ("sleep",)))
        assert store.rate("a1", Feedback("up"))
        assert read_decisions(path)[0].feedback == Feedback("up")
        assert store.rate("a1", Feedback(experts=()))
        (read,) = read_decisions(path)
    assert read.feedback == Feedback(None, ())
    assert read.rated is not None
    assert read.rated >= read.time


def test_feedback_on_an_unknown_decision_is_not_kept(path: Path) -> None:
    with closing(store_at(path)) as store:
        store.add(LOGGED)
        assert not store.rate("a2", Feedback("up"))
    assert read_decisions(path)[0].feedback is None


@pytest.mark.parametrize(
    ("feedback", "kind", "needed"),
    [
        (None, "single", None),
        (Feedback("up"), "single", {"cars"}),
        (Feedback("up"), "clarify", None),
        (Feedback("down"), "single", None),
        (Feedback("down", ("sleep",)), "single", {"sleep"}),
        (Feedback("up", ("sleep", "cars")), "single", {"sleep", "cars"}),
        (Feedback(None, ()), "single", set()),
    ],
)
def test_who_should_have_answered_follows_from_what_was_said(
    feedback: Feedback | None, kind: str, needed: set[str] | None
) -> None:
    assert replace(LOGGED, feedback=feedback, kind=kind).needed == needed  # type: ignore[arg-type]


# Retention


def test_what_is_too_old_goes_at_the_start_and_then_at_most_once_an_hour(path: Path) -> None:
    with closing(store_at(path)) as store:
        for number, days in enumerate((31, 29, 0)):
            store.add(replace(LOGGED, id=f"d{number}", time=ago(days)))
        assert kept(path) == ["d1", "d2"]  # the first write looks
        store.add(replace(LOGGED, id="d3", time=ago(99)))
        assert kept(path) == ["d1", "d2", "d3"]  # within the hour
    with closing(store_at(path)) as restarted:
        restarted.prune()
        assert kept(path) == ["d1", "d2"]


@pytest.mark.parametrize("days", [400, -400])
def test_a_clock_that_jumps_deletes_nothing(path: Path, days: int) -> None:
    jumped = timedelta()
    store = DecisionStore(path, retention_days=30, max_rows=1000, clock=lambda: datetime.now(UTC) + jumped)
    with closing(store_at(path)) as before:
        before.add(LOGGED)
    jumped = timedelta(days=days)
    with closing(store):
        store.prune()
        store.add(replace(LOGGED, id="a2", time=ago(-days)))
    assert kept(path) == ["a1", "a2"]


def test_without_retention_all_is_kept(path: Path) -> None:
    with closing(store_at(path, retention_days=None)) as store:
        store.add(replace(LOGGED, time=ago(10_000)))
        store.prune()
    assert kept(path) == ["a1"]


def test_beyond_its_rows_the_oldest_goes(path: Path) -> None:
    with closing(store_at(path, max_rows=3)) as store:
        for number in range(5):
            store.add(replace(LOGGED, id=f"d{number}"))
    assert kept(path) == ["d2", "d3", "d4"]


def test_what_was_deleted_is_not_left_in_the_file(path: Path) -> None:
    with closing(store_at(path, max_rows=1)) as store:
        store.add(replace(LOGGED, question="a very private matter"))
        store.add(replace(LOGGED, id="a2", question="nothing", history=()))
    assert b"private" not in path.read_bytes()


# Several writers


def test_threads_and_processes_write_one_file_from_its_first_moment(path: Path) -> None:
    tests = str(ROOT / "tests")
    others = [
        subprocess.Popen([sys.executable, "-c", WRITE_MANY, str(path), tests, name], stderr=subprocess.PIPE, text=True)
        for name in ("p", "q")
    ]
    with closing(store_at(path)) as store:

        def write(name: str) -> None:
            for number in range(40):
                store.add(replace(LOGGED, id=f"{name}-{number}"))

        threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        said = [other.communicate(timeout=30)[1] for other in others]
        assert said == ["", ""]
    assert sorted(kept(path)) == sorted(f"{name}-{number}" for name in "abcpq" for number in range(40))


def test_a_file_that_is_deleted_while_it_is_open_is_made_anew(path: Path) -> None:
    with closing(store_at(path)) as store:
        store.add(LOGGED)
        path.unlink()
        store.add(replace(LOGGED, id="a2"))
        assert kept(path) == ["a2"]


# What is no decision log


def write_text(path: Path) -> None:
    path.write_text("A diary.\n" * 100, "utf-8")


def write_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE decisions (number INTEGER)")


def write_newer(path: Path) -> None:
    with closing(store_at(path)) as store:
        store.add(LOGGED)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 9")


def write_broken(path: Path) -> None:
    with closing(store_at(path)) as store:
        for number in range(50):
            store.add(replace(LOGGED, id=f"d{number}"))
    content = bytearray(path.read_bytes())
    content[4096 : 4096 * 3] = b"\xff" * 4096 * 2
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (write_text, "file is not a database"),
        (write_database, "it is a database of something else"),
        (write_newer, "its format is 9, and this version reads 1"),
        (write_broken, "malformed|never used|invalid|btree|Tree|page"),
    ],
)
def test_another_file_is_refused_and_left_as_it_is(tmp_path: Path, write: object, why: str) -> None:
    path = tmp_path / "file"
    write(path)  # type: ignore[operator]
    before = path.read_bytes()
    with (
        closing(store_at(path)) as store,
        pytest.raises(ConfigError, match=f"{path} cannot be used.*({why})") as caught,
    ):
        store.check()
    assert "name another file in decision_log.path" in caught.value.message
    with pytest.raises((ConfigError, DataError), match=str(path)):
        read_decisions(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("place", ["", "file/below.sqlite"])
def test_a_place_that_no_file_can_be_in_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with closing(store_at(tmp_path / place)) as store, pytest.raises(ConfigError, match="cannot be used"):
        store.check()


def test_reading_says_when_there_is_nothing_to_read(path: Path) -> None:
    with pytest.raises(DataError, match="There is no decision log"):
        read_decisions(path)
    path.parent.mkdir()
    path.touch()
    with pytest.raises(DataError, match="has no decisions yet"):
        read_decisions(path)
    assert path.read_bytes() == b""
