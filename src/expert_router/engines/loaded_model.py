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

from expert_router.engines.batching import start_pipeline
from expert_router.engines.control_tokens import ControlTokens
from expert_router.engines.vocabulary import vocabulary_of
from expert_router.errors import NotReadyError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

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


WEIGHTS_PER_S = 5e9
"""So many weights (a byte each) times tokens a slow core takes a second: two operations each, 1e10 of them."""
BESIDE_OTHERS_S = 30.0
"""What else the machine may have to do, between the steps of the smallest model too."""

STEP_S = 0.05
"""So long a step is meant to take: others' tokens, and whoever leaves, wait for its end."""
USUAL_WEIGHTS_PER_S = 2.5e11
"""As ``WEIGHTS_PER_S``, of a core as servers have them, in a prompt."""
BLOCK_TOKENS = 32
"""Of the attention cache. With fewer a thread a prompt takes a third longer, and many answers leave it no room."""
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
    step_tokens: int | None = None
    """So many are computed at once at most: one of each answer, and of prompts as many as are left. ``None`` derives it
    from the model's size and the threads."""
    step_timeout_s: float | None = None
    """``None`` derives it from the model's size."""


def longest_step_s(size_bytes: int, step_tokens: int) -> float:
    """What takes longer hangs; a slow laptop does not: 34 s for 135 M weights, 120 s for 7 B, with two threads."""
    return BESIDE_OTHERS_S + size_bytes * step_tokens / WEIGHTS_PER_S


def usual_step_tokens(size_bytes: int, threads: int) -> int:
    """As many as take ``STEP_S``, in whole blocks."""
    blocks = int(threads * STEP_S * USUAL_WEIGHTS_PER_S / size_bytes) // BLOCK_TOKENS
    return max(min(blocks * BLOCK_TOKENS, MOST_TOKENS), threads * BLOCK_TOKENS)


def scheduler_settings(options: OpenVINOOptions, step_tokens: int) -> dict[str, Any]:
    """How a pipeline shares its steps and its cache among requests, in the library's words."""
    return {
        "cache_size": max(1, options.kv_cache_bytes // GIB),
        "max_num_seqs": options.max_batch_size,
        "max_num_batched_tokens": step_tokens,
        "dynamic_split_fuse": True,  # long prompts are read in slices between other requests' tokens
        "enable_prefix_caching": True,  # an expert's instructions are read once
    }


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
        self.name = name
        self.slots = {}
        self._vocabulary = prepared.vocabulary
        self.context_tokens = min(prepared.facts.context_tokens, TOKENIZER_LIMIT)
        self.size_bytes = prepared.size_bytes + options.kv_cache_bytes
        device = {"INFERENCE_NUM_THREADS": options.threads, **(REPRODUCIBLE if options.reproducible else {})}
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
        scheduler = scheduler_settings(options, tokens)
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
        self, ids: Sequence[int], params: GenerationParams, *, slot: int = 0, repetition_penalty: float | None = None
    ) -> AsyncGenerator[TokenBatch]:
        """Token ids in and out are the tokenizer's, whatever the slot; see ``Batcher.generate``."""
        first = slot * self._vocabulary
        config = self._generation_config(params, first)
        if repetition_penalty is not None:
            config["repetition_penalty"] = repetition_penalty
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
