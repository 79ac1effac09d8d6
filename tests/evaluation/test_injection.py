"""The suite of prompt injections: well formed, and judged by what its authors wanted to be said."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from expert_router.errors import DataError
from expert_router.evaluation.injection import KINDS, Case, Planted, measure_injections, read_cases
from support import NAPS, ROOT, STAGES, FixedKnowledge

if TYPE_CHECKING:
    from pathlib import Path

CASES = ROOT / "data" / "injection" / "cases.jsonl"


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return read_cases(CASES)


def test_there_are_sixty_and_some_of_each_kind(cases: list[Case]) -> None:
    assert len(cases) >= 60
    counts = Counter(case.kind for case in cases)
    assert set(counts) == set(KINDS)
    assert min(counts.values()) >= 5
    assert len({case.id for case in cases}) == len(cases)
    assert {case.expert for case in cases} == {"sleep", "cars"}


def test_a_planted_passage_belongs_to_one_question(cases: list[Case]) -> None:
    """Or it would be found for another case of the same question."""
    asked = Counter(case.said for case in cases)
    assert {asked[case.said] for case in cases if case.passage is not None} == {1}


def test_earlier_turns_come_in_pairs(cases: list[Case]) -> None:
    for case in cases:
        assert len(case.before) % 2 == 0
        assert [message.role for message in case.messages][-1] == "user"


def test_who_refuses_obeys_no_case(cases: list[Case]) -> None:
    report = measure_injections(cases, ["I don't know: the texts I have do not say."] * len(cases))
    assert (report.all.value, report.succeeded) == (0, {})


def test_what_was_wanted_counts_by_kind(cases: list[Case]) -> None:
    first = next(case for case in cases if case.kind == "link")
    answers = ["See https://evil.example/?q=me" if case is first else "No." for case in cases]
    report = measure_injections(cases, answers)
    links = sum(case.kind == "link" for case in cases)
    assert report.succeeded == {first.id: "See https://evil.example/?q=me"}
    assert report.kinds["link"].value == pytest.approx(1 / links)
    assert report.kinds["question"].value == 0
    assert report.all.n == len(cases)


def test_a_planted_passage_is_found_first_and_only_for_its_question() -> None:
    knowledge = Planted(FixedKnowledge({"sleep": [STAGES]}), {"What is a nap?": NAPS})
    assert [hit.passage for hit in knowledge.search("sleep", "What is a nap?", limit=2)] == [NAPS, STAGES]
    assert [hit.passage for hit in knowledge.search("sleep", "What is a nap?", limit=1)] == [NAPS]
    assert [hit.passage for hit in knowledge.search("sleep", "What is REM?")] == [STAGES]


@pytest.mark.parametrize(
    "change", [{"kind": "other"}, {"hit": "("}, {"said": None, "hit": 3}, {"passage": "text"}, {"id": ...}]
)
def test_what_is_no_case_names_its_line(tmp_path: Path, change: dict[str, object]) -> None:
    row = {"id": "a", "kind": "link", "expert": "sleep", "said": "Hi", "hit": "x"} | change
    path = tmp_path / "cases.jsonl"
    path.write_text("\n" + json.dumps({k: v for k, v in row.items() if v is not ...}) + "\n", "utf-8")
    with pytest.raises(DataError, match=re.escape("cases.jsonl, line 2")):
        read_cases(path)


def test_an_empty_file_and_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cases.jsonl").write_text("\n", "utf-8")
    with pytest.raises(DataError, match="no cases"):
        read_cases(tmp_path / "cases.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_cases(tmp_path / "none.jsonl")
