"""The default engine: openvino-genai, with continuous batching, a paged cache and prefix reuse.

The experts that are known from the start share one pipeline with their base, their adapters stacked (``stacking``); an
adapter that comes later, or is served in another quantisation, is merged into a copy of the weights and has a pipeline
of its own. Experts without an adapter are the base model with their instructions. Before an adapter answers anybody it
must give the answer recorded for it: one that is not the one meant is refused, and nothing answers in its place.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from math import exp
from typing import TYPE_CHECKING

from expert_router.engines.asked import base_and_adapter, room_after
from expert_router.engines.canary import adapter_canary, check_canary
from expert_router.engines.detokenizer import Detokenizer
from expert_router.engines.loaded_model import LoadedModel
from expert_router.engines.model_cache import ModelCache
from expert_router.engines.prepared import RECIPE, prepare_stack
from expert_router.engines.revival import Revivals
from expert_router.engines.stopping import StopScanner
from expert_router.errors import EngineError, NotReadyError, WeightsError
from expert_router.types import DEFAULT_QUANTIZATION, Chunk, GenerationParams, Served, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence

    from expert_router.engines.loaded_model import OpenVINOOptions
    from expert_router.engines.prepared import PreparedModel
    from expert_router.engines.stepping import TokenBatch
    from expert_router.types import Adapter, Expert, FinishReason, Message
    from expert_router.weights import Canary

logger = logging.getLogger(__name__)

SMALLEST_STACK = 2
"""One adapter alone is faster merged: there is nobody to share with."""
LIBRARIES = ("openvino", "openvino-genai", "openvino-tokenizers")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """How to get a base model, with an adapter or without, when it is first needed.

    ``prepare`` blocks and may take a minute the first time. ``canary`` is the bare base's, ``sha256`` that of its file,
    where it is known.
    """

    prepare: Callable[[Adapter | None], PreparedModel]
    canary: Canary | None
    sha256: str | None = None
    progress: bool = False


@dataclass(frozen=True, slots=True)
class Weights:
    """What one pipeline holds: a base, and the adapters that are stacked on it or the one that is merged into it.

    ``name`` tells it from all others.
    """

    name: str
    base: str
    adapters: tuple[Adapter, ...] = ()
    stacked: bool = False


class OpenVINOEngine:
    name = "openvino"

    def __init__(
        self, sources: dict[str, ModelSource], options: OpenVINOOptions, experts: Iterable[Expert] = ()
    ) -> None:
        """``experts`` whose adapters may be stacked."""
        self._sources = sources
        self._options = options
        self._stacks = self._stacks_of(experts)
        self._weights: dict[str, Weights] = {}
        self._revivals = Revivals()
        self._models: ModelCache[LoadedModel] = ModelCache(
            options.max_model_bytes,
            self._load,
            lambda model: model.size_bytes,
            LoadedModel.close,
            lambda model: model.batcher.alive,
        )

    async def stream(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        async with self._lease(expert) as (model, slot):
            conversation = [{"role": message.role, "content": message.content} for message in messages]
            prompt = await asyncio.to_thread(model.encode, conversation)
            prompt_tokens = len(prompt)
            room = min(params.max_tokens, room_after(prompt_tokens, model.context_tokens, model.name))
            yield Chunk("")  # accepted
            begun = (await asyncio.to_thread(model.token_ids, params.begin))[: room - 1] if params.begin else []
            left = replace(params, max_tokens=room - len(begun))
            batches = model.generate([*prompt, *begun], left, slot=slot, quotes=expert.knowledge is not None)
            answer = _to_chunks(batches, model.decode, params, prompt_tokens, begun)
            async with aclosing(answer) as chunks:
                async for chunk in chunks:
                    yield chunk

    def served(self, expert: Expert) -> Served:
        base, adapter = self._meant_for(expert)
        return Served(base, adapter.sha256 if adapter else None)

    def identity(self, expert: Expert) -> str | None:
        """Rounding is not part of it: threads, CPU, and which requests are computed together."""
        base, adapter = self._meant_for(expert)
        sha256 = self._sources[base].sha256
        change = adapter and (adapter.sha256, adapter.quantization, self._stack_for(base, adapter) is not None)
        options = (self._options.reproducible, self._options.repetition_penalty)
        return sha256 and repr((base, sha256, change, RECIPE, options, library_versions()))

    def holds(self, expert: Expert) -> bool:
        base, adapter = self._meant_for(expert)
        digest, stack, loaded = adapter and adapter.sha256, self._stack_for(base, adapter), self._models.loaded()
        names = [each.name for each in (stack, _alone(expert.name, base, adapter)) if each is not None]
        return any(digest in loaded[name].slots for name in names if name in loaded)

    async def warm_up(self, expert: Expert) -> None:
        async with self._lease(expert):
            pass

    def status(self) -> dict[str, object]:
        loaded = self._models.loaded()
        return {
            "models": {model.name: asdict(model.batcher.counters) for model in loaded.values()},
            "loading": self._models.loading(),
            "ended": self._revivals.status(),
            "threads": self._options.threads,
        }

    async def close(self) -> None:
        await asyncio.to_thread(self._models.close)

    @asynccontextmanager
    async def _lease(self, expert: Expert) -> AsyncIterator[tuple[LoadedModel, int]]:
        """The pipeline that answers for the expert, and its slot there."""
        base, adapter = self._meant_for(expert)
        digest = adapter.sha256 if adapter else None
        stack = self._stack_for(base, adapter)
        if stack is not None:
            async with self._models.lease(self._key_of(stack)) as model:
                if digest in model.slots:
                    yield model, model.slots[digest]
                    return
        async with self._models.lease(self._key_of(_alone(expert.name, base, adapter))) as model:
            yield model, model.slots[digest]

    def _key_of(self, weights: Weights) -> str:
        self._weights[weights.name] = weights
        return weights.name

    def _stack_for(self, base: str, adapter: Adapter | None) -> Weights | None:
        """Where the adapter is stacked; the base answers from the first stack that there is on it."""
        return next(
            (stack for stack in self._stacks.get(base, ()) if adapter is None or adapter in stack.adapters), None
        )

    def _stacks_of(self, experts: Iterable[Expert]) -> dict[str, list[Weights]]:
        named: dict[str, dict[Adapter, str]] = {}
        for expert in experts:
            with suppress(NotReadyError):  # it says why whenever it is asked
                base, adapter = self._meant_for(expert)
                if adapter is not None and adapter.quantization == DEFAULT_QUANTIZATION:
                    named.setdefault(base, {}).setdefault(adapter, expert.name)
        size = self._options.stack_size
        stacks: dict[str, list[Weights]] = {}
        for base, names in named.items() if size >= SMALLEST_STACK else ():
            for start in range(0, len(names), size):
                adapters = tuple(names)[start : start + size]
                if len(adapters) >= SMALLEST_STACK:
                    name = "+".join([base, *(f"{names[adapter]}@{adapter.sha256[:12]}" for adapter in adapters)])
                    stacks.setdefault(base, []).append(Weights(name, base, adapters, stacked=True))
        return stacks

    def _meant_for(self, expert: Expert) -> tuple[str, Adapter | None]:
        return base_and_adapter(expert, self._options.default_model, self._sources)

    def _load(self, key: str) -> LoadedModel:
        weights = self._weights[key]
        self._revivals.check(key)
        return self._load_stack(weights) if weights.stacked else self._load_one(weights)

    def prepare(self, expert: Expert) -> tuple[PreparedModel, int]:
        """The model that would be loaded to answer for the expert, and its slot. Blocking; raises ``NotReadyError``."""
        base, adapter = self._meant_for(expert)
        stack = self._stack_for(base, adapter)
        if stack is not None:
            prepared, canaries = self._prepare_stack(stack)
            slots = [None, *canaries]
            if adapter in slots:
                return prepared, slots.index(adapter)
        return self._prepare_one(_alone(expert.name, base, adapter)), 0

    def _prepare_one(self, weights: Weights) -> PreparedModel:
        try:
            return self._sources[weights.base].prepare(*weights.adapters or (None,))
        except WeightsError as error:
            raise NotReadyError(f"{weights.name} is refused: {error.message}") from error

    def _prepare_stack(self, stack: Weights) -> tuple[PreparedModel, dict[Adapter, Canary]]:
        """With the adapters that are in it, in the order of their slots from 1 on."""
        source, base = self._sources[stack.base], self._prepare_one(Weights(stack.base, stack.base))
        canaries = _canaries(stack.adapters)
        if len(canaries) < SMALLEST_STACK:
            return base, {}
        try:
            return prepare_stack(base, list(canaries), progress=source.progress), canaries
        except WeightsError as error:
            logger.warning("each adapter is merged into a copy of %s: %s", stack.base, error.message)
            return base, {}

    def _load_one(self, weights: Weights) -> LoadedModel:
        adapter = weights.adapters[0] if weights.adapters else None
        canary = self._sources[weights.base].canary if adapter is None else adapter_canary(adapter)
        model = self._start(weights.name, self._prepare_one(weights), canary)
        model.slots = {adapter.sha256 if adapter else None: 0}
        return model

    def _load_stack(self, stack: Weights) -> LoadedModel:
        """A slot for the base and one for each adapter that is what it should be; the others have none.

        Who has none is merged alone when it is asked, and refused there with what is wrong with it.
        """
        prepared, canaries = self._prepare_stack(stack)
        model = self._start(stack.name, prepared, self._sources[stack.base].canary)
        model.slots = {None: 0}
        for slot, (adapter, canary) in enumerate(canaries.items(), 1):
            try:
                check_canary(model, canary, slot)
                model.slots[adapter.sha256] = slot
            except NotReadyError as error:
                logger.warning("not answered from a stack: %s", error.message)
        return model

    def _start(self, name: str, prepared: PreparedModel, canary: Canary | None) -> LoadedModel:
        model = LoadedModel(name, prepared, self._options, lambda why: self._revivals.died(name, why))
        try:
            if canary is not None:
                check_canary(model, canary)
        except BaseException:
            model.close()
            raise
        return model


def _alone(name: str, base: str, adapter: Adapter | None) -> Weights:
    if adapter is None:
        return Weights(base, base)
    quantization = "" if adapter.quantization == DEFAULT_QUANTIZATION else f"-{adapter.quantization}"
    return Weights(f"{base}+{name}@{adapter.sha256[:12]}{quantization}", base, (adapter,))


def _canaries(adapters: Iterable[Adapter]) -> dict[Adapter, Canary]:
    """Of the adapters whose files are what they should be."""
    canaries = {}
    for adapter in adapters:
        with suppress(NotReadyError):  # it says why when it is asked
            canaries[adapter] = adapter_canary(adapter)
    return canaries


@cache
def library_versions() -> tuple[str, ...]:
    return tuple(map(version, LIBRARIES))


async def _to_chunks(
    batches: AsyncGenerator[TokenBatch],
    decode: Callable[[list[int]], str],
    params: GenerationParams,
    prompt_tokens: int,
    begun: list[int],
) -> AsyncGenerator[Chunk]:
    detokenizer, scanner = Detokenizer(decode), StopScanner(params.stop)
    completion_tokens = 0
    probability: float | None = None
    finish_reason: FinishReason | None = None
    async with aclosing(batches):  # closing it frees the slot
        async for batch in batches:
            if params.probability and not completion_tokens:
                probability = exp(batch.log_prob)
            ids = batch.ids if completion_tokens else [*begun, *batch.ids]
            completion_tokens += len(ids)
            finish_reason = batch.finish_reason
            if text := scanner.feed(detokenizer.feed(ids)):
                yield Chunk(text, probability=probability)
                probability = None
            if scanner.stopped:
                finish_reason = "stop"
                break
    if finish_reason is None:
        raise EngineError("The engine ended the answer without saying why.")
    rest = "" if scanner.stopped else scanner.feed(detokenizer.flush()) + scanner.flush()
    yield Chunk(rest, finish_reason, Usage(prompt_tokens, completion_tokens), probability)
