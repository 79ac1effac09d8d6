from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from cli import one_line

from support import BOTH_QUESTION, CARS_QUESTION, EXPLANATION_KEYS, OTHER_QUESTION, SLEEP_QUESTION

if TYPE_CHECKING:
    from cli import CommandLine


def weights(lines: list[str]) -> dict[str, float]:
    """The words of a block and their weights, in the order shown."""
    return {match[1]: float(match[2]) for line in lines if (match := re.match(r"  (\w+) +([+-]\d+\.\d\d)", line))}


def test_it_says_who_why_how_sure_and_which_words(cli: CommandLine) -> None:
    done = cli.run("explain", SLEEP_QUESTION)
    assert (done.status, done.error) == (0, "")
    decided, scored, weighed = done.out.split("\n\n")
    assert decided.startswith("single: sleep\nThe question is about Sleep science (")
    heading, *scores = scored.splitlines()
    assert heading.startswith("Scores   (needed from 50%, may be meant from 40%; runner-up: ")
    assert [line.split("  ")[1] for line in scores] == ["sleep", "cars", "none of them"]
    assert [line.index("|") - line.index("%") - 3 for line in scores] == [15, 15, 12], "where the thresholds are"
    assert "█" in scores[0]
    heading, *words = weighed.splitlines()
    assert heading == "Words for (+, █) and against (-, ░) sleep, as changes of its log-odds"
    shown = weights(words)
    assert next(iter(shown)) == "sleep"
    assert list(shown.values()) == sorted(shown.values(), key=abs, reverse=True)
    assert all(("░" in line) <= (" -" in line) for line in words)


def test_a_question_for_several_has_a_block_for_each_and_nobodys_question_one_for_nobody(cli: CommandLine) -> None:
    both = cli.run("explain", BOTH_QUESTION).out
    assert both.count("Words for") == 2
    assert "Words for (+, █) and against (-, ░) none of them" in cli.run("explain", OTHER_QUESTION).out


def test_json_is_the_object_of_the_api(cli: CommandLine) -> None:
    done = cli.run("explain", CARS_QUESTION, "--json", "-k", "3")
    assert (done.status, done.error, done.out.count("\n")) == (0, "", 1)
    body = json.loads(done.out)
    assert list(body) == EXPLANATION_KEYS
    assert (body["query"], body["about"], body["nearest"]) == (CARS_QUESTION, ["cars"], [])


@pytest.mark.parametrize("arguments", [(), ("  ",), (CARS_QUESTION, "-k", "-1")])
def test_without_a_question_it_says_how_to_ask_one(cli: CommandLine, arguments: tuple[str, ...]) -> None:
    done = cli.run("explain", *arguments)
    assert done.status == 2
    assert one_line(done).startswith("Give a question, and -k from 0 on: expert-router explain ")


def test_earlier_turns_may_be_given(cli: CommandLine) -> None:
    done = cli.run("explain", "why?", "--history", CARS_QUESTION, "--history", "Hello", "--json")
    assert done.status == 0
    assert json.loads(done.out)["history"] == [], "the lexical router reads the question alone"


def test_an_unknown_router_lists_the_known_ones(cli: CommandLine) -> None:
    done = cli.run("explain", SLEEP_QUESTION, "--router", "tarot")
    assert one_line(done) == "There is no router named 'tarot'. Known: embedding, lexical, zero_shot."
