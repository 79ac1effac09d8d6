"""Experts with adapters in the embedded engine: the adapter that is meant answers, or nobody does."""

from __future__ import annotations

import asyncio
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING

import pytest
from tiny_gguf import MODULES, prepare_llama, write_llama, write_lora

from expert_router.artifacts import MANIFEST, install_adapter, load_expert, load_experts, read_artifact, sha256_of
from expert_router.engines.adapter import read_lora
from expert_router.engines.canary import adapter_canary, canary_answer
from expert_router.engines.loaded_model import LoadedModel, OpenVINOOptions
from expert_router.engines.openvino import ModelSource, OpenVINOEngine
from expert_router.engines.prepared import prepare_model
from expert_router.errors import NotReadyError
from expert_router.serving.parts import fetch_model
from expert_router.settings import load_settings
from expert_router.types import GENERAL, Adapter, Expert, GenerationParams, Message, ModelVariant, Served
from expert_router.weights import Canary, load_lock
from support import CARS, ROOT, chat_body, events, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from expert_router.engines.prepared import PreparedModel
    from expert_router.types import Quantization

    Prepare = Callable[[Adapter | None], PreparedModel]

BASE = "random"
PROMPT = "Which expert are you?"
GREEDY = GenerationParams(max_tokens=24)
WEIGHTS = "adapter_model.safetensors"
CERTAIN = 4
"""So many characters of a random model's answer stand whichever way its weights are rounded."""


def options(base: str) -> OpenVINOOptions:
    gib = 1024**3
    return OpenVINOOptions(
        base, threads=2, max_model_bytes=64 * gib, kv_cache_bytes=gib, max_batch_size=4, reproducible=True, stack_size=3
    )


class Bench:
    """A place to make experts with adapters for one base model, and engines that serve them."""

    def __init__(self, home: Path, base: str, weights: Path, prepare: Prepare) -> None:
        self.home = home
        self.base = base
        self.weights = weights
        self.prepare = prepare
        self._answers: dict[str, str] = {}

    def train(self, name: str, *, seed: int, rank: int = 2, size: float = 0.3) -> Path:
        """A random adapter as a training run would leave it."""
        return write_lora(self.home / "runs" / name, self.weights, rank=rank, alpha=8, size=size, seed=seed).folder

    def answer(self, trained: Path | None = None, quantization: Quantization = "q8_0") -> str:
        """What the base says to the canary's question with an adapter: asked once, with nothing checked."""
        adapter = Adapter(trained, sha256_of(trained / WEIGHTS), quantization) if trained else None
        key = adapter.sha256 + quantization if adapter else ""
        if key not in self._answers:
            model = LoadedModel("recorder", self.prepare(adapter), options(self.base))
            with ThreadPoolExecutor(1) as thread:  # not the test's own, which may have an event loop
                self._answers[key] = thread.submit(canary_answer, model, PROMPT).result()
            model.close()
        return self._answers[key]

    def install(self, name: str, trained: Path, answer: str) -> Expert:
        """An expert of that name which has the adapter, with ``answer`` as its canary."""
        path = self.home / "experts" / name / "expert.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'name = "{name}"\ntitle = "{name}"\ndescription = ""\ninstructions = ""\n', "utf-8")
        install_adapter(path.parent, self.base, trained, {"canary": {"prompt": PROMPT, "answer": answer}})
        return load_expert(path, self.home)

    def engine(self, *experts: Expert) -> OpenVINOEngine:
        """``experts`` share a pipeline; others have one each."""
        return OpenVINOEngine({self.base: ModelSource(self.prepare, None)}, options(self.base), experts)

    @asynccontextmanager
    async def running(self, *experts: Expert) -> AsyncIterator[OpenVINOEngine]:
        engine = self.engine(*experts)
        try:
            yield engine
        finally:
            await engine.close()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    home = tmp_path_factory.mktemp("home")
    prepare_llama(home, name=BASE)
    return Bench(home, BASE, home / f"{BASE}.gguf", lambda a: prepare_llama(home, name=BASE, adapter=a))


@pytest.fixture(scope="module")
def trained(bench: Bench) -> Path:
    return bench.train("sleep", seed=1)


@pytest.fixture(scope="module")
def other(bench: Bench) -> Path:
    return bench.train("cars", seed=2)


@pytest.fixture
def expert(bench: Bench, trained: Path) -> Expert:
    """Installed anew for each test, which may spoil it."""
    shutil.rmtree(bench.home / "experts", ignore_errors=True)
    return bench.install("sleep", trained, bench.answer(trained))


