from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from support import CARS_QUESTION, OTHER_QUESTION, SLEEP_QUESTION

if TYPE_CHECKING:
    from cli import CommandLine


def talk(cli: CommandLine, *lines: str, arguments: tuple[str, ...] = ()) -> str:
    """All that is on the screen but what the user types; the conversation ends with the lines."""
    done = cli.run("chat", *arguments, stdin="".join(f"{line}\n" for line in lines))
    assert done.status == 0
    return done.out


def test_it_introduces_itself_answers_turn_by_turn_and_ends_at_the_end_of_the_input(cli: CommandLine) -> None:
    screen = talk(cli, SLEEP_QUESTION, CARS_QUESTION)
    introduction, first, second, end = screen.split("\n> ")
    assert introduction.startswith("Ask about cars, sleep, general. /model NAME")
    assert first == f"[Sleep science] You asked: {SLEEP_QUESTION}\n"
    assert second == f"[Car history] You asked: {CARS_QUESTION}\n"
    assert end == "\n"


def test_who_answers_and_why_is_said_beside_the_answer(cli: CommandLine) -> None:
    error = cli.run("chat", stdin=f"{SLEEP_QUESTION}\n{OTHER_QUESTION}\n").error
    first, second = error.splitlines()
    assert first.startswith("[sleep] The question is about Sleep science (")
    assert second.startswith("[general] No expert covers this question")


def test_the_user_may_choose_who_answers(cli: CommandLine) -> None:
    screen = talk(cli, "/model cars", SLEEP_QUESTION, "/model auto", SLEEP_QUESTION)
    assert "From now on: cars." in screen
    assert f"[Car history] You asked: {SLEEP_QUESTION}" in screen
    assert f"From now on: auto.\n\n> [Sleep science] You asked: {SLEEP_QUESTION}" in screen
    assert "[General (no expert)]" in talk(cli, SLEEP_QUESTION, arguments=("--model", "general"))


@pytest.mark.parametrize("line", ["/model astronomy", "/model"])
def test_an_unknown_name_lists_the_known_ones(cli: CommandLine, line: str) -> None:
    assert "Known: auto, cars, sleep, general." in talk(cli, line)


def test_an_unknown_command_lists_the_known_ones(cli: CommandLine) -> None:
    assert "Known: /model NAME, /clear, /quit." in talk(cli, "/dance")


def test_quit_leaves_and_empty_lines_do_nothing(cli: CommandLine) -> None:
    screen = talk(cli, "", "   ", "/quit", SLEEP_QUESTION)
    assert "You asked" not in screen


def test_it_may_start_anew(cli: CommandLine) -> None:
    screen = talk(cli, SLEEP_QUESTION, "/clear", CARS_QUESTION)
    assert "The conversation starts anew." in screen
    assert f"[Car history] You asked: {CARS_QUESTION}" in screen


def test_an_answer_that_fails_is_explained_and_the_conversation_goes_on(cli: CommandLine) -> None:
    done = cli.run("chat", "--model", "astronomy", stdin=f"{SLEEP_QUESTION}\n/model sleep\n{SLEEP_QUESTION}\n")
    assert done.status == 0
    assert "There is no model 'astronomy'. Known: auto, cars, sleep, general." in done.error
    assert "Traceback" not in done.error
    assert f"[Sleep science] You asked: {SLEEP_QUESTION}" in done.out


def test_ctrl_c_stops_an_answer_and_not_the_conversation(cli: CommandLine) -> None:
    process = cli.start("chat", "--model", "sleep", "--max-tokens", "1000000")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("word " * 200_000 + "\n")
    process.stdin.flush()
    said = ""
    while "You asked: word" not in said:
        said += process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(f"{SLEEP_QUESTION}\n/quit\n", timeout=20)
    assert process.returncode == 0
    assert out.count("word") < 200_000
    assert "(stopped)" in out
    assert out.rstrip().endswith(f"[Sleep science] You asked: {SLEEP_QUESTION}\n\n>")
    assert "Traceback" not in error
