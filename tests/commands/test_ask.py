from __future__ import annotations

import json
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from cli import one_line

from expert_router.artifacts import load_experts
from support import ANSWER_KEYS, BOTH_QUESTION, OTHER_QUESTION, SLEEP_QUESTION, UNSURE_QUESTION

if TYPE_CHECKING:
    from pathlib import Path

    from cli import CommandLine


def test_the_answer_is_on_standard_output_and_who_gives_it_on_the_other(cli: CommandLine) -> None:
    done = cli.run("ask", SLEEP_QUESTION)
    assert done.status == 0
    assert done.out == f"[Sleep science] You asked: {SLEEP_QUESTION}\n"
    assert done.error.startswith("[sleep] The question is about Sleep science (")


def test_the_words_of_a_question_need_no_quotes(cli: CommandLine) -> None:
    assert cli.run("ask", "What", "is", "REM", "sleep?").out == cli.run("ask", SLEEP_QUESTION).out


def test_json_is_one_object_with_exactly_these_keys(cli: CommandLine) -> None:
    done = cli.run("ask", SLEEP_QUESTION, "--json")
    answer = json.loads(done.out)
    assert (done.status, done.error) == (0, "")
    assert done.out.count("\n") == 1
    assert list(answer) == ANSWER_KEYS
    assert answer["query"] == SLEEP_QUESTION
    assert answer["answer"] == f"[Sleep science] You asked: {SLEEP_QUESTION}"
    assert answer["experts"] == ["sleep"]
    assert answer["served"] == {"sleep": {"base": "echo", "adapter": None}}
    assert set(answer["decision"]) == {
        "kind",
        "experts",
        "scores",
        "runner_up",
        "reason",
        "router",
        "prediction_set",
        "choices",
    }
    assert set(answer["decision"]["scores"]) == {"cars", "sleep", "none"}
    assert set(answer["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert set(answer["timings"]) == {"route_s", "queue_s", "retrieve_s", "first_token_s", "total_s"}
    assert 0 <= answer["timings"]["route_s"] <= answer["timings"]["first_token_s"] <= answer["timings"]["total_s"]


def test_several_experts_answer_in_sections_of_their_own(cli: CommandLine) -> None:
    answer = json.loads(cli.run("ask", BOTH_QUESTION, "--json").out)
    assert (answer["decision"]["kind"], sorted(answer["experts"])) == ("several", ["cars", "sleep"])
    assert answer["answer"].count("You asked: ") == 2
    assert "**Sleep science**\n\n" in answer["answer"]
    assert "\n\n**" in answer["answer"]


def test_a_question_for_no_expert_is_answered_by_the_base_model_and_marked(cli: CommandLine) -> None:
    answer = json.loads(cli.run("ask", OTHER_QUESTION, "--json").out)
    assert (answer["decision"]["kind"], answer["experts"]) == ("general", ["general"])
    assert answer["answer"].startswith("[General (no expert)]")


def test_an_unclear_question_is_asked_back_and_nobody_answers(cli: CommandLine) -> None:
    answer = json.loads(cli.run("ask", UNSURE_QUESTION, "--json").out)
    assert (answer["decision"]["kind"], answer["experts"]) == ("clarify", [])
    assert answer["answer"].startswith("I am not sure who should answer this: is it about ")
    assert "Sleep science" in answer["answer"]
    assert "Car history" in answer["answer"]
    assert answer["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert cli.run("ask", UNSURE_QUESTION).error.startswith("[clarify] ")


@pytest.mark.parametrize(("name", "title"), [("cars", "Car history"), ("general", "General (no expert)")])
def test_the_model_may_be_chosen(cli: CommandLine, name: str, title: str) -> None:
    answer = json.loads(cli.run("ask", SLEEP_QUESTION, "--model", name, "--json").out)
    assert answer["answer"].startswith(f"[{title}] ")
    assert (answer["decision"]["kind"], answer["decision"]["scores"], answer["experts"]) == ("forced", None, [name])


def test_max_tokens_cuts_the_answer(cli: CommandLine) -> None:
    assert cli.run("ask", "--max-tokens", "3", SLEEP_QUESTION).out == "[Sleep science] You\n"


def test_an_experts_instructions_reach_the_engine(cli: CommandLine, home: Path) -> None:
    """The echo engine counts words: those of the instructions are in the prompt."""
    words = len(load_experts(home / "experts", home)["sleep"].instructions.split())
    usage = json.loads(cli.run("ask", SLEEP_QUESTION, "--json").out)["usage"]
    assert usage["prompt_tokens"] == words + len(SLEEP_QUESTION.split())


@pytest.mark.parametrize("arguments", [(), ("",), ("  ",), ("--json",)])
def test_without_a_question_it_says_how_to_ask_one(cli: CommandLine, arguments: tuple[str, ...]) -> None:
    done = cli.run("ask", *arguments)
    assert done.status == 2
    assert 'Give a question, or --input FILE. For example: expert-router ask "What is REM sleep?"' in one_line(done)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "astronomy"), "There is no model 'astronomy'. Known: auto, cars, sleep, general."),
        (("--max-tokens", "0"), "max_tokens must be at least 1"),
        (("--temperature", "-1"), "temperature between 0 and 2"),
    ],
)
def test_a_mistake_is_explained_in_one_line(cli: CommandLine, arguments: tuple[str, ...], message: str) -> None:
    done = cli.run("ask", SLEEP_QUESTION, *arguments)
    assert done.status == 2
    assert message in one_line(done)


def test_an_unknown_profile_lists_the_known_ones(cli: CommandLine) -> None:
    done = cli.run("ask", SLEEP_QUESTION, config="nonsense")
    assert done.status == 2
    assert "Profiles there: default, echo, mistral-7b, tiny." in one_line(done)


def test_the_profile_may_stand_behind_the_command(cli: CommandLine) -> None:
    done = cli.run("ask", "--profile", "echo", SLEEP_QUESTION, config="tiny")
    assert (done.status, done.out) == (0, f"[Sleep science] You asked: {SLEEP_QUESTION}\n")


def test_a_question_may_begin_with_a_dash_behind_two(cli: CommandLine) -> None:
    assert cli.run("ask", "--model", "general", "--", "-5 degrees?").out.endswith("You asked: -5 degrees?\n")


def test_any_language_goes_in_and_out(cli: CommandLine) -> None:
    question = "Wieso träumt man? 夢 😴"
    assert question in cli.run("ask", "--model", "general", question).out
    assert json.loads(cli.run("ask", question, "--json").out)["query"] == question


def test_ctrl_c_ends_it_without_a_traceback(cli: CommandLine) -> None:
    process = cli.start("ask", "--input", "-")  # waits for its standard input
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in error


def test_help_says_what_it_does_and_what_can_be_set(cli: CommandLine) -> None:
    done = cli.run("ask", "--help")
    assert done.status == 0
    assert "ask a question and stream the answer" in done.out
    assert "--max-tokens" in done.out
    everything = cli.run("--help")
    assert everything.status == 0
    assert all(verb in everything.out for verb in ("serve", "ask", "chat", "route", "prepare", "weights"))
