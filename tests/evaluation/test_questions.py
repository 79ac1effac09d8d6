from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.errors import ConfigError, DataError
from expert_router.evaluation.questions import (
    Question,
    keys_by_question,
    prepared_questions,
    public_questions,
    sample,
    unanswerable_questions,
)
from support import SLEEP

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_prepared_questions_have_one_whole_answer_and_their_keys(tmp_path: Path) -> None:
    rows = 'question,answer,key,topic\nHow long a nap?,"Twenty minutes, no more.",twenty|20,naps\n'
    (tmp_path / "test_sleep.csv").write_text(rows, "utf-8")
    expected = Question("How long a nap?", "sleep", ("Twenty minutes, no more.",), ("twenty", "20"), "test", prose=True)
    expert = type(SLEEP)("sleep", "Sleep", "", "", split_name="sleep")
    assert prepared_questions(expert, tmp_path) == [expected]
    with pytest.raises(DataError, match="expert-router prepare"):
        prepared_questions(expert, tmp_path / "nowhere")


def test_what_no_text_answers_is_rightly_answered_by_saying_so(tmp_path: Path) -> None:
    path = tmp_path / "unanswerable.csv"
    path.write_text('question\n"Who, then?"\nWhy?\n', "utf-8")
    assert unanswerable_questions(SLEEP) == []
    first, second = unanswerable_questions(replace(SLEEP, unanswerable=path))
    assert (first.text, first.expert, first.keys, second.text) == ("Who, then?", "sleep", (), "Why?")
    assert all("I don't know" in reference for reference in first.references)


def test_only_the_asked_for_split_is_taken_and_what_names_none_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "unanswerable.csv"
    path.write_text("question,split\nWho?,test\nWhy?,calibration\nWhen?,\n", "utf-8")
    expert = replace(SLEEP, unanswerable=path)
    assert [question.text for question in unanswerable_questions(expert)] == ["Who?", "When?"]
    assert [question.text for question in unanswerable_questions(expert, "calibration")] == ["Why?"]


@pytest.mark.parametrize("content", [None, b"query\nWhy?\n", b"question\n\xff\n"])
def test_a_file_of_something_else_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "odd.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"odd\.csv is not a file of questions"):
        unanswerable_questions(replace(SLEEP, unanswerable=path))


def test_aliases_are_keys_unless_the_answer_is_long(tmp_path: Path) -> None:
    path = write(
        tmp_path / "naps.jsonl",
        {"question": "How long?", "aliases": ["20 minutes", "twenty"], "answer_type": "short", "expert": "sleep"},
        {"question": "Why?", "aliases": ["Because the body clock dips."], "answer_type": "long", "label": "sleep"},
    )
    short, long = public_questions(path, ["cars", "sleep"])
    assert short == Question(
        "How long?", "sleep", ("20 minutes", "twenty"), ("20 minutes", "twenty"), "naps", prose=False
    )
    assert (long.references, long.keys) == (("Because the body clock dips.",), ())


def test_a_file_that_does_not_say_whose_it_is_belongs_to_the_only_expert(tmp_path: Path) -> None:
    path = write(tmp_path / "some.jsonl", {"question": "How long?", "aliases": ["20"]})
    assert [question.expert for question in public_questions(path, ["sleep"])] == ["sleep"]
    with pytest.raises(ConfigError, match="line 1: whose question is it"):
        public_questions(path, ["cars", "sleep"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: not an object"),
        ("[]", "line 2: not an object"),
        ('{"question": "Why?"}', "line 2: not an object"),
        ('{"question": "Why?", "aliases": []}', "line 2: question must be a text"),
        ('{"question": "Why?", "aliases": "one"}', "line 2: question must be a text"),
        ('{"question": " ", "aliases": ["one"]}', "line 2: question must be a text"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = write(tmp_path / "some.jsonl", {"question": "How long?", "aliases": ["20"]})
    path.write_text(path.read_text("utf-8") + line, "utf-8")
    with pytest.raises(DataError, match=said):
        public_questions(path, ["sleep"])


def test_a_file_without_a_question_for_these_experts_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "some.jsonl", {"question": "Who?", "aliases": ["Benz"], "expert": "cars"})
    with pytest.raises(DataError, match="no question for sleep"):
        public_questions(path, ["sleep"])
    with pytest.raises(DataError, match="cannot be read"):
        public_questions(tmp_path / "nowhere.jsonl", ["sleep"])


def test_a_sample_is_the_same_in_any_order_and_grows_with_its_limit() -> None:
    words = [f"{letter}{number}" for letter in "ab" for number in range(20)]

    def drawn(limit: int | None, items: list[str]) -> list[str]:
        return sample(items, limit, str, lambda word: word[0])

    five = drawn(5, words)
    assert sorted(word[0] for word in five) == ["a"] * 5 + ["b"] * 5
    assert five == [word for word in words if word in five]  # in the file's order
    assert set(five) == set(drawn(5, words[::-1])) < set(drawn(9, words))
    assert drawn(None, words) == drawn(99, words) == words


def test_a_question_that_two_experts_have_is_answered_by_the_keys_of_both() -> None:
    both = [Question("Why?", "sleep", ("a",), ("nap",)), Question("Why?", "cars", ("b",), ("Benz",))]
    assert keys_by_question(both) == {"Why?": ("nap", "Benz")}
