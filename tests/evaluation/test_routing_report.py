from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from expert_router.data.labelled import LabelledQuestion
from expert_router.evaluation.routing import KindResult, evaluate_routing
from expert_router.routing.policy import Policy
from expert_router.types import Scores, Thresholds
from support import CARS_QUESTION, OTHER_QUESTION, SLEEP_QUESTION, TITLES, make_home

if TYPE_CHECKING:
    from pathlib import Path

    from expert_router.evaluation.routing import RoutingReport
    from expert_router.types import Decision

POLICY = Policy(Thresholds(accept=0.6, clarify=0.4), TITLES)
REFUSING = Policy(POLICY.thresholds, TITLES, on_general="refuse")

SLEEP = POLICY.decide(Scores({"sleep": 0.9, "cars": 0.1}, 0.1))
BOTH = POLICY.decide(Scores({"sleep": 0.9, "cars": 0.8}, 0.1))
CLARIFY = POLICY.decide(Scores({"sleep": 0.5, "cars": 0.5}, 0.1))
GENERAL = POLICY.decide(Scores({"sleep": 0.1, "cars": 0.1}, 0.9))
REFUSED = REFUSING.decide(Scores({"sleep": 0.1, "cars": 0.1}, 0.9))


def report(*questions: tuple[str, str, Decision]) -> RoutingReport:
    """Of questions given as kind, experts needed and the decision taken."""
    examples = [
        LabelledQuestion(f"question {number}", frozenset(experts.split()), kind)
        for number, (kind, experts, _) in enumerate(questions)
    ]
    decisions = {
        example.query: decision for example, (_, _, decision) in zip(examples, questions, strict=True)
    }  # fmt: skip
    return evaluate_routing(examples, decisions.__getitem__, "scripted")


def test_accuracy_is_counted_for_each_kind_of_question() -> None:
    measured = report(
        ("sleep", "sleep", SLEEP),
        ("other", "", GENERAL),
        ("sleep", "sleep", GENERAL),
        ("sleep", "sleep", SLEEP),
        ("sleep", "sleep", SLEEP),
        ("other", "", SLEEP),
    )
    assert measured.router == "scripted"
    assert measured.kinds == [KindResult("other", 2, 1), KindResult("sleep", 4, 3)]
    assert [kind.accuracy for kind in measured.kinds] == [0.5, 0.75]


@pytest.mark.parametrize(
    ("needed", "decision", "right"),
    [
        ("sleep", SLEEP, True),
        ("cars", SLEEP, False),
        ("sleep cars", BOTH, True),
        ("sleep", BOTH, False),  # one expert too many
        ("sleep cars", SLEEP, False),  # one too few
        ("sleep", GENERAL, False),
        ("", GENERAL, True),
        ("", REFUSED, True),
        ("", SLEEP, False),
    ],
)
def test_right_means_exactly_the_experts_that_are_needed(needed: str, decision: Decision, right: bool) -> None:
    assert report(("any", needed, decision)).kinds == [KindResult("any", 1, int(right))]


@pytest.mark.parametrize("needed", ["sleep cars", "sleep", ""])
def test_a_question_back_is_wrong_whatever_was_needed(needed: str) -> None:
    assert CLARIFY.kind == "clarify"
    assert report(("any", needed, CLARIFY)).kinds == [KindResult("any", 1, 0)]


def test_what_went_wrong_is_listed_with_its_decision_in_order() -> None:
    measured = report(("a", "sleep", BOTH), ("a", "sleep", SLEEP), ("b", "", CLARIFY))
    assert [(example.query, decision) for example, decision in measured.wrong] == [
        ("question 0", BOTH),
        ("question 2", CLARIFY),
    ]


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17, table I), score method without continuity correction
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # by symmetry
        (20, 20, 0.8389, 1.0),
        (28, 29, 0.8282, 0.9939),
    ],
)
def test_the_interval_is_wilsons(right: int, count: int, low: float, high: float) -> None:
    assert KindResult("any", count, right).interval() == pytest.approx((low, high), abs=5e-5)