def adapter_of(expert: Expert) -> Adapter:
    (adapter,) = expert.adapters.values()
    return adapter


async def ask(engine: OpenVINOEngine, expert: Expert) -> str:
    chunks = [chunk async for chunk in engine.stream(expert, [Message("user", PROMPT)], GREEDY)]
    return "".join(chunk.text for chunk in chunks)


def models(engine: OpenVINOEngine) -> list[str]:
    return list(engine.status()["models"])  # type: ignore[call-overload]


# Who answers


def test_the_recorded_answers_tell_the_adapters_and_the_base_apart(bench: Bench, trained: Path, other: Path) -> None:
    """What the tests below rest on."""
    first, second, bare = bench.answer(trained), bench.answer(other), bench.answer()
    assert first.strip()
    assert second.strip()
    assert not any(a.startswith(b) for a, b in permutations((first, second, bare), 2))


async def test_an_expert_answers_with_its_adapter_and_says_so(bench: Bench, trained: Path, expert: Expert) -> None:
    digest = adapter_of(expert).sha256
    async with bench.running() as engine:
        assert await ask(engine, expert) == bench.answer(trained)
        assert engine.served(expert) == Served(BASE, digest)
        assert models(engine) == [f"{BASE}+sleep@{digest[:12]}"]


async def test_experts_on_one_base_each_answer_with_their_own_also_at_once(
    bench: Bench, trained: Path, other: Path, expert: Expert
) -> None:
    second = bench.install("cars", other, bench.answer(other))
    bare = Expert("birds", "Birds", "", "")
    async with bench.running() as engine:
        said = await asyncio.gather(*(ask(engine, each) for each in (expert, second, bare, expert, bare)))
        assert said == [
            bench.answer(trained),
            bench.answer(other),
            bench.answer(),
            bench.answer(trained),
            bench.answer(),
        ]
        assert await ask(engine, Expert(GENERAL, "General", "", "")) == bench.answer()
        assert len(models(engine)) == 3  # who has no adapter shares the base's pipeline
        assert engine.served(bare) == Served(BASE, None)


async def test_known_experts_share_a_pipeline_and_each_answers_with_its_own_also_at_once(
    bench: Bench, trained: Path, other: Path
) -> None:
    """As those merged alone begin: B is rounded apart from W in a stack, and random weights are sure of little."""
    first, second = bench.answer(trained)[:CERTAIN], bench.answer(other)[:CERTAIN]
    assert len({first, second, bench.answer()[:CERTAIN]}) == 3
    sleep, cars = (bench.install("sleep", trained, first), bench.install("cars", other, second))
    bare = Expert("birds", "Birds", "", "")
    async with bench.running(sleep, bare, cars) as engine:
        assert not any(map(engine.holds, (sleep, cars, bare)))
        said = await asyncio.gather(*(ask(engine, each) for each in (sleep, cars, bare, sleep, cars)))
        assert [answer[:CERTAIN] for answer in said] == [first, second, bench.answer()[:CERTAIN], first, second]
        hashes = [adapter_of(each).sha256 for each in (sleep, cars)]
        assert models(engine) == [f"{BASE}+sleep@{hashes[0][:12]}+cars@{hashes[1][:12]}"]
        assert [engine.served(each).adapter for each in (sleep, cars, bare)] == [*hashes, None]
        assert all(map(engine.holds, (sleep, cars, bare)))


async def test_an_adapter_that_comes_later_has_a_pipeline_of_its_own(bench: Bench, trained: Path, other: Path) -> None:
    first, second = bench.answer(trained)[:CERTAIN], bench.answer(other)[:CERTAIN]
    sleep, cars = bench.install("sleep", trained, first), bench.install("cars", other, second)
    third = bench.train("late", seed=3)
    late = bench.install("late", third, bench.answer(third))
    async with bench.running(sleep, cars) as engine:
        assert (await ask(engine, sleep)).startswith(first)
        assert not engine.holds(late)
        assert await ask(engine, late) == bench.answer(third)
        assert engine.holds(late)
        assert models(engine)[1:] == [f"{BASE}+late@{adapter_of(late).sha256[:12]}"]


async def test_one_adapter_alone_is_merged(bench: Bench, trained: Path, expert: Expert) -> None:
    async with bench.running(expert, CARS) as engine:
        assert await ask(engine, expert) == bench.answer(trained)
        assert models(engine) == [f"{BASE}+sleep@{adapter_of(expert).sha256[:12]}"]


