"""Decisions that were made, and what people said of them: one SQLite file, private to its owner.

The server writes it, ``evaluate replay`` and ``train router`` read it. Nothing here leaves the machine. Any number of
threads and processes may write the same file: SQLite's write-ahead log keeps their writes apart.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from expert_router.errors import ConfigError, DataError
from expert_router.redaction import redact
from expert_router.types import GENERAL, Decision, Feedback, Scores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from expert_router.types import DecisionKind

APPLICATION_ID = 0x4552444C
"""Marks a SQLite file as a decision log (https://sqlite.org/pragma.html#pragma_application_id)."""
SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 1.0
"""So long a write waits for another process's."""
PRUNE_INTERVAL_S = 3600.0
_SCHEMA = """
CREATE TABLE decisions (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    time TEXT NOT NULL,
    question TEXT NOT NULL,
    history TEXT NOT NULL,
    router TEXT NOT NULL,
    router_version TEXT NOT NULL,
    scores TEXT,
    kind TEXT NOT NULL,
    experts TEXT NOT NULL,
    forced TEXT,
    adapters TEXT NOT NULL,
    rating TEXT,
    override TEXT,
    rated TEXT
)
"""
_INSERT = """
INSERT INTO decisions (id, time, question, history, router, router_version, scores, kind, experts, forced, adapters)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_SELECT = """
SELECT id, time, question, history, router, router_version, scores, kind, experts, forced, adapters, rating, override,
rated FROM decisions ORDER BY number
"""
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


@dataclass(frozen=True, slots=True)
class LoggedDecision:
    """A question, who was to answer it and why, and what was said of that last.

    ``time`` and ``rated`` are UTC, in ISO 8601, and sort as they are. ``history`` are the user's earlier turns, oldest
    first. ``forced`` is whom the request named: the router was not asked then. ``adapters``: the hash of each
    answering expert's adapter, ``None`` where the base model answered.
    """

    id: str
    time: str
    question: str
    history: tuple[str, ...]
    router: str
    router_version: str
    scores: Scores | None
    kind: DecisionKind
    experts: tuple[str, ...]
    forced: str | None
    adapters: Mapping[str, str | None]
    feedback: Feedback | None = None
    rated: str | None = None

    @property
    def needed(self) -> frozenset[str] | None:
        """Who should have answered, as far as it was said: nobody where it is empty, ``None`` where that is open."""
        if self.feedback is None or (self.feedback.experts is None and self.feedback.rating != "up"):
            return None
        if self.feedback.experts is not None:
            return frozenset(self.feedback.experts)
        return None if self.kind == "clarify" else frozenset(self.experts) - {GENERAL}

    @property
    def decision(self) -> Decision:
        """As it was made, without the words that explained it."""
        return Decision(self.kind, self.experts, self.scores, None, "", self.router, id=self.id)


class DecisionStore:
    """The file, opened when it is first written; ``check`` says before that whether it can be.

    Methods raise ``sqlite3.Error`` or ``OSError`` when the disk or another process is in the way, and ``ConfigError``
    when the file is not a decision log.
    """

    def __init__(
        self,
        path: Path,
        *,
        retention_days: float | None,
        max_rows: int,
        redacted: bool = True,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """``clock`` tells the time of day; where it jumps ahead, nothing is deleted for an age that did not pass."""
        self.path = path
        self._retention_days = retention_days
        self._max_rows = max_rows
        self._redacted = redacted
        self._busy_timeout_s = busy_timeout_s
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._pruned_at = float("-inf")
        self._clock = clock
        self._opened = clock(), time.monotonic()

    def check(self) -> None:
        """Raises ``ConfigError`` when the file cannot be made or is not a whole decision log; makes none."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                with closing(_open(self.path, self._busy_timeout_s)) as connection:
                    (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                    if state != "ok":
                        raise _not_a_log(self.path, state)
        except (sqlite3.Error, OSError) as error:
            if not _is_busy(error):
                raise _not_a_log(self.path, error) from error

    def add(self, logged: LoggedDecision) -> None:
        """Append it, redacted, and now and then delete what is too old."""
        kept = redact if self._redacted else str
        row = (
            logged.id,
            logged.time,
            kept(logged.question),
            _json([kept(turn) for turn in logged.history]),
            logged.router,
            logged.router_version,
            logged.scores and _json({"experts": dict(logged.scores.experts), "none": logged.scores.none}),
            logged.kind,
            _json(logged.experts),
            logged.forced,
            _json(dict(logged.adapters)),
        )
        with self._lock:
            number = self._execute(_INSERT, row).lastrowid or 0
            self._execute("DELETE FROM decisions WHERE number <= ?", (number - self._max_rows,))
        self.prune()

    def rate(self, decision: str, feedback: Feedback) -> bool:
        """Replace what was said of a decision before; false when it is not there."""
        override = None if feedback.experts is None else _json(feedback.experts)
        values = (feedback.rating, override, stamp(), decision)
        with self._lock:
            changed = self._execute("UPDATE decisions SET rating = ?, override = ?, rated = ? WHERE id = ?", values)
        return changed.rowcount > 0

    def prune(self) -> None:
        """Delete what is too old, at most once an hour; a file that is not there is not made for it."""
        due = time.monotonic() - self._pruned_at >= PRUNE_INTERVAL_S
        if self._retention_days is None or not due or not self.path.exists():
            return
        opened, then = self._opened
        now = min(self._clock(), opened + timedelta(seconds=time.monotonic() - then))
        oldest = stamp(now - timedelta(days=min(self._retention_days, 100_000)))
        with self._lock:
            self._execute("DELETE FROM decisions WHERE time < ?", (oldest,))
        self._pruned_at = time.monotonic()

    def close(self) -> None:
        with self._lock:
            self._disconnect()

    def _execute(self, statement: str, values: tuple[Any, ...]) -> sqlite3.Cursor:
        """After a failure, and where the file was deleted, the next statement opens it anew."""
        if self._connection is not None and not self.path.exists():
            self._disconnect()
        try:
            if self._connection is None:
                self._connection = _open(self.path, self._busy_timeout_s)
            return self._connection.execute(statement, values)
        except sqlite3.Error as error:
            if not _is_busy(error):
                self._disconnect()
            raise

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def read_decisions(path: Path) -> list[LoggedDecision]:
    """All decisions, oldest first; nothing is changed.

    Raises ``DataError`` when there are none or they cannot be read, ``ConfigError`` when it is another kind of file.
    """
    if not path.is_file():
        raise DataError(f"There is no decision log {path}. One is kept where decision_log.path is set.")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            rows = connection.execute(_SELECT).fetchall() if _is_log(connection, path) else []
        logged = [_from_row(row) for row in rows]
    except (sqlite3.Error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as a decision log: {error}") from error
    if not logged:
        raise DataError(f"The decision log {path} has no decisions yet.")
    return logged


def stamp(when: datetime | None = None) -> str:
    """UTC in ISO 8601, to the millisecond; now unless told otherwise."""
    return (when or datetime.now(UTC)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _open(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """Open or make the file, for its owner alone; SQLite gives the files beside it the same mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
    try:
        known = _is_log(connection, path)
        for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
            if (file := path.with_name(name)).exists():
                file.chmod(0o600)
        if not known:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            if not _is_log(connection, path):  # another process may have been faster
                connection.execute(_SCHEMA)
                connection.execute("CREATE INDEX decisions_by_time ON decisions (time)")
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten
    except BaseException:
        connection.close()
        raise
    return connection


def _is_log(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether it is one already; false when it is empty. Raises ``ConfigError`` when it is something else."""
    (identifier,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if (identifier, version, tables) == (0, 0, 0):
        return False
    if identifier != APPLICATION_ID:
        raise _not_a_log(path, "it is a database of something else")
    if version != SCHEMA_VERSION:
        raise _not_a_log(path, f"its format is {version}, and this version reads {SCHEMA_VERSION}")
    return True


def _not_a_log(path: Path, why: object) -> ConfigError:
    reason = " ".join(str(why).split()).rstrip(".")
    return ConfigError(
        f"{path} cannot be used as the decision log: {reason}. Move it away, or name another file in decision_log.path."
    )


def _is_busy(error: Exception) -> bool:
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY


def _from_row(row: tuple[Any, ...]) -> LoggedDecision:
    *first, history, router, version, scores, kind, experts, forced, adapters, rating, override, rated = row
    identifier, when, question = first
    said = json.loads(scores) if scores else None
    feedback = Feedback(rating, None if override is None else tuple(json.loads(override))) if rated else None
    return LoggedDecision(
        identifier,
        when,
        question,
        tuple(json.loads(history)),
        router,
        version,
        said and Scores(said["experts"], said["none"]),
        kind,
        tuple(json.loads(experts)),
        forced,
        json.loads(adapters),
        feedback,
        rated,
    )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
