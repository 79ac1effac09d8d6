"""From the settings to the engines that load weights into this process; ``serving.build`` names them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from expert_router.engines.llama_files import BaseFile, base_file, lora_file
from expert_router.engines.llama_process import load_library
from expert_router.engines.llama_server import LlamaOptions
from expert_router.engines.llamacpp import LlamaCppEngine, LlamaSource
from expert_router.engines.loaded_model import OpenVINOOptions
from expert_router.engines.openvino import ModelSource, OpenVINOEngine
from expert_router.engines.prepared import PreparedModel, prepare_model
from expert_router.engines.threads import inference_threads, usable_cpus
from expert_router.errors import ConfigError
from expert_router.serving.parts import Parts, fetch_model
from expert_router.weights import load_lock

if TYPE_CHECKING:
    from pathlib import Path

    from expert_router.settings import Settings
    from expert_router.types import Adapter, Expert, Quantization
    from expert_router.weights import LockedModel


def openvino_engine(parts: Parts) -> OpenVINOEngine:
    engine = parts.settings.engine
    options = OpenVINOOptions(
        default_model=engine.base_model,
        threads=inference_threads(engine.threads),
        max_model_bytes=engine.max_model_bytes,
        kv_cache_bytes=engine.kv_cache_bytes,
        max_batch_size=engine.max_batch_size,
        reproducible=engine.reproducible,
        repetition_penalty=engine.repetition_penalty,
        stack_size=engine.stack_size,
        lookup_tokens=engine.lookup_tokens if parts.settings.knowledge.passages else 0,
        step_tokens=engine.step_tokens,
        step_timeout_s=engine.step_timeout_s,
    )
    sources = {
        name: _model_source(parts.settings, name, locked, progress=parts.progress)
        for name, locked in _base_models(parts).items()
    }
    return OpenVINOEngine(sources, options, parts.experts.values())


def llamacpp_engine(parts: Parts) -> LlamaCppEngine:
    """Raises ``ConfigError`` where its library is not installed, or answers are to be reproducible."""
    engine = parts.settings.engine
    if engine.reproducible:
        raise ConfigError(
            "llamacpp rounds by what is computed together: set engine.reproducible to false, or openvino."
        )
    try:
        load_library()
    except ImportError as error:
        raise ConfigError(
            f"engine.name is llamacpp, which needs xllamacpp ({error}): pip install 'expert-router[llamacpp]', and "
            "OpenMP's library (Debian: libgomp1)"
        ) from error
    threads = inference_threads(engine.threads)
    options = LlamaOptions(
        threads=threads,
        lone_threads=engine.threads or max(1, min(threads, usable_cpus() - 1)),
        kv_cache_bytes=engine.kv_cache_bytes,
        max_batch_size=engine.max_batch_size,
        repetition_penalty=engine.repetition_penalty,
        step_timeout_s=engine.step_timeout_s,
    )
    sources = {
        name: _llama_source(parts.settings, name, locked, progress=parts.progress)
        for name, locked in _base_models(parts).items()
    }
    return LlamaCppEngine(
        sources,
        options,
        default_model=engine.base_model,
        max_model_bytes=engine.max_model_bytes,
        experts=parts.experts.values(),
    )


async def prove(settings: Settings, expert: Expert) -> None:
    """What the embedded engine does before an expert answers: take all of its adapter, and ask for the canary.

    Raises ``NotReadyError`` when the expert is refused.
    """
    build = llamacpp_engine if settings.engine.name == "llamacpp" else openvino_engine
    engine = build(Parts(settings, {expert.name: expert}, progress=True))
    try:
        await engine.warm_up(expert)
    finally:
        await engine.close()


def prepared_for(parts: Parts, expert: Expert, base: str) -> tuple[PreparedModel, int]:
    """What OpenVINO answers from for an expert on ``base``, no variant of it, and the adapter's slot there.

    Built if it is not there. Raises ``NotReadyError`` when the expert is refused.
    """
    engine = parts.settings.engine.model_copy(update={"base_model": base})
    settings = parts.settings.model_copy(update={"engine": engine})
    embedded = openvino_engine(Parts(settings, parts.experts, progress=parts.progress))
    return embedded.prepare(replace(expert, base_model=base, serve_as={}))


def prepare_base_model(
    settings: Settings, name: str, adapter: Adapter | None = None, *, progress: bool
) -> PreparedModel:
    """A base model, perhaps with an adapter, made ready for OpenVINO; up to a minute the first time."""
    weights, sha256 = _gguf_file(settings, name, progress=progress)
    cache = settings.resolve(settings.paths.cache)
    return prepare_model(name, weights, sha256, cache, adapter=adapter, progress=progress)


def _base_models(parts: Parts) -> dict[str, LockedModel]:
    """Those that some expert answers on. Raises ``ConfigError`` when one is not in models.lock."""
    default = parts.settings.engine.base_model
    configured = {default, *(expert.base_model for expert in parts.experts.values() if expert.base_model)}
    variants = [variant for expert in parts.experts.values() for variant in expert.serve_as.items()]
    names = configured | {variant.base for base, variant in variants if base in configured}
    lock = load_lock(parts.settings.resolve(parts.settings.paths.models_lock))
    for name in names:
        if name not in lock:
            raise ConfigError(f"The base model {name!r} is not in models.lock. Known: {', '.join(lock)}.")
    return {name: lock[name] for name in names}


def _model_source(settings: Settings, name: str, locked: LockedModel, *, progress: bool) -> ModelSource:
    def prepare(adapter: Adapter | None) -> PreparedModel:
        return prepare_base_model(settings, name, adapter, progress=progress)

    return ModelSource(prepare, locked.canary, locked.files[0].sha256, progress)


def _llama_source(settings: Settings, name: str, locked: LockedModel, *, progress: bool) -> LlamaSource:
    cache = settings.resolve(settings.paths.cache)

    def base(quantization: Quantization) -> BaseFile:
        weights, sha256 = _gguf_file(settings, name, progress=progress)
        return base_file(name, weights, sha256, cache, quantization=quantization, progress=progress)

    def lora(adapter: Adapter, base: BaseFile) -> Path:
        return lora_file(adapter, base, cache)

    return LlamaSource(base, lora, locked.canary, locked.files[0].sha256)


def _gguf_file(settings: Settings, name: str, *, progress: bool) -> tuple[Path, str]:
    """A base model's file and its hash."""
    model, files = fetch_model(settings, name, progress=progress)
    if len(files) != 1:
        raise ConfigError(f"The base model {name!r} of models.lock must be one GGUF file; it has {len(files)} files.")
    (weights,) = files.values()
    return weights, model.files[0].sha256
