"""One base model in llama.cpp's server, in this process, with the adapters that it can answer with.

xllamacpp runs the server's loop in a thread of its own; a request blocks the thread that makes it, so each that runs
has one. Only the server's HTTP door leads to its tokenizer and chat template: it opens on the loopback address, on a
port that the system chooses, with a key that nobody else knows.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import httpx2

from expert_router.engines.control_tokens import ControlTokens
from expert_router.engines.slots import TokenCounters
from expert_router.engines.turns import Ticket, Turns
from expert_router.errors import EngineError, ExpertRouterError, NotReadyError
from expert_router.weights.gguf_head import control_tokens

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from pathlib import Path

    from expert_router.engines.llama_files import BaseFile
    from expert_router.types import FinishReason, GenerationParams

SLOTS = 16
"""Each keeps its last prompt, and the attention of all others passes over it: more of them make every answer slower."""
TOKENS_OF_A_SLOT = 1024
"""What the attention cache holds for each, where the settings allow it: a prompt with its passages, and the answer."""
BATCH_TOKENS = 512
"""So many tokens of prompts are read at once; that a request was left is noticed in between."""
SMALLEST_CACHE = 256
"""Tokens. llama.cpp rounds up to a multiple of it."""


@dataclass(frozen=True, slots=True)
class LlamaOptions:
    """``threads`` for prompts and batches, ``lone_threads`` for an answer that is generated alone."""

    threads: int
    lone_threads: int
    kv_cache_bytes: int
    max_batch_size: int
    repetition_penalty: float = 1.0
    """Above 1 a token that was used before becomes less likely: small models fall into loops without it."""

    @property
    def slots(self) -> int:
        """How many requests run at once."""
        return min(SLOTS, self.max_batch_size)


def cached_tokens(base: BaseFile, options: LlamaOptions) -> int:
    """The size of the attention cache that all slots share."""
    wanted = max(base.context_tokens, options.slots * TOKENS_OF_A_SLOT)
    return max(min(options.kv_cache_bytes // base.kv_bytes, wanted) // SMALLEST_CACHE, 1) * SMALLEST_CACHE


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of one answer; ``tokens`` is how many were generated so far. The last piece has ``finish_reason``.

    ``log_prob`` is that of the first token, where it was asked for, in the piece that holds it.
    """

    text: str
    tokens: int
    finish_reason: FinishReason | None = None
    log_prob: float | None = None


@dataclass(eq=False, slots=True)
class _Request(Ticket):
    body: dict[str, Any]
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Piece | ExpertRouterError] = field(default_factory=asyncio.Queue)
    left: bool = False
    tokens_said: int = 0
    ended: Piece | ExpertRouterError | None = None

    def send(self, event: Piece | ExpertRouterError) -> None:
        if isinstance(event, Piece):
            self.tokens_said = event.tokens
        if isinstance(event, ExpertRouterError) or event.finish_reason is not None:
            self.ended = event
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # that loop was closed: nobody waits there any more
            self.left = True


