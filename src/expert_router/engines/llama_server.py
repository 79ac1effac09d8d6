"""One base model in llama.cpp's server, in a process of its own, with the adapters that it can answer with.

A request blocks the thread that makes it, so each that runs has one. A server that says nothing for too long while one
waits for it hangs and is ended; as when it dies by itself, all its requests are told, and nobody asks it any more.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2

from expert_router.engines.child import LOADING_S, longest_step_s, start
from expert_router.engines.control_tokens import ControlTokens
from expert_router.engines.events import EventParser
from expert_router.engines.llama_process import BATCH_TOKENS, CHILD, LlamaJob
from expert_router.engines.slots import TokenCounters
from expert_router.engines.turns import Ticket, Turns
from expert_router.errors import EngineError, EngineTimeoutError, ExpertRouterError, NotReadyError
from expert_router.weights.gguf_head import control_tokens

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from pathlib import Path

    from expert_router.engines.llama_files import BaseFile
    from expert_router.types import FinishReason, GenerationParams

SLOTS = 16
"""Each keeps its last prompt, and the attention of all others passes over it: more of them make every answer slower."""
TOKENS_OF_A_SLOT = 1024
"""What the attention cache holds for each, where the settings allow it: a prompt with its passages, and the answer."""
LAST_EVENT = b"[DONE]"
LAST_WORDS_S = 5.0
"""A process that broke a connection off is gone within so long."""
SHUT_DOWN = "The engine was shut down while generating."
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
    step_timeout_s: float | None = None
    """``None`` derives it from the model's size."""

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

    ``died`` is told why its process ended, unless it was closed; it is called in another thread. Raises
    ``NotReadyError`` when xllamacpp cannot load the files.
    """

    def __init__(
        self,
        name: str,
        base: BaseFile,
        loras: Mapping[str, Path],
        options: LlamaOptions,
        died: Callable[[str], None] = lambda _: None,
    ) -> None:
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
        self._died = died
        self._ended: EngineError | None = None
        self._ending = threading.Lock()
        self._over = threading.Event()
        self._limit_s = options.step_timeout_s or longest_step_s(base.size_bytes, BATCH_TOKENS)
        files = tuple(map(str, loras.values()))
        job = LlamaJob(str(base.path), files, key, options.slots, cached, options.threads, options.lone_threads)
        cannot = f"llama.cpp cannot load {base.path} with {len(loras)} adapters"
        loading_s = max(LOADING_S, 2 * self._limit_s)
        self._connection, self._stop, (address,) = start(CHILD, job, cannot, loading_s=loading_s, died=died)
        self._http = httpx2.Client(
            base_url=address,
            headers={"Authorization": f"Bearer {key}"},
            trust_env=False,  # no proxy leads to this machine
            timeout=self._limit_s,
        )
        self._turns: Turns[_Request] = Turns(options.slots, cached, self._begin)
        self._threads = ThreadPoolExecutor(options.slots, thread_name_prefix=f"llama-{name}")
        self._watcher = threading.Thread(target=self._watch, name=f"from-{name}", daemon=True)
        self._watcher.start()
        loaded = [each["path"] for each in self._call("GET", "/lora-adapters")]
        if loaded != [str(file) for file in loras.values()]:  # requests name them by their place in this list
            self.close()
            raise NotReadyError(f"{name} has loaded other adapters than it was given: {loaded}.")

    @property
    def alive(self) -> bool:
        return self._ended is None

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
        if not self.alive:
            raise self._fresh_error()
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
        self._end(EngineError(SHUT_DOWN))
        self._stop()
        self._watcher.join()

    def _end(self, why: EngineError) -> bool:
        """Nobody begins from now on; the first reason stands. Whether this is it."""
        with self._ending:
            first = self._ended is None
            self._ended = self._ended or why
        for request in self._turns.close():
            request.send(self._fresh_error())
        return first

    def _fresh_error(self) -> EngineError:
        """For each request its own: what is raised collects where it went."""
        assert self._ended is not None
        return type(self._ended)(self._ended.message)

    def _watch(self) -> None:
        with suppress(EOFError, OSError):  # a process that dies closes the connection, or resets it
            self._connection.recv()
        how = self._stop()
        if self._end(EngineError(f"The model's process ended ({how}); the next question starts another.")):
            self._died(how)
        self._over.set()
        self._threads.shutdown(wait=True)
        self._http.close()
        self._connection.close()

    def _hangs(self) -> EngineError:
        limit = f"it said nothing for {self._limit_s:g} s"
        if self._end(EngineTimeoutError(f"The model hangs ({limit}) and was ended; ask again to start another.")):
            self._died(f"hung: {limit}")
            self._stop()
        return self._fresh_error()

    def _failed(self, error: Exception, what: str) -> EngineError:
        """What went wrong: with the process, if it is that."""
        if isinstance(error, httpx2.ReadTimeout):
            return self._hangs()
        if isinstance(error, httpx2.TransportError) and self._over.wait(LAST_WORDS_S):
            return self._fresh_error()
        return EngineError(f"{what} ({error}).")

    def _call(self, method: str, path: str, body: object = None) -> Any:
        try:
            response = self._http.request(method, path, json=body)
            response.raise_for_status()
            return response.json()
        except (httpx2.HTTPError, RuntimeError, ValueError) as error:  # a closed client raises RuntimeError
            raise self._failed(error, f"llama.cpp's server did not do {path}") from error

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
                self._ask(request)
        except Exception as error:  # noqa: BLE001 - whatever it is ends this request alone
            request.send(self._failed(error, "The engine failed while generating"))
        if request.ended is None and not request.left:
            request.send(EngineError(SHUT_DOWN if self._closed else "The engine ended without a word."))
        self._count(request)
        self._turns.leave(request)

    def _ask(self, request: _Request) -> None:
        """Until the answer's end, or nobody waits for it any more: the connection's end frees the slot."""
        with self._http.stream("POST", "/v1/completions", json=request.body) as response:
            if response.is_error:
                response.read()
                self._receive(request, response.json())
                return
            parser = EventParser()
            for piece in response.iter_bytes():
                for event in parser.feed(piece):
                    if event.data != LAST_EVENT and self._receive(request, json.loads(event.data)):
                        return

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
