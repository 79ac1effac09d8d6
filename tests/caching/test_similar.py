from __future__ import annotations

from expert_router.caching.similar import SimilarAnswers
from expert_router.types import Chunk, Usage
from support import WordEncoder

WHOLE = (Chunk("[1] Bela Barenyi."), Chunk("", "stop", Usage(9, 3)))
ASKED, AGAIN = "Who invented the crumple zone?", "Who was the inventor of the crumple zone?"
NEAR = "Who invented the crumple horn?"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def answers(clock: Clock | None = None, similarity: float = 0.3) -> SimilarAnswers:
    return SimilarAnswers(WordEncoder(), similarity=similarity, max_answers=2, ttl_s=60, clock=clock or Clock())


async def test_other_words_find_the_answer_and_the_question_that_it_was_given_to() -> None:
    store = answers()
    await store.keep("scope", ASKED, (), WHOLE)
    kept = await store.find("scope", AGAIN)
    assert kept is not None
    assert (kept.question, kept.chunks) == (ASKED, WHOLE)
    assert await store.find("other", AGAIN) is None
    assert store.status() == {"questions": 1, "hits": 1, "misses": 1, "refused": 0, "evicted": 0}


async def test_a_near_question_is_another_and_the_very_same_is_left_to_the_cache_of_whole_prompts() -> None:
    store = answers()
    await store.keep("scope", ASKED, (), WHOLE)
    assert await store.find("scope", NEAR) is None
    assert await store.find("scope", ASKED) is None
    assert store.status()["refused"] == 1
    far = answers(similarity=0.99)
    await far.keep("scope", ASKED, (), WHOLE)
    assert await far.find("scope", AGAIN) is None
    assert far.status()["refused"] == 0


async def test_an_answer_lives_as_long_as_it_may() -> None:
    clock = Clock()
    store = answers(clock)
    await store.keep("scope", ASKED, (), WHOLE)
    clock.now = 59.9
    assert await store.find("scope", AGAIN) is not None
    clock.now = 60
    assert await store.find("scope", AGAIN) is None
    assert store.status()["questions"] == 0


async def test_the_least_recently_used_goes_first() -> None:
    store = answers()
    await store.keep("scope", ASKED, (), WHOLE)
    await store.keep("scope", NEAR, (), WHOLE)
    assert await store.find("scope", AGAIN) is not None
    await store.keep("scope", "Why do cats purr?", (), WHOLE)
    assert await store.find("scope", "By whom was the crumple horn invented?") is None
    assert await store.find("scope", AGAIN) is not None
    assert (store.status()["questions"], store.status()["evicted"]) == (2, 1)
