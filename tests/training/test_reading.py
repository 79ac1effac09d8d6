"""What the encoder learns to find: which text answers a question, and which only look like it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from expert_router.training.examples import QuestionAnswer
from expert_router.training.reading import Reading, build_readings
from expert_router.types import Found, Passage

if TYPE_CHECKING:
    from collections.abc import Sequence

CITY = Passage("1", "First cars", "Benz drove in 1886. He lived in Mannheim.", "a.md")
OTHER = Passage("2", "Early racing", "Paris saw a race in 1894. The winner ran on steam.", "a.md")
SAME_YEAR = Passage("3", "Patents", "The patent of 1886 has three wheels.", "a.md")


class Shelf:
    """Knowledge that always finds the same passages, in this order."""

    def __init__(self, *passages: Passage) -> None:
        self.passages = passages

    def search(self, expert: str, question: str, history: Sequence[str] = (), limit: int = 3) -> list[Found]:  # noqa: ARG002 - the port
        return [Found(passage, 1.0 - place / 10) for place, passage in enumerate(self.passages)][:limit]


def readings(*items: QuestionAnswer, found: Sequence[Passage] = (OTHER, SAME_YEAR, CITY)) -> list[Reading]:
    return build_readings("cars", items, [CITY, OTHER, SAME_YEAR], Shelf(*found))


def test_a_question_written_for_a_passage_is_answered_by_its_sentences_with_the_key() -> None:
    (reading,) = readings(QuestionAnswer("when did he drive", "", ("1886",), "First cars"))
    assert reading.answering == ("First cars: Benz drove in 1886.",)
    assert reading.beside == ("First cars: He lived in Mannheim.",)
    assert reading.whole == "First cars. Benz drove in 1886. He lived in Mannheim."


def test_passages_that_hold_the_key_too_are_nothing_to_keep_away_from() -> None:
    (reading,) = readings(QuestionAnswer("when did he drive", "", ("1886",), "First cars"))
    assert reading.alike == ("Early racing: Paris saw a race in 1894.",)


def test_a_question_with_a_key_alone_believes_the_first_that_holds_it() -> None:
    (reading,) = readings(QuestionAnswer("which patent", "In 1886.", ("1886",)))
    assert reading.answering == ("Patents: The patent of 1886 has three wheels.",)
    assert not readings(QuestionAnswer("where", "In Mannheim.", ("Mannheim",)), found=(OTHER, SAME_YEAR, OTHER, CITY))


def test_questions_without_a_key_or_a_known_passage_teach_nothing() -> None:
    assert not readings(
        QuestionAnswer("what", "", ()),
        QuestionAnswer("what", "", ("",)),
        QuestionAnswer("what", "", ("1886",), "No such title"),
        QuestionAnswer("what", "", ("First cars",), "First cars"),  # only the title holds it: no sentence answers
    )


def test_what_is_drawn_is_of_its_kind_and_never_an_answer() -> None:
    (reading,) = readings(QuestionAnswer("when did he drive", "", ("1886",), "First cars"))
    rng = random.Random(0)
    assert {reading.positive(rng) for _ in range(50)} == {*reading.answering, reading.whole}
    drawn = {text for _ in range(50) for text in reading.negatives(rng)}
    assert drawn == {*reading.beside, *reading.alike}
    assert not drawn & reading.own
    assert Reading("q", ("a",), "b").negatives(rng) == []
