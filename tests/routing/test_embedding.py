from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from expert_router.artifacts import load_experts
from expert_router.routing.embedding import EmbeddingRouter
from expert_router.routing.encoder import MAX_CHARACTERS
from expert_router.serving.build import build_router
from expert_router.serving.parts import Parts
from expert_router.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

SLEEP, CARS = "What happens in the brain during REM sleep?", "Who founded Ferrari, and when?"


@pytest.fixture(scope="module")
def parts() -> Parts:
    settings = load_settings("default")
    return Parts(settings, load_experts(settings.resolve(settings.paths.experts), settings.home), progress=False)


@pytest.fixture(scope="module")
def router(parts: Parts) -> Iterator[EmbeddingRouter]:
    """The shipped router with the shipped encoder."""
    router = build_router(parts)
    assert isinstance(router, EmbeddingRouter)
    assert router.experts == tuple(parts.experts)
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


@pytest.mark.parametrize("query", ["Could you give me an example?", "on whom?", "and in general?", "is that common"])
def test_a_turn_that_says_little_of_its_own_stays_with_what_it_is_about(router: EmbeddingRouter, query: str) -> None:
    assert chosen(router, query, SLEEP) == {"sleep"}
    assert chosen(router, query, SLEEP, "wow, thanks", "and how long does it last?") == {"sleep"}
    assert chosen(router, query, "How do I cook pasta?") == set()


@pytest.mark.parametrize("query", ["the effect on the heart?", "women too?", "in winter as well?", "dangerous?"])
def test_a_turn_of_a_few_content_words_goes_on(router: EmbeddingRouter, query: str) -> None:
    assert chosen(router, query, SLEEP) == {"sleep"}
    assert chosen(router, query) == set()


@pytest.mark.parametrize("before", [SLEEP, CARS])
@pytest.mark.parametrize("query", ["How many strings does a violin have?", "how do I iron a shirt", "Who wrote Faust?"])
def test_a_short_question_that_says_what_it_is_about_begins_anew(
    router: EmbeddingRouter, before: str, query: str
) -> None:
    assert chosen(router, query, before) == set()


def test_a_remark_is_no_subject_to_go_on_with(router: EmbeddingRouter) -> None:
    assert chosen(router, "and in older people?", SLEEP, "My aunt will never believe me.") == {"sleep"}


def test_who_goes_back_to_an_earlier_subject_finds_it(router: EmbeddingRouter) -> None:
    talk = (SLEEP, CARS, "How do I cook pasta?", "and for how long?")
    assert chosen(router, "Back to the brain: is that the same in everybody?", *talk) == {"sleep"}
    assert chosen(router, "ok, back to the founder: where was he born?", *talk) == {"cars"}
    assert chosen(router, "Back to the first one: how much salt?", "How do I cook pasta?", "and rice?") == set()


@pytest.mark.parametrize(
    "query", ["Thanks!", "ok, got it", "lol", "bye", "grazie mille", "Merci!", "ty", "fair enough"]
)
def test_thanks_go_nowhere_whatever_was_said_before(router: EmbeddingRouter, query: str) -> None:
    assert chosen(router, query, SLEEP) == chosen(router, query) == set()


def test_a_follow_up_comes_back_to_its_subject_after_thanks_and_leaves_with_a_new_one(router: EmbeddingRouter) -> None:
    assert chosen(router, "and how long does it last?", SLEEP, "thanks") == {"sleep"}
    assert chosen(router, "and who drove it?", SLEEP, CARS) == {"cars"}
    assert chosen(router, "and how long does it take?", SLEEP, "How do I cook pasta?") == set()


def test_none_and_the_experts_are_probabilities(router: EmbeddingRouter) -> None:
    for query in (SLEEP, CARS, "zzz", "睡眠", "a " * 5000):
        scores = router.score(query)
        assert all(0 <= p <= 1 for p in (*scores.experts.values(), scores.none))


def test_texts_embedded_together_have_the_vectors_they_have_alone_in_their_order(parts: Parts) -> None:
    encoder = parts.encoder
    texts = [f"{question} {n}" for n, question in enumerate([SLEEP, CARS, "thanks"] * 4)]
    together = list(encoder.encode_all(texts))
    assert len(together) == len(texts)
    for vector, text in zip(together, texts, strict=True):
        assert np.array_equal(vector, encoder.encode(text))


def test_who_stops_listening_does_not_wait_for_the_rest(parts: Parts) -> None:
    vectors = parts.encoder.encode_all([f"{SLEEP} {n}" for n in range(100_000)])
    assert next(vectors).shape == (384,)
    vectors.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encoder")]


def test_a_megabyte_is_encoded_by_its_beginning_and_only_that_is_remembered(parts: Parts) -> None:
    long = f"{SLEEP} " * 30_000
    assert np.array_equal(parts.encoder.encode(long), parts.encoder.encode(long[:MAX_CHARACTERS]))
    assert np.array_equal(parts.encoder.encode(long), parts.encoder.encode(f"{SLEEP} " * 50))  # 128 tokens are less
    assert max(map(len, parts.encoder._recent)) <= MAX_CHARACTERS
