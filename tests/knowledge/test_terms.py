from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from expert_router.knowledge.terms import TermIndex
from support import BENZ, NAPS, STAGES, passage

if TYPE_CHECKING:
    from expert_router.types import Passage

TEXTS = [
    "Sleep comes in cycles and deep sleep comes first.",
    "Sleep with melatonin comes sooner.",
    "Sleep comes late to teenagers whatever the clock says.",
    "Sleep after a nap comes later in the night than usual.",
]
SLEEP = [passage(f"Passage {number}", f"{number}.md", text) for number, text in enumerate(TEXTS)]
INDEX = TermIndex({"sleep": SLEEP, "cars": [BENZ], "wine": []})


def best(index: TermIndex, text: str) -> Passage:
    return index.passages[int(index.scores(text).argmax())]


def test_a_rare_word_finds_its_passage_among_common_ones() -> None:
    assert best(INDEX, "Does sleep come with melatonin?") == SLEEP[1]
    scores = INDEX.scores("sleep melatonin")
    assert scores[1] > 2 * max(scores[[0, 2, 3]])
    assert min(scores[[0, 2, 3]]) > 0


def test_a_word_of_the_title_counts_more_than_one_of_the_text() -> None:
    in_title, in_text = passage("Yawning", "a.md", "The mouth opens."), passage("The mouth", "b.md", "Yawning opens.")
    index = TermIndex({"sleep": [in_text, in_title]})
    assert best(index, "yawning") == in_title
    assert min(index.scores("yawning")) > 0


def test_a_word_of_many_repetitions_does_not_beat_two_words_of_the_question() -> None:
    repeating = passage("Coffee", "a.md", "coffee " * 30)
    answering = passage("Caffeine", "b.md", "Coffee keeps people awake for six hours on average after a cup.")
    assert best(TermIndex({"sleep": [repeating, answering, *SLEEP]}), "hours awake after coffee") == answering


def test_case_and_punctuation_do_not_matter() -> None:
    assert INDEX.scores("MELATONIN?!").tolist() == INDEX.scores("melatonin").tolist()


@pytest.mark.parametrize("text", ["", "   ", "?!", "the of and", "zebra giraffe", "睡眠"])
def test_a_text_without_known_words_scores_nothing(text: str) -> None:
    assert INDEX.scores(text).tolist() == [0.0] * len(INDEX.passages)
    assert INDEX.evidence(text) == {"sleep": 0.0, "cars": 0.0, "wine": 0.0}


def test_unknown_words_beside_known_ones_change_no_score() -> None:
    assert INDEX.scores("zebra melatonin giraffe").tolist() == INDEX.scores("melatonin").tolist()


def test_passages_stand_in_the_order_of_their_experts_each_with_its_owner() -> None:
    index = TermIndex({"cars": [BENZ], "wine": [], "sleep": [STAGES, NAPS]})
    assert index.experts == ("cars", "wine", "sleep")
    assert index.passages == (BENZ, STAGES, NAPS)
    assert [index.experts[owner] for owner in index.owner_P] == ["cars", "sleep", "sleep"]
    assert index.scores("nap").shape == (3,)


@pytest.mark.parametrize(
    "corpora",
    [{}, {"sleep": []}, {"sleep": [passage("The", "a.md", "of and")]}, {"sleep": [passage("", "a.md", "")]}],
    ids=["no expert", "no passage", "no word", "no text"],
)
def test_an_index_of_nothing_finds_nothing(corpora: dict[str, list[Passage]]) -> None:
    index = TermIndex(corpora)
    assert index.scores("What is REM sleep?").tolist() == [0.0] * len(index.passages)
    assert index.evidence("What is REM sleep?") == dict.fromkeys(corpora, 0.0)


# Evidence


def test_evidence_speaks_for_the_expert_whose_passage_holds_the_words() -> None:
    evidence = INDEX.evidence("Did Carl Benz patent a three-wheeler?")
    assert evidence["cars"] > 0.3
    assert evidence["sleep"] == 0


def test_an_expert_without_passages_never_has_evidence() -> None:
    assert all(INDEX.evidence(text)["wine"] == 0 for text in (*TEXTS, BENZ.text, "wine"))


def test_evidence_counts_per_word_and_so_is_bounded_however_long_the_text() -> None:
    """No word counts for more than the logarithm of its rarity: Robertson and Zaragoza (2009), equation 3.3."""
    count = 1000
    crowd = [passage(f"Passage {n}", f"{n}.md", f"Some words {n} of many.") for n in range(count)]
    index = TermIndex({"sleep": crowd, "cars": [BENZ]})
    rarest = math.log(1 + (count + 1 - 1 + 0.5) / 1.5)
    for text in ("Benz", "Carl Benz", BENZ.text, "Benz " * 500, f"{BENZ.text} {'Benz ' * 500}"):
        assert 0 < index.evidence(text)["cars"] < rarest


def test_several_words_of_one_passage_say_more_than_one() -> None:
    one, two, name_and_year = (
        INDEX.evidence(text)["cars"] for text in ("January", "January 1886", "Benz January 1886")
    )
    assert one < two < name_and_year


def test_words_spread_over_passages_say_less_than_together_in_one() -> None:
    apart = TermIndex({"sleep": [passage("Naps", "a.md", "Twenty minutes."), passage("Coffee", "b.md", "Six hours.")]})
    together = TermIndex({"sleep": [passage("Naps", "a.md", "Coffee first."), passage("Beds", "b.md", "Six hours.")]})
    assert apart.evidence("coffee naps")["sleep"] < together.evidence("coffee naps")["sleep"]


def test_scores_are_single_precision() -> None:
    """They are added to the encoder's cosines, which are."""
    assert INDEX.scores("sleep").dtype == INDEX.scores("").dtype == np.float32