def test_latency_is_in_milliseconds_and_tells_the_slow_ones() -> None:
    examples = [LabelledQuestion(str(number), frozenset(), "any") for number in range(40)]

    def decide(query: str) -> Decision:
        time.sleep(0.05 if query == "39" else 0.001)
        return GENERAL

    latency = evaluate_routing(examples, decide, "any").latency_ms
    assert 1.0 <= latency["p50"] <= latency["p95"] < 40.0
    assert 25.0 < latency["p99"] < 500.0  # interpolated towards the slowest


def test_the_first_decisions_are_not_measured() -> None:
    """A router that loads something with its first question is measured as it runs afterwards."""
    asked: list[str] = []

    def decide(query: str) -> Decision:
        if not asked:
            time.sleep(0.2)
        asked.append(query)
        return GENERAL

    assert evaluate_routing([LabelledQuestion("a", frozenset(), "any")], decide, "any").latency_ms["p99"] < 100.0
    assert asked == ["a", "a"]


# The command


def bench(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from expert_router.commands import main; main()", "bench", "routers", *arguments],
        env={**os.environ, "EXPERT_ROUTER_HOME": str(home), "EXPERT_ROUTER_CONFIG": "echo"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def labelled(path: Path, *questions: tuple[str, str | list[str]]) -> str:
    path.write_text("".join(json.dumps({"query": query, "label": label}) + "\n" for query, label in questions), "utf-8")
    return str(path)


def test_the_command_measures_routers_on_labelled_files(tmp_path: Path) -> None:
    ours = labelled(tmp_path / "ours.jsonl", (SLEEP_QUESTION, "sleep"), (CARS_QUESTION, ["cars"]))
    theirs = labelled(
        tmp_path / "theirs.jsonl", (OTHER_QUESTION, "other"), (SLEEP_QUESTION, "cars"), (CARS_QUESTION, "none")
    )
    done = bench(make_home(tmp_path / "home"), "--routers", "lexical", "--json", "--data", ours, theirs)
    assert (done.returncode, done.stderr) == (0, "")
    (measured,) = json.loads(done.stdout)["routers"]
    assert measured["router"] == "lexical"
    assert {kind: (of["count"], of["right"]) for kind, of in measured["kinds"].items()} == {
        "ours": (2, 2),
        "theirs": (3, 1),
    }
    assert measured["kinds"]["theirs"]["accuracy"] == pytest.approx(1 / 3)
    assert measured["kinds"]["ours"]["interval"] == pytest.approx([0.3424, 1.0], abs=5e-5)
    assert set(measured["latency_ms"]) == {"p50", "p95", "p99"}


def test_the_table_has_a_line_for_each_kind_and_lists_what_went_wrong(tmp_path: Path) -> None:
    data = labelled(tmp_path / "mixed.jsonl", (SLEEP_QUESTION, "sleep"), (CARS_QUESTION, "sleep"))
    done = bench(make_home(tmp_path / "home"), "--routers", "lexical", "--wrong", "--data", data)
    _, heading, kind, sets, wrong = done.stdout.splitlines()
    assert sets.split(" for ")[1].startswith("50.0%, which holds 1.00; 0 asked back")
    assert heading.startswith("lexical   p50 ")
    assert kind.split()[:5] == ["mixed", "1", "of", "2", "50.0%"]
    assert wrong.strip() == f"! mixed: {CARS_QUESTION!r} -> single cars"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--routers", "lexical", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--routers", "lexicla"], "lexical"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(tmp_path: Path, arguments: list[str], said: str) -> None:
    home = make_home(tmp_path / "home")
    data = labelled(tmp_path / "some.jsonl", (SLEEP_QUESTION, "sleep"))
    done = bench(home, *arguments, *([] if "--data" in arguments else ["--data", data]))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("expert-router: ")
    assert said in line
