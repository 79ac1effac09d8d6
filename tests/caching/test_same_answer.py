"""Would one answer serve both? Cases for each guard, none of them from the suite; then the suite's own figures."""

from __future__ import annotations

from collections import Counter

import pytest

from expert_router.caching import vocabulary
from expert_router.caching.same_answer import differences, same_answer
from expert_router.caching.wording import form_of, read_wording
from expert_router.evaluation.same_answer import measure_same_answer, read_pairs
from support import ROOT

SAME = """
Who invented the airbag? | By whom was the airbag invented?
How come cats sleep so much? | Why do cats sleep so much?
When was Volvo bought by Ford? | In which year did Ford acquire Volvo?
Who founded Lotus? | Who was the founder of Lotus?
Hi, where was the first motorway built? Thanks! | where did they build the first highway
What proportion of adults snore? | What percentage of grown-ups snore?
In 1966, who won Le Mans? | Who won Le Mans in 1966?
Is twenty-two mg too much? | is 22mg too much
"""
DIFFERENT = """
Who designed the Porsche 911? | Who designed the Porsche 912?
Is two hours of sleep enough? | Is twelve hours of sleep enough?
Who built the Model A? | Who built the model?
Was it built in the 1930s? | Was it built in the 1830s?
Who designed the Mini? | Who designed the Mini Cooper?
Is it safe to nap? | Is it not safe to nap?
Can I take melatonin with alcohol? | Can I take melatonin without alcohol?
What did it cost before the war? | What did it cost after the war?
When did Ford buy Volvo? | When did Volvo buy Ford?
When was Volvo bought by Ford? | When was Ford bought by Volvo?
Who beat Ferrari? | Who did Ferrari beat?
Who beat Ferrari? | Who was beaten by Ferrari?
Which company did Fiat buy? | Which company bought Fiat?
What causes insomnia? | What does insomnia cause?
Why do men snore more than women? | Why do women snore more than men?
Was it sold to Turin? | Was it sold from Turin?
What film is the car in? | What car is in the film?
Who owns Bentley? | Who owned Bentley?
Who are you? | Who am I?
Is -5 degrees too cold? | Is 5 degrees too cold?
What is C++? | What is C#?
What year did it end? | What day did it end?
How many were made? | How much were they?
Which woman won the rally? | Which man won the rally?
"""


def pairs_of(text: str) -> list[tuple[str, str]]:
    return [tuple(line.split(" | ")) for line in text.strip().splitlines()]  # type: ignore[misc]


@pytest.mark.parametrize(("first", "second"), pairs_of(SAME))
def test_other_words_for_the_same_are_the_same_either_way(first: str, second: str) -> None:
    assert differences(read_wording(first), read_wording(second)) == []
    assert same_answer(second, first)


@pytest.mark.parametrize(("first", "second"), pairs_of(DIFFERENT))
def test_what_would_mislead_one_of_the_two_is_told_apart_either_way(first: str, second: str) -> None:
    assert not same_answer(first, second)
    assert not same_answer(second, first)


def test_what_stands_against_it_is_named() -> None:
    found = differences(read_wording("Who owns Bentley?"), read_wording("When was Audi founded?"))
    assert found == ["asks who / when", "words bentley own / audi establish", "tense present / past"]


def test_no_phrase_of_the_vocabulary_has_two_meanings() -> None:
    entries = Counter("_".join(entry) for line in vocabulary.SAME for entry in line)
    assert [entry for entry, count in entries.items() if count > 1] == []
    assert {form_of("_".join(entry)) for entry in vocabulary.SAME[1]} == {form_of("_".join(vocabulary.SAME[1][0]))}


def test_the_suite_has_no_false_hit_and_finds_some_paraphrases() -> None:
    calibration, test = measure_same_answer(read_pairs(ROOT / "data/same_answer/pairs.csv"), same_answer)
    for result, least in ((calibration, 0.15), (test, 0.03)):
        assert result.false is not None
        assert (result.false.value, result.false.n > 250) == (0, True)
        assert result.hits is not None
        assert result.hits.value > least
