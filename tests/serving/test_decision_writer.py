"""Decisions on their way to the log: off the event loop, and whatever becomes of the log, the answer goes on."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from expert_router.decision_log import DecisionStore, read_decisions
from expert_router.engines.echo import EchoEngine
from expert_router.errors import NotReadyError, UnknownDecisionError
from expert_router.serving.decision_writer import MAX_CHARACTERS, MAX_TURNS, DecisionWriter
from expert_router.types import ChatRequest, Decision, Feedback, Message, Routed, Scores, Served
from support import OTHER_QUESTION, SLEEP_QUESTION, FixedRouter, build, eventually, run_on_full_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DECISION = Decision("single", ("sleep",), Scores({"sleep": 0.9, "cars": 0.1}, 0.05), "cars", "It is.", "fixed")
SERVED = {"sleep": Served("base", "ab" * 32)}
ON_FULL_DISK = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, "tests")
from expert_router.decision_log import DecisionStore
from expert_router.engines.echo import EchoEngine
from expert_router.serving.decision_writer import DecisionWriter
from expert_router.types import ChatRequest, Message
from support import build
async def main():
    log = DecisionWriter(DecisionStore(Path(sys.argv[1]), retention_days=30, max_rows=1000))
    dispatcher = build(EchoEngine(), log=log)
    request = ChatRequest((Message("user", "What is REM sleep? " * 300),), "sleep")
    answers = [await dispatcher.ask(request) for _ in range(40)]
    await dispatcher.close()
    status = log.status()
    print(len(answers), status["written"] + status["failed"], status["failed"] > 0)
asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "decisions.sqlite"


@pytest.fixture
def writer(path: Path) -> Iterator[DecisionWriter]:
    writer = writer_at(path)
    yield writer
    writer.close()


def writer_at(path: Path, max_waiting: int = 100) -> DecisionWriter:
    return DecisionWriter(DecisionStore(path, retention_days=30, max_rows=1000, busy_timeout_s=0.2), max_waiting)


def record(writer: DecisionWriter, question: str = SLEEP_QUESTION) -> str | None:
    return writer.record([question], DECISION, SERVED, "fixed-1")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process in the middle of a long write."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.execute("ROLLBACK")
    other.close()


def ask(question: str, *before: str, model: str = "auto") -> ChatRequest:
    history = [message for turn in before for message in (Message("user", turn), Message("assistant", "Yes."))]
    return ChatRequest((*history, Message("user", question)), model)


def test_closing_writes_what_waits(path: Path) -> None:
    writer = writer_at(path)
    identifiers = [record(writer) for _ in range(50)]
    writer.close()
    writer.close()
    assert [logged.id for logged in read_decisions(path)] == identifiers
    assert len(set(identifiers)) == 50
    assert writer.status() == {"written": 50, "dropped": 0, "failed": 0}
    assert record(writer) is None


def test_only_so_much_of_a_conversation_is_kept(path: Path) -> None:
    writer = writer_at(path)
    writer.record([f"turn {n}" for n in range(99)] + ["x" * 10 * MAX_CHARACTERS], DECISION, SERVED, "fixed-1")
    writer.close()
    (logged,) = read_decisions(path)
    assert len(logged.question) == MAX_CHARACTERS
    assert logged.history == tuple(f"turn {n}" for n in range(99 - MAX_TURNS, 99))


async def test_feedback_finds_the_decision_made_just_before(writer: DecisionWriter, path: Path) -> None:
    identifier = record(writer)
    assert identifier is not None
    await writer.rate(identifier, Feedback("down", ("cars",)))
    (logged,) = read_decisions(path)
    assert logged.feedback == Feedback("down", ("cars",))


async def test_feedback_on_an_unknown_decision_is_an_error(writer: DecisionWriter) -> None:
    record(writer)
    with pytest.raises(UnknownDecisionError, match="no decision 'nope'"):
        await writer.rate("nope", Feedback("up"))


async def test_where_too_much_waits_decisions_are_dropped_and_counted(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = writer_at(path, max_waiting=3)
    identifier = record(writer)
    eventually(lambda: writer.status()["written"] == 1)
    with locked(path):
        started = time.perf_counter()
        taken = [record(writer) for _ in range(10)]
        assert time.perf_counter() - started < 0.5
        with pytest.raises(NotReadyError, match="too much to write"):
            await writer.rate(str(identifier), Feedback("up"))
    writer.close()
    assert 3 <= sum(one is not None for one in taken) <= 4
    assert writer.status()["dropped"] == taken.count(None) + 1
    assert [r.getMessage() for r in caplog.records].count(WARNING) == 1


WARNING = "the decision log misses decisions; answers go on without it"


async def test_a_locked_log_neither_delays_nor_fails_an_answer(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = writer_at(path)
    dispatcher = build(EchoEngine(), log=log)
    first = await dispatcher.ask(ask(SLEEP_QUESTION))
    eventually(lambda: log.status()["written"] == 1)
    with locked(path):
        started = time.perf_counter()
        answers = [await dispatcher.ask(ask(SLEEP_QUESTION)) for _ in range(2)]
        assert time.perf_counter() - started < 0.5
        await asyncio.to_thread(eventually, lambda: log.status()["failed"] == 2)
        with pytest.raises(NotReadyError, match=r"cannot be written now \(database is locked\)"):
            await log.rate(str(first.decision.id), Feedback("up"))
    assert {answer.text for answer in answers} == {first.text}
    after = await dispatcher.ask(ask(SLEEP_QUESTION))
    await dispatcher.close()
    assert [logged.id for logged in read_decisions(path)] == [first.decision.id, after.decision.id]
    assert [r.getMessage() for r in caplog.records].count(WARNING) == 1


def test_a_full_disk_fails_no_answer(path: Path) -> None:
    program = [sys.executable, "-c", ON_FULL_DISK, str(path)]
    done = run_on_full_disk(program, 120_000)
    assert (done.returncode, done.stdout) == (0, "40 40 True\n"), done.stderr
    assert done.stderr.count(WARNING) == 1
    assert read_decisions(path)  # what was written before is whole


def test_a_log_that_became_another_file_fails_no_answer(path: Path) -> None:
    path.write_text("A diary.", "utf-8")
    writer = writer_at(path)
    assert record(writer) is not None
    writer.close()
    assert writer.status()["written"] == 0
    assert path.read_text("utf-8") == "A diary."


# From the dispatcher


async def test_each_request_is_logged_with_its_turns_scores_router_and_adapters(path: Path) -> None:
    dispatcher = build(EchoEngine(), FixedRouter(DECISION.scores or Scores({}, 0)), log=writer_at(path))
    routed = [event async for event in dispatcher.stream(ask("And why?", SLEEP_QUESTION)) if isinstance(event, Routed)]
    await dispatcher.close()
    (logged,) = read_decisions(path)
    assert logged.id == routed[0].decision.id
    assert (logged.question, logged.history) == ("And why?", (SLEEP_QUESTION,))
    assert (logged.router, logged.router_version) == ("fixed", "fixed-1")
    assert (logged.kind, logged.experts, logged.forced) == ("single", ("sleep",), None)
    assert logged.scores == DECISION.scores
    assert logged.adapters == {"sleep": None}  # the echo has none


async def test_whom_the_request_named_is_logged_as_its_choice(path: Path) -> None:
    dispatcher = build(EchoEngine(), log=writer_at(path))
    await dispatcher.ask(ask(OTHER_QUESTION, model="cars"))
    await dispatcher.close()
    (logged,) = read_decisions(path)
    assert (logged.kind, logged.forced, logged.router, logged.router_version, logged.scores) == (
        "forced", "cars", "", "", None,
    )  # fmt: skip


async def test_a_decision_alone_is_not_logged_and_without_a_log_there_is_no_id(path: Path) -> None:
    log = writer_at(path)
    dispatcher = build(EchoEngine(), log=log)
    await dispatcher.deployed.decide(SLEEP_QUESTION)
    await dispatcher.close()
    assert log.status()["written"] == 0
    assert (await build(EchoEngine()).ask(ask(SLEEP_QUESTION))).decision.id is None


def test_the_adapter_that_answered_is_logged_by_its_hash(path: Path) -> None:
    writer = writer_at(path)
    writer.record([SLEEP_QUESTION], replace(DECISION, id=None), SERVED, "fixed-1")
    writer.close()
    assert read_decisions(path)[0].adapters == {"sleep": "ab" * 32}


def test_one_thread_writes_and_ends_with_the_log(path: Path) -> None:
    before = threading.active_count()
    writer = writer_at(path)
    assert threading.active_count() == before + 1
    writer.close()
    assert threading.active_count() == before