async def test_an_adapter_for_another_base_is_refused_and_never_answered_by_this_one(
    bench: Bench, expert: Expert
) -> None:
    stray = replace(expert, adapters={"larger": adapter_of(expert)})
    async with bench.running() as engine:
        for refused in (ask(engine, stray), engine.warm_up(stray)):
            with pytest.raises(NotReadyError, match="'sleep' has adapters for larger, but none for the base"):
                await refused
        with pytest.raises(NotReadyError, match="none for the base"):
            engine.served(stray)
        assert models(engine) == []


async def test_an_expert_is_served_as_the_variant_that_was_chosen_for_the_configured_base(
    bench: Bench, trained: Path, expert: Expert
) -> None:
    """Four bits answer otherwise than eight: the canary is that of four here, and nothing else gives it."""
    four = bench.answer(trained, "q4_0")
    assert not four.startswith(bench.answer(trained))
    served_as = replace(expert, serve_as={BASE: ModelVariant(BASE, "q4_0")})
    with_canary(expert, {"prompt": PROMPT, "answer": four})
    digest = adapter_of(expert).sha256
    async with bench.running() as engine:
        assert await ask(engine, served_as) == four
        assert engine.served(served_as) == Served(BASE, digest)
        assert models(engine) == [f"{BASE}+sleep@{digest[:12]}-q4_0"]
        with pytest.raises(NotReadyError, match="is refused: asked"):
            await ask(engine, expert)


async def test_a_variant_that_has_lost_its_canary_is_refused(bench: Bench, expert: Expert) -> None:
    async with bench.running() as engine:
        with pytest.raises(NotReadyError, match=r"-q4_0 is refused: asked"):
            await engine.warm_up(replace(expert, serve_as={BASE: ModelVariant(BASE, "q4_0")}))
        assert models(engine) == []


# Who is refused


def with_canary(expert: Expert, canary: object) -> Expert:
    manifest = adapter_of(expert).path / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text("utf-8")), "canary": canary}), "utf-8")
    return expert


def with_anothers_canary(bench: Bench, expert: Expert, other: Path) -> Expert:
    return with_canary(expert, {"prompt": PROMPT, "answer": bench.answer(other)})


def without_a_canary(bench: Bench, expert: Expert, other: Path) -> Expert:  # noqa: ARG001 - all alike
    return with_canary(expert, None)


def with_anothers_weights(bench: Bench, expert: Expert, other: Path) -> Expert:
    """Another adapter, whole and with hashes of its own, under the canary of this one."""
    return bench.install("sleep", other, adapter_canary(adapter_of(expert)).answer)


def with_anothers_folder(bench: Bench, expert: Expert, other: Path) -> Expert:
    """What a mix-up of folders looks like: all is whole, but the expert's manifest names another hash."""
    second = bench.install("cars", other, bench.answer(other))
    shutil.copytree(adapter_of(second).path, adapter_of(expert).path, dirs_exist_ok=True)
    return expert


def with_truncated_weights(bench: Bench, expert: Expert, other: Path) -> Expert:  # noqa: ARG001 - all alike
    path = adapter_of(expert).path / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])
    return expert


def with_another_scale(bench: Bench, expert: Expert, other: Path) -> Expert:  # noqa: ARG001 - all alike
    path = adapter_of(expert).path / "adapter_config.json"
    path.write_text(path.read_text("utf-8").replace('"lora_alpha": 8', '"lora_alpha": 9'), "utf-8")
    return expert


def without_a_manifest(bench: Bench, expert: Expert, other: Path) -> Expert:  # noqa: ARG001 - all alike
    (adapter_of(expert).path / MANIFEST).unlink()
    return expert


def of_a_larger_model(bench: Bench, expert: Expert, other: Path) -> Expert:  # noqa: ARG001 - all alike
    write_llama(bench.home / "larger.gguf", blocks=2)
    lora = write_lora(bench.home / "runs" / "larger", bench.home / "larger.gguf")
    return bench.install("sleep", lora.folder, "anything")


SPOILT = [
    (with_anothers_canary, r"is refused: asked 'Which expert are you\?' it answered"),
    (without_a_canary, "cannot be used: 'NoneType' object"),
    (with_anothers_weights, r"is refused: asked 'Which expert are you\?' it answered"),
    (with_anothers_folder, "is another one than the expert's manifest names"),
    (
        with_truncated_weights,
        rf"cannot be used: .*{WEIGHTS} is missing or is not the file that .* `git checkout experts/`",
    ),
    (with_another_scale, r"cannot be used: .*adapter_config\.json is missing or is not the file that"),
    (without_a_manifest, r"cannot be used: There is no artifact in .*manifest\.json is missing"),
    (of_a_larger_model, "is refused: 7 of the adapter's 14 modules are not in the base model"),
]
EACH_SPOILT = pytest.mark.parametrize(
    ("spoil", "says"), SPOILT, ids=[spoil.__name__.replace("_", " ") for spoil, _ in SPOILT]
)


