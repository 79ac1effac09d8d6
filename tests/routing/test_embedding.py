from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from expert_router.artifacts import load_experts
from expert_router.routing.embedding import EmbeddingRouter
from expert_router.serving.build import Parts, build_router
from expert_router.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

SLEEP, CARS = "What happens in the brain during REM sleep?", "Who founded Ferrari, and when?"


@pytest.fixture(scope="module")
def router() -> Iterator[EmbeddingRouter]:
    """The shipped router with the shipped encoder."""
    settings = load_settings("default")
    experts = load_experts(settings.resolve(settings.paths.experts), settings.home)
    router = build_router(Parts(settings, experts, progress=False))
    assert isinstance(router, EmbeddingRouter)
    assert router.experts == tuple(experts)
    yield router
    router.close()


def chosen(router: EmbeddingRouter, query: str, *history: str) -> set[str]:
    scores = router.score(query, history)
    return {name for name, p in scores.experts.items() if p >= router.thresholds.accept}


@pytest.mark.parametrize(
    ("query", "experts"),
    [
        (SLEEP, {"sleep"}),
        ("i wake at 3 am every night, why", {"sleep"}),
        (CARS, {"cars"}),
        ("why did the edsel flop", {"cars"}),
        ("When was the Model T built, and how many hours should a teenager sleep?", {"sleep", "cars"}),
        ("What is the capital of France?", set()),
        ("set an alarm for 6 tomorrow", set()),
        ("Who sang Mustang Sally?", set()),
    ],
)
def test_plain_questions_go_where_they_belong(router: EmbeddingRouter, query: str, experts: set[str]) -> None:
    assert chosen(router, query) == experts


@pytest.mark.parametrize("before", [SLEEP, CARS])
@pytest.mark.parametrize("query", ["what is 2+2", "thanks, bye", "How do I cook pasta?", "Who wrote Hamlet?"])
def test_an_unrelated_question_does_not_stick_to_the_expert_before_it(
    router: EmbeddingRouter, before: str, query: str
) -> None:
    assert chosen(router, query, before) == set()


def test_a_follow_up_is_read_with_the_turn_before_it(router: EmbeddingRouter) -> None:
    assert chosen(router, "And how long does it last?", SLEEP) == {"sleep"}
    assert chosen(router, "And how long does it last?") == set()


def test_none_and_the_experts_are_probabilities(router: EmbeddingRouter) -> None:
    for query in (SLEEP, CARS, "zzz", "睡眠", "a " * 5000):
        scores = router.score(query)
        assert all(0 <= p <= 1 for p in (*scores.experts.values(), scores.none))
