"""``evaluate replay`` as people use it: on a log that answers have filled."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from cli import Finished, one_line

import expert_router
from expert_router.commands import run
from expert_router.decision_log import DecisionStore, read_decisions
from expert_router.types import Feedback, Message
from support import BOTH_QUESTION, CARS_QUESTION, OTHER_QUESTION, SLEEP_QUESTION, make_home

if TYPE_CHECKING:
    from pathlib import Path

    from expert_router.decision_log import LoggedDecision

ASKED = (SLEEP_QUESTION, CARS_QUESTION, BOTH_QUESTION, OTHER_QUESTION, "Is bread | a car?")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose lexical router has answered, and then learnt that bread is a car."""
    home = make_home(tmp_path / "checkout")
    monkeypatch.setenv("EXPERT_ROUTER_HOME", str(home))
    monkeypatch.setenv("EXPERT_ROUTER_DECISION_LOG__PATH", "runs/decisions.sqlite")
    with expert_router.open("echo", progress=False) as system:
        for question in ASKED:
            assert system.ask(question).decision.id
        system.ask(
            [Message("user", SLEEP_QUESTION), Message("assistant", "It is."), Message("user", "Is bread a car?")]
        )
        system.ask("Why?", model="cars")
        system.route("Not asked, so not kept.")
    with (home / "data/processed/routing_train.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"Is bread number {n} a car?,cars,test,\n" for n in range(12))
    return home


@pytest.fixture
def log(home: Path) -> Path:
    return home / "runs" / "decisions.sqlite"


def replay(capsys: pytest.CaptureFixture[str], *arguments: str) -> Finished:
    capsys.readouterr()
    return Finished(run(["--config", "echo", "evaluate", "replay", *arguments]), *capsys.readouterr())


def rate(log: Path, *said: tuple[LoggedDecision, Feedback]) -> None:
    store = DecisionStore(log, retention_days=None, max_rows=99)
    for logged, feedback in said:
        assert store.rate(logged.id, feedback)
    store.close()


def test_it_shows_what_changed_and_how_often_it_is_right_now(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logged = {each.question: each for each in read_decisions(log)}
    rate(
        log,
        (logged[SLEEP_QUESTION], Feedback("up")),
        (logged["Is bread | a car?"], Feedback("down", ("cars",))),
        (logged[CARS_QUESTION], Feedback("up")),
    )
    done = replay(capsys)
    assert done.status == 0, done.error
    assert f"{log}: 6 decisions of lexical and 1 that the request named, left out here." in done.out
    assert "| single | 100.0%" in done.out
    assert "| Is bread \\| a car? | clarify: cars, sleep | single: cars | yes |" in done.out
    assert "| Is bread a car? | clarify: cars, sleep | single: cars |  |" in done.out
    assert "By people's feedback on 3: right then 66.7%" in done.out
    assert "right now 100.0%" in done.out


def test_json_has_all_of_it_and_the_router_by_name_and_version(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(replay(capsys, "--log", str(log), "--router", "lexical", "--json").out)
    assert (found["log"], found["router"]) == (str(log), {"name": "lexical", "version": "lexical"})
    assert found["same"]["n"] == 6
    assert sum(kind["n"] for kind in found["kinds"].values()) == 6
    assert [changed["question"] for changed in found["changed"]] == ["Is bread | a car?", "Is bread a car?"]
    assert found["judged"] == {"logged": None, "now": None, "difference": None, "open": 0}
    assert found["named"] == 1


def test_only_so_many_changes_are_listed(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = replay(capsys, "--log", str(log), "--changes", "1")
    assert "The first 1 of 2 that changed:" in done.out
    assert "Is bread a car?" not in done.out
    assert "The first" not in replay(capsys, "--log", str(log), "--changes", "0").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--log", "nowhere.sqlite"), "There is no decision log nowhere.sqlite."),
        (("--changes", "-1"), "--changes takes a number from 0 on, not -1."),
        (("--router", "tarot"), "There is no router named 'tarot'."),
        (("--router", "embedding", "--router-artifact", "/nowhere/router"), "There is no artifact in /nowhere/router"),
    ],
)
@pytest.mark.usefixtures("log")
def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str) -> None:
    done = replay(capsys, *arguments)
    assert done.status == 2
    assert one_line(done).startswith(said)


def test_no_log_an_empty_one_and_another_file_are_said(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "cannot be read as a decision log" in one_line(replay(capsys, "--log", str(home / "models.lock")))
    (home / "empty.sqlite").touch()
    assert one_line(replay(capsys, "--log", str(home / "empty.sqlite"))).endswith("has no decisions yet.")
    monkeypatch.delenv("EXPERT_ROUTER_DECISION_LOG__PATH")
    assert one_line(replay(capsys)).startswith("Name the decision log, --log FILE")


def test_a_log_that_cannot_be_one_stops_the_start(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPERT_ROUTER_DECISION_LOG__PATH", "models.lock")
    with pytest.raises(expert_router.ExpertRouterError, match=r"models\.lock cannot be used as the decision log"):
        expert_router.open("echo", progress=False)
    assert (home / "models.lock").read_text("utf-8").startswith("#")