@EACH_SPOILT
async def test_an_adapter_that_is_not_the_one_meant_is_refused_again_and_again(
    bench: Bench, expert: Expert, other: Path, spoil: Callable[[Bench, Expert, Path], Expert], says: str
) -> None:
    spoilt = spoil(bench, expert, other)
    async with bench.running() as engine:
        for _ in range(2):  # not the first time only
            with pytest.raises(NotReadyError, match=says):
                await ask(engine, spoilt)
        with pytest.raises(NotReadyError, match=says):
            await engine.warm_up(spoilt)
        assert models(engine) == []
        assert await ask(engine, CARS) == bench.answer()  # experts without an adapter answer on


@EACH_SPOILT
async def test_in_a_stack_too_it_is_refused_and_the_others_answer_on(
    bench: Bench, expert: Expert, other: Path, spoil: Callable[[Bench, Expert, Path], Expert], says: str
) -> None:
    good = [bench.train(name, seed=seed) for name, seed in (("one", 4), ("two", 5))]
    certain = [bench.answer(each)[:CERTAIN] for each in good]
    others = [bench.install(each.name, each, begins) for each, begins in zip(good, certain, strict=True)]
    spoilt = spoil(bench, expert, other)
    async with bench.running(others[0], spoilt, others[1]) as engine:
        for each, begins in zip(others, certain, strict=True):
            assert (await ask(engine, each)).startswith(begins)
        for _ in range(2):
            with pytest.raises(NotReadyError, match=says):
                await ask(engine, spoilt)
        assert (await ask(engine, CARS)).startswith(bench.answer()[:CERTAIN])


async def test_once_it_is_put_right_the_next_question_is_answered(bench: Bench, trained: Path, expert: Expert) -> None:
    weights = adapter_of(expert).path / WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-9])
    async with bench.running() as engine:
        with pytest.raises(NotReadyError):
            await ask(engine, expert)
        weights.write_bytes(whole)
        assert await ask(engine, expert) == bench.answer(trained)


def test_the_canary_is_what_was_recorded(bench: Bench, trained: Path, expert: Expert) -> None:
    assert adapter_canary(adapter_of(expert)) == Canary(PROMPT, bench.answer(trained))


def test_a_hash_that_the_manifest_does_not_name_is_refused(expert: Expert) -> None:
    with pytest.raises(NotReadyError, match="is another one than the expert's manifest names"):
        adapter_canary(replace(adapter_of(expert), sha256="0" * 64))


@pytest.mark.parametrize(
    "canary",
    [None, {}, {"prompt": PROMPT}, {"answer": "Me."}, "Me.", {"prompt": PROMPT, "answer": ""},
     {"prompt": PROMPT, "answer": " \n"}, {"prompt": "", "answer": "Me."}, {"prompt": PROMPT, "answer": 7}],
)  # fmt: skip
def test_an_adapter_without_a_canary_that_proves_something_is_refused(expert: Expert, canary: object) -> None:
    with pytest.raises(NotReadyError, match=r"(cannot be used|has an empty canary)"):
        adapter_canary(adapter_of(with_canary(expert, canary)))


# Over HTTP


def test_a_refused_adapter_is_503_over_http_and_the_others_answer_on(bench: Bench, expert: Expert, other: Path) -> None:
    refused = with_anothers_canary(bench, expert, other)
    with serve(bench.engine(), experts={"sleep": refused, "cars": CARS}) as server:
        whole, streamed = (
            server.http.post("/v1/chat/completions", json=chat_body(PROMPT, stream=stream)) for stream in (False, True)
        )
        assert whole.status_code == 503
        # Loading may take longer than a stream waits for its status.
        last = events(streamed.text)[-1] if streamed.status_code == 200 else streamed.json()
        for said in (whole.json(), last):
            assert said["error"]["code"] == "not_ready"
            assert "is refused: asked 'Which expert are you?'" in said["error"]["message"]
        answered = server.post(model="cars")
        assert answered.status_code == 200
        assert answered.headers["x-expert-router-adapters"] == "cars@none"
        assert models(server.dispatcher.engine) == [BASE]  # type: ignore[arg-type]


