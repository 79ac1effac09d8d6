"""From the settings to the engines that answer in other processes; ``serving.build`` names them."""

from __future__ import annotations

import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from expert_router.artifacts import load_experts
from expert_router.catalogue import Catalogue
from expert_router.engines.openai_http import OpenAIHTTPEngine, served_model_names
from expert_router.engines.remote.draining import FILE, Draining
from expert_router.engines.vllm import VLLMEngine, VLLMOptions
from expert_router.errors import ConfigError, NotReadyError
from expert_router.weights import load_lock

if TYPE_CHECKING:
    from collections.abc import Callable

    from expert_router.serving.parts import Parts
    from expert_router.settings import Settings


def openai_http_engine(parts: Parts) -> OpenAIHTTPEngine:
    engine = parts.settings.engine
    return OpenAIHTTPEngine(
        upstream_addresses(parts.settings),
        engine.api_key,
        served_model_names(engine.base_model),
        engine.connect_timeout_s,
        engine.read_timeout_s,
        revision=engine.revision,
        check_interval_s=engine.check_interval_s,
        draining=draining(parts.settings).addresses,
        wanted=_names_that_count(parts.settings),
    )


def vllm_engine(parts: Parts) -> VLLMEngine:
    """Raises ``ConfigError`` where vLLM is not installed, or the base is not one that it serves."""
    engine = parts.settings.engine
    program = engine.vllm_command[0]
    if shutil.which(program) is None:
        raise ConfigError(
            f"engine.name is vllm, and there is no program {program!r}. vllm is not installed: pip install vllm on a "
            "machine with an NVIDIA GPU, best into an environment of its own, and name its program in "
            "engine.vllm_command; without such a GPU set engine.name to openvino."
        )
    options = VLLMOptions(
        engine.vllm_command, _model(parts.settings), engine.base_model, engine.vllm_args, engine.vllm_start_timeout_s
    )
    adapters = [a for e in parts.experts.values() if (a := e.adapters.get(engine.base_model)) is not None]
    return VLLMEngine(
        options,
        served_model_names(engine.base_model),
        adapters,
        read_timeout_s=engine.read_timeout_s,
        revision=engine.revision,
        wanted=_names_that_count(parts.settings),
    )


def upstream_addresses(settings: Settings) -> list[str]:
    """Of the servers that answer, as the settings have them."""
    return settings.engine.upstreams or [settings.engine.base_url]


def draining(settings: Settings) -> Draining:
    """Those of them that a person has taken out."""
    return Draining(settings.resolve(settings.paths.catalogue) / FILE)


def _model(settings: Settings) -> str:
    """What vLLM loads as the base model."""
    base = settings.engine.base_model
    if settings.engine.vllm_model is not None:
        return settings.engine.vllm_model
    if base in load_lock(settings.resolve(settings.paths.models_lock)):
        raise ConfigError(
            f"The base model {base!r} of models.lock is a GGUF file, and vLLM serves what transformers reads: set "
            "engine.vllm_model to a folder or a hub name of the same model, or engine.base_model to a hub name."
        )
    return base


def _names_that_count(settings: Settings) -> Callable[[], frozenset[str]]:
    """What servers call the adapters of the experts that there are now; read when the catalogue has changed."""
    catalogue = Catalogue(settings.resolve(settings.paths.catalogue))
    name_of = served_model_names(settings.engine.base_model)
    read: dict[int, frozenset[str]] = {}

    def names() -> frozenset[str]:
        number = catalogue.current_number()
        if number not in read:
            shipped = load_experts(settings.resolve(settings.paths.experts), settings.home)
            found = set()
            for expert in catalogue.read(number).experts(shipped).values():
                with suppress(NotReadyError):  # it has no adapter for this base, so none is loaded
                    found.add(name_of(expert))
            read.clear()
            read[number] = frozenset(found)
        return read[number]

    return names
