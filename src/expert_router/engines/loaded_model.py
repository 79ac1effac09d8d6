"""A model that is loaded: its pipeline in a process of its own, its tokenizer in this one.

Chat template and tokenizer are the model file's own.
"""

from __future__ import annotations

import secrets
import threading
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_router.engines.attention_cache import BLOCK_TOKENS, blocks_within
from expert_router.engines.batching import start_pipeline
from expert_router.engines.child import longest_step_s
from expert_router.engines.control_tokens import ControlTokens
from expert_router.engines.lookup import LOOKUP, lookup_settings
from expert_router.engines.prepared import GRAPH
from expert_router.engines.vocabulary import vocabulary_of
from expert_router.errors import NotReadyError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from pathlib import Path

    from expert_router.engines.prepared import PreparedModel
    from expert_router.engines.stepping import TokenBatch
    from expert_router.types import GenerationParams

GIB = 1024**3
TOKENIZER_LIMIT = 8192
"""The library's tokenizer for GGUF files cuts a longer prompt to its last 8192 tokens without a word."""
REPRODUCIBLE = {
    "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16, on the CPUs that have it alone
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # else a step of one request computes otherwise than a step of several
    "KV_CACHE_PRECISION": "f16",  # else 8 bits, whose rounding depends on how the prompt was sliced
}
"""What it takes to answer the same question alike on every x86 CPU, alone or in a batch."""
STEP_S = 0.1
"""So long a step is meant to take: others' tokens, and whoever leaves, wait for its end."""
USUAL_WEIGHTS_PER_S = 2.5e11
"""So many weights (a byte each) times tokens of a prompt a core takes a second, as servers have them."""
LEAST_BLOCKS = 2
"""A thread. With fewer a prompt takes longer, and many answers, with what they guess, leave it no room."""
MOST_TOKENS = 512
"""With more a prompt is read no faster."""


@dataclass(frozen=True, slots=True)
class OpenVINOOptions:
    default_model: str
    threads: int
    max_model_bytes: int
    kv_cache_bytes: int
    max_batch_size: int
    reproducible: bool
    repetition_penalty: float = 1.0
    """Above 1 a token that was used before becomes less likely: small models fall into loops without it."""
    stack_size: int = 0
    """So many adapters at most share a copy of their base's weights; with less than 2 each is merged into its own."""
    lookup_tokens: int = 0
    """So many tokens of an answer that quotes are guessed from its prompt, and checked, in a step."""
    step_tokens: int | None = None
    """So many are computed at once at most: one of each answer, and of prompts as many as are left. ``None`` derives it
    from the model's size and the threads."""
    step_timeout_s: float | None = None
    """``None`` derives it from the model's size."""


def usual_step_tokens(size_bytes: int, threads: int) -> int:
    """As many as take ``STEP_S``, in whole blocks."""
    blocks = int(threads * STEP_S * USUAL_WEIGHTS_PER_S / size_bytes) // BLOCK_TOKENS
    return max(min(blocks * BLOCK_TOKENS, MOST_TOKENS), threads * LEAST_BLOCKS * BLOCK_TOKENS)


def scheduler_settings(graph: Path, options: OpenVINOOptions, step_tokens: int) -> dict[str, Any]:
    """How a pipeline shares its steps and its cache among requests, in the library's words."""
    return {
        **_attention_cache(graph, options),
        "max_num_seqs": options.max_batch_size,
        "max_num_batched_tokens": step_tokens,
        "dynamic_split_fuse": True,  # long prompts are read in slices between other requests' tokens
        "enable_prefix_caching": True,  # an expert's instructions are read once
    }


