"""What an engine says of itself changes with all that shapes its answers: kept answers rest on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tiny_gguf import prepare_llama

from expert_router.caching.engine import CachingEngine
from expert_router.caching.memory import MemoryStore
from expert_router.engines.echo import EchoEngine, EchoScript
from expert_router.engines.loaded_model import OpenVINOOptions
from expert_router.engines.openai_http import OpenAIHTTPEngine, served_model_names
from expert_router.engines.openvino import ModelSource, OpenVINOEngine
from expert_router.errors import NotReadyError
from expert_router.serving.build import build_engine
from expert_router.serving.parts import Parts
from expert_router.settings import load_settings
from expert_router.types import Adapter, Chunk, Expert, GenerationParams, Message, ModelVariant
from support import CARS, SLEEP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_router.engines.prepared import PreparedModel

ADAPTER = Adapter(Path("adapters/base"), "a" * 64)
TUNED = replace(SLEEP, adapters={"base": ADAPTER})
OPTIONS = OpenVINOOptions("base", 2, 6 * 1024**3, 1024**3, 16, reproducible=True, repetition_penalty=1.05)


def unprepared(_: Adapter | None) -> PreparedModel:
    raise AssertionError("nothing is to be loaded")


def embedded(sha256: str | None = "1" * 64, **options: Any) -> OpenVINOEngine:
    sources = {name: ModelSource(unprepared, None, sha256) for name in ("base", "pruned")}
    return OpenVINOEngine(sources, replace(OPTIONS, **options))


async def test_the_embedded_engine_tells_weights_adapters_and_settings() -> None:
    other_adapter = replace(SLEEP, adapters={"base": replace(ADAPTER, sha256="b" * 64)})
    four_bits = replace(TUNED, serve_as={"base": ModelVariant("base", "q4_0")})
    pruned = replace(TUNED, adapters={"pruned": ADAPTER}, serve_as={"base": ModelVariant("pruned", "q8_0")})
    identities = [
        embedded().identity(SLEEP),
        embedded("2" * 64).identity(SLEEP),
        embedded().identity(TUNED),
        embedded().identity(other_adapter),
        embedded().identity(four_bits),
        embedded().identity(pruned),
        embedded(default_model="pruned").identity(SLEEP),
        embedded(reproducible=False).identity(SLEEP),
        embedded(repetition_penalty=1.0).identity(SLEEP),
    ]
    assert len(set(identities)) == len(identities)
    assert embedded().identity(replace(SLEEP)) == embedded(threads=1, max_batch_size=1).identity(SLEEP)
    assert "2026" in str(identities[0]), "the library's version"


async def test_the_embedded_engine_says_nothing_of_weights_that_it_cannot_name() -> None:
    assert embedded(None).identity(SLEEP) is None
    with pytest.raises(NotReadyError):
        embedded().identity(replace(SLEEP, base_model="unknown"))


def test_as_it_is_configured_it_can_name_them() -> None:
    settings = load_settings("tiny")
    engine = build_engine(Parts(settings, {"sleep": SLEEP}, progress=False))
    assert "smollm2-135m-instruct" in str(engine.identity(SLEEP))


def remote(address: str = "http://127.0.0.1:1/v1", base: str = "base", revision: str | None = "1") -> OpenAIHTTPEngine:
    return OpenAIHTTPEngine(address, None, served_model_names(base), revision=revision)


async def test_a_server_elsewhere_is_known_by_what_the_settings_say_of_it() -> None:
    engines = [remote(), remote("http://127.0.0.1:2/v1"), remote(base="other"), remote(revision="2")]
    identities = [engine.identity(SLEEP) for engine in engines] + [engines[0].identity(TUNED)]
    assert len(set(identities)) == len(identities)
    unknown = remote(revision=None)
    assert unknown.identity(SLEEP) is None
    for engine in (*engines, unknown):
        await engine.close()


def test_the_echo_engine_says_the_title_and_follows_its_script() -> None:
    engine = EchoEngine(by_expert={"cars": EchoScript(context_length=20)})
    identities = {engine.identity(SLEEP), engine.identity(CARS), EchoEngine().identity(CARS)}
    assert len(identities) == 3


async def test_an_answer_of_real_weights_is_given_again_alike(tmp_path: Path) -> None:
    source = ModelSource(lambda adapter: prepare_llama(tmp_path, name="base", adapter=adapter), None, "1" * 64)
    engine = CachingEngine(OpenVINOEngine({"base": source}, OPTIONS), MemoryStore(10**6, 60.0))

    async def ask(expert: Expert = SLEEP, **asked: Any) -> Sequence[Chunk]:
        params = GenerationParams(max_tokens=12, **asked)
        return [chunk async for chunk in engine.stream(expert, [Message("user", "Why do we sleep?")], params)]

    first, again = await ask(probability=True), await ask(probability=True)
    assert [chunk.cache for chunk in (first[-1], again[-1])] == ["miss", "hit"]
    assert first[:-1] == again[:-1]
    assert any(chunk.probability is not None for chunk in again)
    fresh = await ask(probability=True, cache="bypass")
    assert [chunk.text for chunk in fresh] == [chunk.text for chunk in again]
    await engine.close()
