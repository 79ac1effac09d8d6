from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from cli import one_line

from support import BOTH_QUESTION, CARS_QUESTION, OTHER_QUESTION, SLEEP_QUESTION

if TYPE_CHECKING:
    from cli import CommandLine


@pytest.mark.parametrize(
    ("question", "kind", "experts"),
    [
        (SLEEP_QUESTION, "single", ["sleep"]),
        (CARS_QUESTION, "single", ["cars"]),
        (BOTH_QUESTION, "several", ["cars", "sleep"]),
        (OTHER_QUESTION, "general", []),
    ],
)
def test_json_is_one_object_with_the_decision(cli: CommandLine, question: str, kind: str, experts: list[str]) -> None:
    done = cli.run("route", question, "--json")
    assert (done.status, done.error, done.out.count("\n")) == (0, "", 1)
    routed = json.loads(done.out)
    assert list(routed) == ["query", "decision", "latency_ms"]
    assert routed["query"] == question
    decision = routed["decision"]
    assert list(decision) == ["kind", "experts", "scores", "runner_up", "reason", "router", "prediction_set", "choices"]
    assert (decision["kind"], sorted(decision["experts"]), decision["router"]) == (kind, experts, "lexical")
    assert set(decision["scores"]) == {"cars", "sleep", "none"}
    assert all(0 <= score <= 1 for score in decision["scores"].values())
    assert decision["reason"].endswith(".")
    assert 0 < routed["latency_ms"] < 1000


def test_without_json_it_says_who_why_and_how_sure(cli: CommandLine) -> None:
    done = cli.run("route", SLEEP_QUESTION)
    first, reason, *scores = done.out.splitlines()
    assert done.status == 0
    assert first.startswith("single: sleep   (")
    assert reason.startswith("The question is about Sleep science (")
    assert [line.split()[0] for line in scores] == ["sleep", "cars", "none"]
    assert "█" in scores[0]


def test_a_file_of_questions_comes_back_with_decisions(cli: CommandLine) -> None:
    lines = [{"query": SLEEP_QUESTION}, {"query": "why?", "history": [CARS_QUESTION], "id": 7}]
    done = cli.run("route", "--input", "-", stdin="".join(json.dumps(line) + "\n" for line in lines))
    routed = [json.loads(line) for line in done.out.splitlines()]
    assert done.status == 0
    assert [set(each) for each in routed] == [
        {"query", "decision", "latency_ms"},
        {"query", "history", "id", "decision", "latency_ms"},
    ]
    assert routed[1]["id"] == 7
    assert set(routed[0]["decision"]) >= {"kind", "experts", "scores", "runner_up", "reason"}


def test_an_unknown_router_lists_the_known_ones(cli: CommandLine) -> None:
    done = cli.run("route", SLEEP_QUESTION, "--router", "tarot")
    assert done.status == 2
    assert one_line(done) == "There is no router named 'tarot'. Known: embedding, lexical, zero_shot."


def test_a_router_that_was_not_fitted_says_what_to_do(cli: CommandLine) -> None:
    done = cli.run("route", SLEEP_QUESTION, "--router", "embedding")
    assert done.status == 2
    assert "There is no artifact in " in one_line(done)


def test_without_a_question_it_says_how_to_ask_one(cli: CommandLine) -> None:
    done = cli.run("route")
    assert done.status == 2
    assert one_line(done).startswith("Give a question, or --input FILE.")


def test_earlier_turns_may_be_given(cli: CommandLine) -> None:
    done = cli.run("route", "why?", "--history", CARS_QUESTION, "--history", "Hello", "--json")
    assert done.status == 0
    assert json.loads(done.out)["query"] == "why?"