def _attention_cache(graph: Path, options: OpenVINOOptions) -> dict[str, object]:
    """In whole GiB as the library counts them; of less than one as many blocks as there is room for."""
    limit = options.kv_cache_bytes
    blocks = blocks_within(limit, graph, half=options.reproducible) if limit < GIB else None
    return {"cache_size": max(1, limit // GIB)} if blocks is None else {"num_kv_blocks": blocks}


class LoadedModel:
    """A pipeline in its process, its tokenizer here. Blocking methods; ``encode`` and ``decode`` are thread-safe.

    ``slots`` has, by an adapter's hash or ``None`` for the base, where in a stack it is: 0 where nothing is stacked.
    """

    slots: dict[str | None, int]

    def __init__(
        self,
        name: str,
        prepared: PreparedModel,
        options: OpenVINOOptions,
        died: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``died`` is told why its process ended, unless it was closed."""
        import openvino_genai as genai

        self._repetition_penalty = options.repetition_penalty
        self._lookup_tokens = options.lookup_tokens
        self.name = name
        self.slots = {}
        self._vocabulary = prepared.vocabulary
        self.context_tokens = min(prepared.facts.context_tokens, TOKENIZER_LIMIT)
        self.size_bytes = prepared.size_bytes + options.kv_cache_bytes
        device = {"INFERENCE_NUM_THREADS": options.threads, **(REPRODUCIBLE if options.reproducible else {})}
        if options.lookup_tokens:
            device[LOOKUP] = True
        try:
            self._tokenizer = genai.Tokenizer(str(prepared.folder))
        except RuntimeError as error:
            raise NotReadyError(f"The tokenizer in {prepared.folder} cannot be loaded: {error}") from error
        self._tokenizer_lock = threading.Lock()
        # Here, where one thread loads: on first use the library initialises what hands over tokens, and gives Python's
        # lock away while it does. Two threads that came there at once would wait for each other for ever.
        self.token_ids("first of all")
        vocabulary = vocabulary_of(self._tokenizer)
        self._decode, self._control = vocabulary.decode, ControlTokens(vocabulary.control)
        tokens = options.step_tokens or usual_step_tokens(prepared.size_bytes, options.threads)
        limit_s = options.step_timeout_s or longest_step_s(prepared.size_bytes, tokens)
        scheduler = scheduler_settings(prepared.folder / GRAPH, options, tokens)
        self.batcher = start_pipeline(name, prepared.folder, scheduler, device, step_timeout_s=limit_s, died=died)

    def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The conversation in the model's chat template, whose marks count nowhere else (``ControlTokens``)."""
        prompt = self._tokenizer.apply_chat_template(self._control.marked(messages), add_generation_prompt=True)
        return self._control.encoded(prompt, self.token_ids, self.context_tokens)

    def token_ids(self, text: str) -> list[int]:
        with self._tokenizer_lock:
            # Copied under the lock: the tokenizer reuses the tensor's memory in its next call.
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).input_ids.data[0].tolist()
        return ids

    def decode(self, ids: list[int]) -> str:
        return self._decode(ids)

    async def generate(
        self,
        ids: Sequence[int],
        params: GenerationParams,
        *,
        slot: int = 0,
        repetition_penalty: float | None = None,
        quotes: bool = False,
    ) -> AsyncGenerator[TokenBatch]:
        """Token ids in and out are the tokenizer's, whatever the slot; see ``Batcher.generate``.

        An answer that ``quotes`` its prompt is looked up there; with another that would cost more than it brings.
        """
        first = slot * self._vocabulary
        config = self._generation_config(params, first)
        if repetition_penalty is not None:
            config["repetition_penalty"] = repetition_penalty
        if self._lookup_tokens:
            config |= lookup_settings(self._lookup_tokens if quotes else 1)
        prompt = np.array([ids], dtype=np.int64) + first
        async with aclosing(self.batcher.generate(prompt, config)) as batches:
            async for batch in batches:
                yield replace(batch, ids=[token - first for token in batch.ids]) if first else batch

    def _generation_config(self, params: GenerationParams, first: int) -> dict[str, Any]:
        end = first + self._tokenizer.get_eos_token_id()
        config: dict[str, Any] = {
            "max_new_tokens": params.max_tokens,
            "eos_token_id": end,
            "stop_token_ids": {end},
            "ignore_eos": params.ignore_eos,
            "repetition_penalty": self._repetition_penalty,
            "logprobs": int(params.probability),
        }
        if params.temperature > 0:
            seed = params.seed if params.seed is not None else secrets.randbits(31)
            config |= {"do_sample": True, "temperature": params.temperature, "top_p": params.top_p, "rng_seed": seed}
        return config

    def close(self) -> None:
        self.batcher.close()
