from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest

from expert_router.engines.model_cache import ModelCache
from expert_router.errors import EngineError, WeightsError
from support import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Shelf:
    """Models that are strings; keeps who was loaded and unloaded, and may be told to wait or fail."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.sizes: dict[str, int] = {}
        self.failures: dict[str, list[Exception]] = {}
        self.dead: set[str] = set()
        self.go_on = threading.Event()
        self.go_on.set()
        self.threads: set[str] = set()
        self._at_once = threading.Lock()

    def load(self, key: str) -> str:
        assert self._at_once.acquire(blocking=False), "two loads at once"
        try:
            self.threads.add(threading.current_thread().name)
            self.log.append(f"load {key}")
            assert self.go_on.wait(5)
            if self.failures.get(key):
                raise self.failures[key].pop(0)
            return f"model {key}"
        finally:
            self._at_once.release()

    def size_of(self, model: str) -> int:
        return self.sizes.get(model.removeprefix("model "), 1)

    def unload(self, model: str) -> None:
        self.log.append(f"unload {model.removeprefix('model ')}")

    def cache(self, max_bytes: int = 100) -> ModelCache[str]:
        return ModelCache(max_bytes, self.load, self.size_of, self.unload, lambda model: model not in self.dead)


@pytest.fixture
async def shelf() -> AsyncIterator[Shelf]:
    shelf = Shelf()
    yield shelf
    shelf.go_on.set()


async def use(cache: ModelCache[str], key: str) -> str:
    async with asyncio.timeout(5), cache.lease(key) as model:
        return model


async def test_however_many_ask_at_once_a_model_is_loaded_once(shelf: Shelf) -> None:
    cache = shelf.cache()
    shelf.go_on.clear()
    users = [asyncio.create_task(use(cache, "a")) for _ in range(20)]
    await until(lambda: cache.loading() == ["a"])
    assert cache.loaded() == {}
    shelf.go_on.set()
    assert await asyncio.gather(*users) == ["model a"] * 20
    assert await use(cache, "a") == "model a"
    assert shelf.log == ["load a"]
    assert (cache.loaded(), cache.loading()) == ({"a": "model a"}, [])


async def test_two_event_loops_share_one_load(shelf: Shelf) -> None:
    cache = shelf.cache()
    shelf.go_on.clear()
    other = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(use(cache, "a"))))
    here = asyncio.create_task(use(cache, "a"))
    await until(lambda: cache.loading() == ["a"])
    shelf.go_on.set()
    assert await asyncio.gather(other, here) == ["model a"] * 2
    assert shelf.log == ["load a"]


async def test_loading_leaves_the_event_loop_free_and_goes_one_by_one(shelf: Shelf) -> None:
    cache = shelf.cache()
    shelf.go_on.clear()
    users = [asyncio.create_task(use(cache, key)) for key in "ab"]
    await until(lambda: shelf.log == ["load a"])
    started = time.perf_counter()
    await asyncio.sleep(0.02)
    assert time.perf_counter() - started < 1
    assert cache.loading() == ["a", "b"]
    shelf.go_on.set()
    await asyncio.gather(*users)
    assert shelf.log == ["load a", "load b"]
    assert threading.current_thread().name not in shelf.threads


async def test_a_load_that_fails_fails_all_who_wait_and_is_forgotten(shelf: Shelf) -> None:
    cache = shelf.cache()
    shelf.failures["a"] = [WeightsError("no weights today")]
    shelf.go_on.clear()
    users = [asyncio.create_task(use(cache, "a")) for _ in range(3)]
    await until(lambda: cache.loading() == ["a"])
    shelf.go_on.set()
    outcomes = await asyncio.gather(*users, return_exceptions=True)
    assert [str(error) for error in outcomes] == ["no weights today"] * 3
    assert (cache.loaded(), cache.loading()) == ({}, [])
    assert await use(cache, "a") == "model a"
    assert shelf.log == ["load a", "load a"]


async def test_who_leaves_while_it_loads_does_not_stop_the_load(shelf: Shelf) -> None:
    cache = shelf.cache()
    shelf.go_on.clear()
    leaving, staying = (asyncio.create_task(use(cache, "a")) for _ in range(2))
    await until(lambda: cache.loading() == ["a"])
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert leaving.cancelled()
    shelf.go_on.set()
    assert await staying == "model a"
    assert shelf.log == ["load a"]


async def test_a_load_that_everybody_left_is_finished_for_the_next(shelf: Shelf) -> None:
    cache = shelf.cache()
    shelf.go_on.clear()
    leaving = asyncio.create_task(use(cache, "a"))
    await until(lambda: cache.loading() == ["a"])
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    shelf.go_on.set()
    assert await use(cache, "a") == "model a"
    assert shelf.log == ["load a"]


async def test_a_load_that_everybody_left_may_fail_in_silence(shelf: Shelf) -> None:
    cache = shelf.cache()
    shelf.failures["a"] = [WeightsError("no weights today")]
    shelf.go_on.clear()
    leaving = asyncio.create_task(use(cache, "a"))
    await until(lambda: cache.loading() == ["a"])
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    shelf.go_on.set()
    await until(lambda: cache.loading() == [])
    assert await use(cache, "a") == "model a"


async def test_the_least_recently_used_goes_first_until_the_bytes_fit(shelf: Shelf) -> None:
    shelf.sizes = {"a": 40, "b": 40, "c": 20, "d": 50}
    cache = shelf.cache(max_bytes=100)
    for key in "abca":
        await use(cache, key)
    assert sorted(cache.loaded()) == ["a", "b", "c"]  # exactly full
    await use(cache, "d")
    assert shelf.log == ["load a", "load b", "load c", "load d", "unload b", "unload c"]
    assert sorted(cache.loaded()) == ["a", "d"]


async def test_what_was_unloaded_is_loaded_anew(shelf: Shelf) -> None:
    cache = shelf.cache(max_bytes=1)
    for key in "aba":
        assert await use(cache, key) == f"model {key}"
    assert shelf.log == ["load a", "load b", "unload a", "load a", "unload b"]


async def test_a_model_larger_than_the_bound_stays_while_nothing_else_is_asked_for(shelf: Shelf) -> None:
    shelf.sizes = {"a": 1000}
    cache = shelf.cache(max_bytes=100)
    for _ in range(3):
        await use(cache, "a")
    assert shelf.log == ["load a"]


async def test_a_leased_model_is_never_unloaded_and_goes_once_it_is_idle(shelf: Shelf) -> None:
    cache = shelf.cache(max_bytes=1)
    async with cache.lease("a") as first, cache.lease("a") as again:
        await use(cache, "b")
        await use(cache, "c")
        assert (first, again) == ("model a", "model a")
        assert sorted(cache.loaded()) == ["a", "c"]
        assert "unload a" not in shelf.log
    await until(lambda: "unload a" in shelf.log)
    assert list(cache.loaded()) == ["c"]


async def test_many_tasks_on_few_bytes_never_see_an_unloaded_model(shelf: Shelf) -> None:
    cache = shelf.cache(max_bytes=2)

    async def work(number: int) -> None:
        for step in range(25):
            key = "abcd"[(number * 7 + step * 3) % 4]
            async with cache.lease(key) as model:
                assert model == f"model {key}"
                loads = shelf.log.count(f"load {key}")
                await asyncio.sleep(0.0005 * (number % 3))
                assert shelf.log.count(f"unload {key}") < loads, "unloaded in use"

    async with asyncio.timeout(20):
        await asyncio.gather(*(work(number) for number in range(8)))
    await until(lambda: len(cache.loaded()) <= 2)


async def test_a_retired_model_goes_with_its_last_user_though_there_is_room(shelf: Shelf) -> None:
    cache = shelf.cache()
    await use(cache, "b")
    async with cache.lease("a") as model:
        cache.retire("a")
        cache.retire("b")
        await until(lambda: "unload b" in shelf.log)
        assert model == "model a"
        assert list(cache.loaded()) == ["a"]
    await until(lambda: cache.loaded() == {})
    cache.retire("a")  # nothing is there any more
    assert shelf.log == ["load b", "load a", "unload b", "unload a"]


async def test_closing_unloads_everything_and_refuses_what_comes(shelf: Shelf) -> None:
    cache = shelf.cache()
    for key in "ab":
        await use(cache, key)
    await asyncio.to_thread(cache.close)
    assert shelf.log == ["load a", "load b", "unload a", "unload b"]
    assert cache.loaded() == {}
    with pytest.raises(EngineError, match="shutting down"):
        await use(cache, "a")
    await asyncio.to_thread(cache.close)


async def test_closing_waits_for_the_load_that_runs_and_refuses_the_one_that_waits(shelf: Shelf) -> None:
    cache = shelf.cache()
    shelf.go_on.clear()
    running, waiting = (asyncio.create_task(use(cache, key)) for key in "ab")
    await until(lambda: cache.loading() == ["a", "b"] and shelf.log == ["load a"])
    closing = asyncio.create_task(asyncio.to_thread(cache.close))
    with pytest.raises(EngineError, match="shutting down"):
        await waiting
    shelf.go_on.set()
    assert await running == "model a"
    await closing
    assert shelf.log == ["load a", "unload a"]


async def test_closing_unloads_what_is_loaded_before_it_waits_for_a_load(shelf: Shelf) -> None:
    """Who streams from it is told at once that the engine ends, not after a load of minutes."""
    cache = shelf.cache()
    await use(cache, "a")
    shelf.go_on.clear()
    running = asyncio.create_task(use(cache, "b"))
    await until(lambda: shelf.log == ["load a", "load b"])
    closing = asyncio.create_task(asyncio.to_thread(cache.close))
    await until(lambda: shelf.log[2:] == ["unload a"])
    assert not closing.done()
    shelf.go_on.set()
    await asyncio.gather(running, closing)
    assert shelf.log == ["load a", "load b", "unload a", "unload b"]


async def test_a_model_that_died_is_loaded_anew_though_somebody_still_has_it(shelf: Shelf) -> None:
    cache = shelf.cache()
    async with cache.lease("a") as model:
        shelf.dead.add(model)
        assert cache.loaded() == {}
        shelf.go_on.clear()
        anew = [asyncio.create_task(use(cache, "a")) for _ in range(2)]
        await until(lambda: len(shelf.log) == 2)
        shelf.dead.clear()
        shelf.go_on.set()
        assert await asyncio.gather(*anew) == [model] * 2
    assert shelf.log == ["load a"] * 2
    assert cache.loaded() == {"a": model}
    cache.close()
