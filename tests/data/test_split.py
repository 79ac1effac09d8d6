"""Splits keep twins together, hold their ratios, and stay as they are when a row comes."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from expert_router.data.clean import Record
from expert_router.data.similar import Pair, similar_pairs
from expert_router.data.split import RATIOS, SPLITS, assign, families, largest_family, position

WORDS = [f"{a}{b}{c}" for a in ("bra", "clo", "dri", "fen", "gal") for b in "aeiou" for c in ("st", "ck", "mp", "rn")]


def record(question: str, subject: str = "", *experts: str) -> Record:
    return Record("x.csv", 1, question, "x", question, experts, subject=subject)


def varied(count: int, seed: int = 0) -> list[Record]:
    """Distinct questions of two labels and twelve subjects, every fifth followed by a near twin with another label."""
    rng = random.Random(seed)
    records: list[Record] = []
    while len(records) < count:
        words = rng.sample(WORDS, 8)
        subject = f"s{rng.randrange(12)}"
        records.append(record(" ".join(words), subject, rng.choice(["sleep", "cars"])))
        if len(records) % 5 == 0:
            records.append(record(" ".join([*words[:7], "other"]), subject))
    return records


def splits_of(records: list[Record], seed: int = 7) -> dict[str, str]:
    pairs = similar_pairs([r.words for r in records])
    return dict(zip((r.question for r in records), assign(records, pairs, seed).splits, strict=True))


def test_similar_questions_never_straddle() -> None:
    records = varied(600)
    pairs = similar_pairs([r.words for r in records])
    assignment = assign(records, pairs, 7)
    assert len(pairs) >= 100
    assert assignment.apart == 0
    assert all(assignment.splits[p.first] == assignment.splits[p.second] for p in pairs)


def test_ratios_hold_for_the_whole_and_roughly_for_each_label() -> None:
    records = varied(2_000)
    splits = splits_of(records)
    for label in ("sleep", "cars", None):
        own = [r for r in records if label is None or r.experts == (label,)]
        shares = Counter(splits[r.question] for r in own)
        for split in SPLITS:
            assert shares[split] / len(own) == pytest.approx(RATIOS[split], abs=0.04)


def test_every_topic_has_at_least_half_of_its_share() -> None:
    records = [record(f"{word} {i}", f"topic {i % 40}", "sleep") for i, word in enumerate(WORDS * 8)]
    splits = assign(records, [], 7).splits
    for topic in {r.subject for r in records}:
        own = Counter(s for r, s in zip(records, splits, strict=True) if r.subject == topic)
        assert own["test"] >= own.total() * 0.2 // 2
        assert own["train"] >= own.total() * 0.7 // 2


@pytest.mark.parametrize("count", [3, 4, 10])
def test_even_few_questions_reach_every_split(count: int) -> None:
    for seed in range(20):
        records = [record(word, "", "sleep") for word in WORDS[:count]]
        assert set(assign(records, [], seed).splits) == set(SPLITS)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_do_not_break_it(count: int) -> None:
    records = [record(word) for word in WORDS[:count]]
    assert len(assign(records, [], 7).splits) == count


def test_same_seed_same_split_and_another_seed_another() -> None:
    records = varied(300)
    assert splits_of(records) == splits_of(records)
    assert splits_of(records, seed=7) != splits_of(records, seed=8)


def test_added_rows_do_not_reshuffle_the_others() -> None:
    records = varied(500)
    before = splits_of(records)
    for new in varied(30, seed=99):
        after = splits_of([*records, new])
        moved = [question for question in before if after[question] != before[question]]
        assert len(moved) <= 2, "more than a small topic's last family moved"
    inserted = [*records[:250], record("something entirely new", "s1", "cars"), *records[250:]]
    after = splits_of(inserted)
    assert [q for q in before if after[q] != before[q]] == []


def test_position_depends_on_words_and_seed_alone() -> None:
    places = [position((word,), 7) for word in WORDS]
    assert places == [position((word,), 7) for word in WORDS]
    assert 0 <= min(places) < 0.2
    assert 0.8 < max(places) < 1


def chain(count: int, *, same_wording: bool) -> list[Pair]:
    return [Pair(i, i + 1, 0.8, same_wording) for i in range(count - 1)]


def test_a_template_does_not_put_everything_into_one_family() -> None:
    sizes = Counter(families(100, chain(100, same_wording=False), limit=10))
    assert max(sizes.values()) == 10


def test_same_wording_stays_together_beyond_the_limit() -> None:
    assert set(families(100, chain(100, same_wording=True), limit=10)) == {0}


def test_a_full_family_takes_its_most_similar_first() -> None:
    pairs = [Pair(0, 2, 0.7, same_wording=False), Pair(1, 2, 0.9, same_wording=False)]
    assert families(3, pairs, limit=2) == [0, 1, 1]


def test_divided_families_are_counted() -> None:
    records = [record(f"sleep question {i}") for i in range(40)]
    assignment = assign(records, chain(40, same_wording=False), 7)
    assert assignment.largest_family == largest_family(40) == 5
    assert assignment.apart > 0
    assert set(assignment.splits) == set(SPLITS)


def test_the_largest_family_changes_only_when_the_data_doubles() -> None:
    assert [largest_family(n) for n in (1, 255, 600, 1_000, 1_023, 1_024, 100_000)] == [5, 6, 25, 25, 25, 50, 50]
