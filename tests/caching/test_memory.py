from __future__ import annotations

from expert_router.caching.memory import ENTRY_BYTES, MemoryStore


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def store(answers: int = 3, size: int = 10, clock: Clock | None = None, ttl_s: float = 60.0) -> MemoryStore:
    """Room for so many answers of so many bytes."""
    return MemoryStore(answers * (ENTRY_BYTES + size), ttl_s, clock or Clock())


async def kept(store: MemoryStore, *keys: str) -> list[str]:
    return [key for key in keys if await store.get(key) is not None]


async def test_what_was_put_is_there_and_nothing_else() -> None:
    answers = store()
    await answers.put("a", b"1")
    assert (await answers.get("a"), await answers.get("b")) == (b"1", None)
    await answers.put("a", b"22")
    assert await answers.get("a") == b"22"
    assert answers.status() == {"store": "memory", "answers": 1, "bytes": ENTRY_BYTES + 2, "evicted": 0}


async def test_an_answer_ends_with_its_time_and_is_not_renewed_by_being_used() -> None:
    clock = Clock()
    answers = store(clock=clock, ttl_s=60.0)
    await answers.put("a", b"1")
    clock.now += 59.9
    assert await answers.get("a") == b"1"
    clock.now += 0.1
    assert await answers.get("a") is None
    assert (answers.status()["answers"], answers.status()["bytes"]) == (0, 0)


async def test_beyond_its_bytes_the_least_recently_used_go() -> None:
    answers = store(3, 10)
    for key in "abc":
        await answers.put(key, b"0123456789")
    await answers.get("a")
    await answers.put("d", b"0123456789")
    assert await kept(answers, *"abcd") == ["a", "c", "d"]
    assert answers.status() == {"store": "memory", "answers": 3, "bytes": 3 * (ENTRY_BYTES + 10), "evicted": 1}


async def test_a_long_answer_takes_the_room_of_several_short_ones() -> None:
    answers = store(3, 10)
    for key in "abc":
        await answers.put(key, b"0123456789")
    await answers.put("d", b"x" * (ENTRY_BYTES + 10))
    assert await kept(answers, *"abcd") == ["c", "d"]


async def test_an_answer_that_is_too_long_for_it_all_displaces_none() -> None:
    answers = store(3, 10)
    await answers.put("a", b"1")
    await answers.put("b", b"x" * 5000)
    assert await kept(answers, "a", "b") == ["a"]
    await answers.put("a", b"x" * 5000)
    assert await answers.get("a") is None, "nor is an older one given in its place"


async def test_its_bytes_stay_within_the_bound_whatever_comes() -> None:
    answers = store(3, 10)
    for number in range(200):
        await answers.put(str(number % 7), b"x" * (number * 37 % 900))
        assert 0 <= answers.status()["bytes"] <= 3 * (ENTRY_BYTES + 10)  # type: ignore[operator]
    await answers.close()
    assert answers.status()["bytes"] == 0
