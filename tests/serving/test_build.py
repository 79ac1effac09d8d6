"""Who is answered from kept answers, and who never is."""

from __future__ import annotations

import sys
from math import inf
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.caching.engine import CachingEngine
from expert_router.engines.echo import EchoEngine
from expert_router.errors import ConfigError
from expert_router.serving.build import answer_store, build_dispatcher, build_engine, max_prefills
from expert_router.serving.parts import build_parts
from expert_router.settings import (
    CacheSettings,
    EngineSettings,
    KnowledgeSettings,
    RouterSettings,
    ServingSettings,
    Settings,
)
from expert_router.types import ChatRequest, GenerationParams, Message
from support import make_home

if TYPE_CHECKING:
    from pathlib import Path


def settings(folder: Path, **cache: Any) -> Settings:
    return Settings(
        home=make_home(folder),
        engine=EngineSettings(name="echo"),
        router=RouterSettings(name="lexical"),
        knowledge=KnowledgeSettings(passages=0),
        cache=CacheSettings(**cache),
    )


async def results(settings: Settings, *, temperature: float = 0.0, cached: bool = True) -> list[str | None]:
    dispatcher = build_dispatcher(settings, logged=False, cached=cached)
    request = ChatRequest((Message("user", "Why?"),), "sleep", GenerationParams(temperature=temperature))
    answers = [await dispatcher.ask(request) for _ in range(2)]
    await dispatcher.close()
    return [answer.cache.get("sleep") for answer in answers]


async def test_answers_are_kept_in_memory_unless_the_settings_say_otherwise(tmp_path: Path) -> None:
    assert await results(settings(tmp_path)) == ["miss", "hit"]


async def test_none_are_kept_where_that_is_set_or_speed_is_measured(tmp_path: Path) -> None:
    assert await results(settings(tmp_path / "a", store="none")) == [None, None]
    assert await results(settings(tmp_path / "b"), cached=False) == [None, None]


@pytest.mark.parametrize(("sampled", "expected"), [(False, ["off", "off"]), (True, ["miss", "hit"])])
async def test_sampled_ones_are_kept_where_that_is_set(tmp_path: Path, sampled: bool, expected: list[str]) -> None:
    assert await results(settings(tmp_path, sampled=sampled), temperature=1.0) == expected


@pytest.mark.parametrize("bound", [{"max_bytes": 1}, {"ttl_s": 1e-9}], ids=str)
async def test_no_more_is_kept_than_is_set_and_no_longer(bound: dict[str, Any]) -> None:
    store = answer_store(CacheSettings(**bound))
    assert store is not None
    await store.put("key", b"answer")
    assert await store.get("key") is None


def test_redis_without_its_client_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "expert_router.caching.redis_store", raising=False)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)  # as where it is not installed
    with pytest.raises(ConfigError, match=r"pip install 'expert-router\[redis\]'"):
        answer_store(CacheSettings(store="redis"))


def test_llamacpp_without_its_library_names_the_extra_and_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = settings(tmp_path).model_copy(update={"engine": EngineSettings(name="llamacpp")})
    monkeypatch.setitem(sys.modules, "xllamacpp", None)  # as where it is not installed
    with pytest.raises(ConfigError, match=r"pip install 'expert-router\[llamacpp\]'.*libgomp1"):
        build_engine(build_parts(configured))


def test_llamacpp_promises_no_reproducible_answers(tmp_path: Path) -> None:
    asked = EngineSettings(name="llamacpp", reproducible=True)
    with pytest.raises(ConfigError, match=r"set engine\.reproducible to false"):
        build_engine(build_parts(settings(tmp_path).model_copy(update={"engine": asked})))


def test_the_engine_that_evaluation_and_calibration_build_is_bare(tmp_path: Path) -> None:
    engine = build_engine(build_parts(settings(tmp_path)))
    assert isinstance(engine, EchoEngine)
    assert not isinstance(engine, CachingEngine)


@pytest.mark.parametrize(
    ("engine", "set_to", "prefills"),
    [("openvino", None, 2), ("llamacpp", None, 2), ("openai_http", None, inf), ("echo", None, inf), ("echo", 3, 3)],
)
def test_prompts_are_read_two_at_a_time_where_the_engine_is_in_here(
    engine: str, set_to: int | None, prefills: float
) -> None:
    settings = Settings(engine=EngineSettings(name=engine), serving=ServingSettings(max_prefills=set_to))
    assert max_prefills(settings) == prefills