class LlamaServer:
    """``loras`` by what names them here. Thread-safe; all but ``generate`` blocks.

    Raises ``NotReadyError`` when xllamacpp cannot load the files.
    """

    def __init__(self, name: str, base: BaseFile, loras: Mapping[str, Path], options: LlamaOptions) -> None:
        self.name = name
        self.adapters = tuple(loras)
        self.counters = TokenCounters()
        self._penalty = options.repetition_penalty
        self._counting = threading.Lock()
        self._closed = False
        cached = cached_tokens(base, options)
        self.context_tokens = min(base.context_tokens, cached)
        self.size_bytes = base.size_bytes + cached * base.kv_bytes + sum(f.stat().st_size for f in loras.values())
        self._control = ControlTokens(control_tokens(base.path))
        self.proofs: dict[str, Future[None]] = {}
        """By adapter, from the first time it is asked: its proof, which may still run."""
        key = secrets.token_urlsafe()
        self._server = _start(base, list(loras.values()), key, options)
        self._http = httpx2.Client(
            base_url=self._server.listening_address,
            headers={"Authorization": f"Bearer {key}"},
            trust_env=False,  # no proxy leads to this process
            timeout=60.0,
        )
        self._turns: Turns[_Request] = Turns(options.slots, cached, self._begin)
        self._threads = ThreadPoolExecutor(options.slots, thread_name_prefix=f"llama-{name}")
        loaded = [each["path"] for each in self._call("GET", "/lora-adapters")]
        if loaded != [str(file) for file in loras.values()]:  # requests name them by their place in this list
            self.close()
            raise NotReadyError(f"{name} has loaded other adapters than it was given: {loaded}.")

    def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The conversation in the model's chat template, whose marks count nowhere else (``ControlTokens``)."""
        prompt = self._call("POST", "/apply-template", {"messages": self._control.marked(messages)})["prompt"]
        begins = iter([True])  # what stands before a prompt stands before its first part

        def encode(part: str) -> list[int]:
            return self._tokens({"content": part, "add_special": next(begins, False)})

        return self._control.encoded(prompt, encode, self.context_tokens)

    def token_ids(self, text: str) -> list[int]:
        return self._tokens({"content": text})

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._call("POST", "/detokenize", {"tokens": list(ids)})["content"])

    async def generate(
        self, ids: Sequence[int], params: GenerationParams, adapter: str | None, *, penalty: float | None = None
    ) -> AsyncGenerator[Piece]:
        """Go on from these tokens until the model ends or the caller leaves; leaving frees the slot.

        It is free at the next token, or between two batches of the prompt. ``penalty`` replaces the options' own.
        """
        body = self._body(ids, params, adapter, self._penalty if penalty is None else penalty)
        request = _Request(adapter, len(ids) + params.max_tokens, body, asyncio.get_running_loop())
        self._turns.enter(request)
        try:
            while True:
                event = await request.events.get()
                if isinstance(event, ExpertRouterError):
                    raise event
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            request.left = True
            self._turns.withdraw(request)

    def close(self) -> None:
        """End what runs and give the memory back. Closing twice is fine."""
        self._closed = True
        for request in self._turns.close():
            request.send(EngineError("The engine was shut down while generating."))
        self._threads.shutdown(wait=True)
        self._http.close()
        self._server = None

    def _call(self, method: str, path: str, body: object = None) -> Any:
        try:
            response = self._http.request(method, path, json=body)
            response.raise_for_status()
            return response.json()
        except (httpx2.HTTPError, RuntimeError, ValueError) as error:  # a closed client raises RuntimeError
            raise EngineError(f"llama.cpp's server did not do {path} ({error}).") from error

    def _tokens(self, body: dict[str, object]) -> list[int]:
        return [int(token) for token in self._call("POST", "/tokenize", {**body, "parse_special": True})["tokens"]]

    def _body(
        self, ids: Sequence[int], params: GenerationParams, adapter: str | None, penalty: float
    ) -> dict[str, Any]:
        if adapter is not None and adapter not in self.adapters:  # an unknown one would be answered by the base
            raise NotReadyError(f"{self.name} is loaded without the adapter {adapter}.")
        body: dict[str, Any] = {
            "prompt": list(ids),
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "samplers": ["penalties", "temperature", "top_p"],
            "repeat_penalty": penalty,
            "repeat_last_n": self.context_tokens,
            "seed": params.seed if params.seed is not None else secrets.randbits(31),
            "stream": True,
            "return_progress": True,
            "timings_per_token": True,
            # All of them, each time: a request that names none is given what the slot before it had in its cache.
            "lora": [{"id": n, "scale": float(name == adapter)} for n, name in enumerate(self.adapters)],
        }
        return {**body, "logprobs": 1} if params.probability else body

    def _begin(self, request: _Request) -> None:
        self._threads.submit(self._run, request)

    def _run(self, request: _Request) -> None:
        with self._counting:
            self.counters.running += 1
        try:
            if not (request.left or self._closed):
                self._server.handle_completions(request.body, lambda event: self._receive(request, event))
        except Exception as error:  # noqa: BLE001 - a C++ library: whatever it throws ends this request
            request.send(EngineError(f"The engine failed while generating ({error})."))
        why = "The engine was shut down while generating." if self._closed else "The engine ended without a word."
        if request.ended is None and not request.left:
            request.send(EngineError(why))
        self._count(request)
        self._turns.leave(request)

    def _receive(self, request: _Request, event: dict[str, Any]) -> bool:
        """Hand over what the server says; true ends the request."""
        try:
            said = _read(event)
        except (KeyError, IndexError, TypeError) as error:
            said = EngineError(f"The engine said what nobody understands ({error!r}).")
        if said is not None and not request.left:
            request.send(said)
        return request.left or self._closed or isinstance(said, EngineError)

    def _count(self, request: _Request) -> None:
        with self._counting:
            self.counters.running -= 1
            self.counters.generated_tokens += request.tokens_said
            self.counters.finished += isinstance(request.ended, Piece)
            self.counters.failed += isinstance(request.ended, ExpertRouterError)
            self.counters.cancelled += request.ended is None


def load_library() -> Any:
    """The module ``xllamacpp``. Raises ``ImportError`` where it or what it needs is missing."""
    # Read when the library is loaded: threads that wait for each other by spinning stand still beside a busy neighbour.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return import_module("xllamacpp")


def _start(base: BaseFile, loras: Sequence[Path], key: str, options: LlamaOptions) -> Any:
    """A running ``xllamacpp.Server``."""
    xllamacpp = load_library()
    params = xllamacpp.CommonParams()
    params.model.path = str(base.path)
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(file), 0.0) for file in loras]
    params.n_parallel = options.slots
    params.n_ctx = cached_tokens(base, options)
    params.kv_unified = True
    params.cache_ram_mib = 0  # kept prompts are found by their tokens alone, whatever adapter had read them
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    params.cpuparams.n_threads = options.lone_threads
    params.cpuparams_batch.n_threads = options.threads
    params.api_keys = [key]
    params.ui = False
    params.endpoint_slots = False
    params.warmup = False
    params.verbosity = 0
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        raise NotReadyError(f"llama.cpp cannot load {base.path} with {len(loras)} adapters: {error}") from error


def _read(event: dict[str, Any]) -> Piece | EngineError | None:
    """``None`` for the news that a prompt is being read."""
    if "error" in event:
        return EngineError(f"The engine refused the request ({event['error']['message']}).")
    (choice,) = event["choices"]
    if "prompt_progress" in event and not choice["text"]:
        return None
    first = (choice.get("logprobs") or {}).get("content") or [{"logprob": None}]
    tokens = event["timings"]["predicted_n"]
    return Piece(choice["text"], tokens, choice["finish_reason"], first[0]["logprob"])
