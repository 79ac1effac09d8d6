"""What is made of samples whose times are known."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from expert_router.data.labelled import LabelledQuestion
from expert_router.evaluation.http_load import Level, Sample
from expert_router.evaluation.load_report import (
    LevelResult,
    ServiceLevel,
    knee,
    load_as_markdown,
    load_as_object,
    summarise,
)
from expert_router.evaluation.pictures import draw_load

if TYPE_CHECKING:
    from pathlib import Path

SLEEP = LabelledQuestion("What is REM sleep?", frozenset({"sleep"}), "sleep")
GOOD = Sample(SLEEP, 200, "", 0.1, [0.02, 0.04], 0.2, tokens=3, decided=True, experts=SLEEP.experts)
HIT = replace(GOOD, first_token_s=0.02, cache=frozenset({"hit"}))
BROKEN = replace(GOOD, error="The answer ended before it was whole.")


def result(*samples: Sample, clients: int = 2) -> LevelResult:
    return summarise(Level(clients, list(samples), 2.0), ServiceLevel(150, 40))


def test_throughput_is_of_whole_answers_over_all_the_time_and_those_of_the_cache_are_told_apart() -> None:
    measured = result(GOOD, HIT, replace(GOOD, total_s=0.4), BROKEN)
    assert (measured.requests, measured.answered, measured.cache_hits) == (4, 3, 1)
    assert (measured.requests_per_s, measured.tokens_per_s) == (1.5, 4.5)
    assert measured.all.inter_token_ms == pytest.approx({"p50": 30, "p95": 40, "p99": 40})
    assert measured.all.answer_ms == pytest.approx({"p50": 200, "p95": 380, "p99": 396})
    assert measured.new.first_token_ms == pytest.approx({"p50": 100, "p95": 100, "p99": 100})


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({}, True),
        ({"first_token_s": 0.151}, False),
        ({"gaps_s": [0.01, 0.08]}, False),  # 45 ms a token
        ({"gaps_s": [0.05]}, True),  # two tokens in one piece
        ({"gaps_s": [], "tokens": 1}, True),
        ({"error": "broke"}, False),
    ],
)
def test_good_is_what_keeps_both_limits_to_its_end(changes: dict[str, object], good: bool) -> None:
    measured = result(replace(GOOD, **changes))  # type: ignore[arg-type]
    assert (measured.good, measured.goodput_per_s) == (good, good / 2)


def test_failures_are_counted_by_status_each_with_a_reason() -> None:
    failed = [Sample(SLEEP, status, f"said {status}") for status in (429, 503, 0)]
    measured = result(GOOD, *failed, BROKEN)
    assert (measured.failures, measured.refused) == ({"429": 1, "503": 1, "no answer": 1, "broken off": 1}, 2)
    assert (measured.good, measured.reasons["429"]) == (1, "said 429")


def test_routing_is_right_when_exactly_those_were_chosen_and_left_out_where_nothing_was_told() -> None:
    routing = result(GOOD, replace(GOOD, experts=None), replace(GOOD, experts=frozenset({"sleep", "cars"}))).routing
    assert routing is not None
    assert (routing.value, routing.n) == (pytest.approx(1 / 3), 3)
    assert result(replace(GOOD, decided=False)).routing is None


@pytest.mark.parametrize(
    ("throughput", "where"),
    [
        ({1: 1, 2: 2, 4: 4, 8: 5, 16: 5.2, 32: 5.2}, 8),
        ({1: 1, 2: 2, 4: 4, 8: 3, 16: 2.5}, 4),  # it falls again
        ({1: 5, 8: 5.2, 32: 4.9}, 1),  # the first client has all there is
        ({1: 1, 2: 2, 4: 4}, None),  # it still grows with the clients
        ({1: 1, 8: 5}, None),
        ({1: 0, 2: 0, 4: 0}, None),
    ],
)
def test_the_knee_is_where_more_clients_gain_little(throughput: dict[int, float], where: int | None) -> None:
    one = result(GOOD)
    assert knee([replace(one, clients=n, requests_per_s=value) for n, value in throughput.items()]) == where


def test_the_report_is_for_people_and_programs_with_a_picture(tmp_path: Path) -> None:
    levels = [
        result(GOOD, clients=1),
        result(*[GOOD] * 9, HIT, clients=8),
        result(Sample(SLEEP, 429, "a | b"), clients=32),
    ]
    pictures = draw_load(tmp_path, levels)
    said, told = load_as_markdown({}, levels, pictures), load_as_object({}, levels)
    assert "| 8 | 10 | 5.00 | 15 | 100.0% | 5.00 | 1 | 0 | 0 | 100.0% (72.2% to 100.0%) |" in said
    assert "| 8, not from the cache | 100 / 100 / 100 | 30 / 40 / 40 | 200 / 200 / 200 |" in said
    assert "| 32 | 429 | 1 | a \\| b |" in said
    assert "**Knee**: 8." in said
    assert (told["knee"], told["levels"][2]["all"]["first_token_ms"]) == (8, None)
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")


def test_of_an_overload_it_is_told_how_soon_the_refused_knew(tmp_path: Path) -> None:
    refused = Sample(SLEEP, 429, "busy", total_s=0.02)
    level = Level(7, [GOOD, refused, replace(refused, total_s=0.04)], 2.0, rate=2.5)
    measured = summarise(level, ServiceLevel(150, 40))
    assert measured.refusal_ms == pytest.approx({"p50": 30, "p95": 39, "p99": 39.8})
    assert knee([measured] * 3) is None
    text = load_as_markdown({}, [measured], draw_load(tmp_path, [measured]))
    assert "| sent a second |" in text
    assert "| 2.5, refused | - | - | 30 / 39 / 40 |" in text