def test_an_adapters_answer_carries_its_hash_over_http(bench: Bench, expert: Expert) -> None:
    with serve(bench.engine(), experts={"sleep": expert, "cars": CARS}) as server:
        body = chat_body(PROMPT, max_tokens=24)
        whole = server.http.post("/v1/chat/completions", json=body)
        streamed = server.http.post("/v1/chat/completions", json={**body, "stream": True})
    for response in (whole, streamed):
        assert response.headers["x-expert-router-adapters"] == f"sleep@{adapter_of(expert).sha256}"
    *chunks, _ = events(streamed.text)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole.json()["choices"][0]["message"]["content"]


# On the real small base


@pytest.mark.slow  # the merged model is built: 10 s
@pytest.mark.timeout(300)
async def test_on_the_real_base_only_the_adapter_that_is_meant_ever_answers(tmp_path: Path) -> None:
    name = "smollm2-135m-instruct"
    locked, files = fetch_model(load_settings("tiny"), name, progress=False)
    (weights,) = files.values()
    sha256 = locked.files[0].sha256
    cache = tmp_path / "cache"

    def prepare(adapter: Adapter | None) -> PreparedModel:
        return prepare_model(name, weights, sha256, cache, adapter=adapter, progress=False)

    bench = Bench(tmp_path, name, weights, prepare)
    trained = bench.train("sleep", seed=2, rank=1, size=0.08)
    right = bench.install("sleep", trained, bench.answer(trained))
    assert locked.canary is not None
    assert not bench.answer(trained).startswith(locked.canary.answer)
    async with bench.running() as engine:
        assert await ask(engine, right) == bench.answer(trained)
        assert engine.served(right) == Served(name, sha256_of(trained / WEIGHTS))
    # The same weights under a canary that they do not answer: what a mix-up or a wrong merge looks like.
    wrong = with_canary(right, {"prompt": PROMPT, "answer": bench.answer()})
    with serve(bench.engine(), experts={"sleep": wrong, "cars": CARS}) as server:
        whole, streamed = (
            server.http.post("/v1/chat/completions", json=chat_body(PROMPT, stream=stream), timeout=60)
            for stream in (False, True)
        )
        assert whole.status_code == 503
        assert "is refused: asked 'Which expert are you?'" in whole.json()["error"]["message"]
        # Loading takes longer than a stream waits for its status, on most machines.
        last = events(streamed.text)[-1] if streamed.status_code == 200 else streamed.json()
        assert last["error"]["code"] == "not_ready"
        assert '"content":"' not in streamed.text.replace('"content":""', "")
        assert models(server.dispatcher.engine) == []  # type: ignore[arg-type]


# What is shipped

SHIPPED = [
    pytest.param(expert, base, id=f"{expert.name} on {base}")
    for expert in load_experts(ROOT / "experts", ROOT).values()
    for base in expert.adapters
]


def test_each_shipped_expert_has_an_adapter_for_the_base_of_both_embedded_profiles() -> None:
    bases = {load_settings(profile).engine.base_model for profile in ("default", "tiny")}
    for expert in load_experts(ROOT / "experts", ROOT).values():
        assert set(expert.adapters) >= bases


@pytest.mark.parametrize(("expert", "base"), SHIPPED)
def test_a_shipped_adapter_is_whole_and_made_for_the_pinned_base(expert: Expert, base: str) -> None:
    adapter = expert.adapters[base]
    canary = adapter_canary(adapter)  # its files are those of its manifest, and that of the expert's
    manifest = read_artifact(adapter.path)
    assert manifest["base"] == base
    assert manifest["base_sha256"] == load_lock(ROOT / "models.lock")[base].files[0].sha256
    assert manifest["report"]["expert"] == expert.name
    assert len(canary.answer.split()) > 1
    modules = read_lora(adapter.path).modules
    assert len(modules) % len(MODULES) == 0
    assert {tensor.split(".")[2] for tensor in modules} == set(MODULES)


@pytest.mark.slow  # the merged models are built: 10 s and a minute
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("expert", "base"), SHIPPED)
def test_a_shipped_adapter_gives_its_recorded_answer_and_its_base_does_not(
    expert: Expert, base: str, tmp_path: Path
) -> None:
    locked, files = fetch_model(load_settings("tiny"), base, progress=False)
    (weights,) = files.values()
    adapter = expert.adapters[base]
    canary = adapter_canary(adapter)
    for each in (adapter, None):
        prepared = prepare_model(base, weights, locked.files[0].sha256, tmp_path, adapter=each, progress=False)
        model = LoadedModel("shipped", prepared, replace(options(base), reproducible=False))
        answer = canary_answer(model, canary.prompt)
        model.close()
        assert answer.startswith(canary.answer) is (each is adapter)
        shutil.rmtree(prepared.folder)
