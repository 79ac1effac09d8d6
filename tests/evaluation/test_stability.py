from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from expert_router.errors import DataError
from expert_router.evaluation.stability import measure_stability, read_paraphrases
from expert_router.types import Decision

if TYPE_CHECKING:
    from pathlib import Path

PAIRS = [("Who built it, in 1901?", "Its maker in 1901?"), ("What is a nap, then?", "Define nap, please.")]


def decision(expert: str) -> Decision:
    return Decision("single", (expert,), None, None, "")


def same_of(pairs: list[tuple[str, str]], decides: object) -> dict[str, float]:
    return {result.way: result.same.value for result in measure_stability(pairs, decides)}  # type: ignore[arg-type]


def test_who_always_decides_alike_is_stable_in_every_way() -> None:
    assert set(same_of(PAIRS, lambda _: decision("sleep")).values()) == {1.0}


def test_each_way_of_typing_finds_what_depends_on_it() -> None:
    def has(mark: str) -> object:
        return lambda text: decision("sleep" if mark in text else "cars")

    assert same_of(PAIRS, has(","))["no punctuation"] == 0.0
    assert same_of(PAIRS, has("W"))["lower case"] == 0.0
    assert same_of(PAIRS, has("h"))["CAPITALS"] == 0.0
    assert same_of(PAIRS, has("Define"))["a paraphrase"] == 0.5
    assert same_of(PAIRS, lambda text: decision(str(text in dict(PAIRS))))["a typing error"] == 0.0
    assert same_of(PAIRS, lambda text: decision(str(text in dict(PAIRS))))["a polite preamble"] == 0.0


def test_the_changed_questions_are_named_and_the_count_is_of_all() -> None:
    (paraphrase,) = [
        result
        for result in measure_stability(PAIRS, lambda text: decision("sleep" if "Define" in text else "cars"))
        if result.way == "a paraphrase"
    ]
    assert paraphrase.changed == [PAIRS[1]]
    assert paraphrase.same.n == 2


def test_the_shipped_paraphrases_are_each_of_another_question(request: pytest.FixtureRequest) -> None:
    pairs = read_paraphrases(request.config.rootpath / "data" / "stability" / "paraphrases.csv")
    assert len({question for question, _ in pairs}) == len(pairs) >= 200
    assert all(question.strip().lower() != other.strip().lower() for question, other in pairs)


@pytest.mark.parametrize("content", ["", "question\nwhy\n", "question,paraphrase\n"])
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "some.csv").write_text(content, "utf-8")
    with pytest.raises(DataError, match=r"some\.csv"):
        read_paraphrases(tmp_path / "some.csv")
