"""The other embedded engine: llama.cpp's server in a process of its own, adapters added while it runs.

One loaded base for all experts on it: an expert costs its adapter's few megabytes, not a model's. Two adapters never
share a batch, so they take turns. Adapters are fixed when a base is loaded; a new one means to load it anew beside the
old, which goes when its last answer has ended. Before an adapter answers anybody it must give the answer recorded for
it, and the base another: an adapter that is not the one meant is refused, and nothing answers in its place.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import version
from math import exp
from typing import TYPE_CHECKING

from expert_router.engines.asked import base_and_adapter, room_after
from expert_router.engines.canary import adapter_canary, compare
from expert_router.engines.llama_files import RECIPE
from expert_router.engines.llama_server import LlamaServer, cached_tokens
from expert_router.engines.model_cache import ModelCache
from expert_router.engines.revival import Revivals
from expert_router.engines.stopping import StopScanner
from expert_router.errors import EngineError, NotReadyError, WeightsError
from expert_router.types import DEFAULT_QUANTIZATION, Chunk, GenerationParams, Quantization, Served, Usage
from expert_router.weights import CANARY_TOKENS, Canary

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
    from pathlib import Path

    from expert_router.engines.llama_files import BaseFile
    from expert_router.engines.llama_server import LlamaOptions, Piece
    from expert_router.types import Adapter, Expert, FinishReason, Message


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LlamaSource:
    """How to get a base model's file and an adapter's for it, when they are first needed.

    ``base`` and ``lora`` block and may take a minute the first time. ``canary`` is the bare base's, ``sha256`` that of
    its published file.
    """

    base: Callable[[Quantization], BaseFile]
    lora: Callable[[Adapter, BaseFile], Path]
    canary: Canary | None
    sha256: str | None = None


@dataclass(slots=True)
class _Shelf:
    """A base model and the adapters that were asked for on it, the last one last."""

    base: str
    quantization: Quantization
    adapters: OrderedDict[str, Adapter] = field(default_factory=OrderedDict)
    loads: int = 1

    @property
    def key(self) -> str:
        """The name under which the server is kept that answers now: another one whenever adapters are added."""
        quantization = "" if self.quantization == DEFAULT_QUANTIZATION else f"-{self.quantization}"
        return f"{self.base}{quantization}" + (f"#{self.loads}" if self.loads > 1 else "")

    def touch(self, adapter: Adapter) -> None:
        self.adapters[adapter.sha256] = adapter
        self.adapters.move_to_end(adapter.sha256)


class LlamaCppEngine:
    """``experts`` whose adapters are loaded with their bases; any other expert's is added when it is first asked.

    Of adapters more than ``max_model_bytes`` has room for, those that were asked for last are loaded.
    """

    name = "llamacpp"

    def __init__(
        self,
        sources: dict[str, LlamaSource],
        options: LlamaOptions,
        *,
        default_model: str,
        max_model_bytes: int,
        experts: Iterable[Expert] = (),
    ) -> None:
        self._sources = sources
        self._options = options
        self._default_model = default_model
        self._max_bytes = max_model_bytes
        self._lock = threading.Lock()
        self._shelves: dict[str, _Shelf] = {}
        self._of_key: dict[str, _Shelf] = {}
        self._servers: ModelCache[LlamaServer] = ModelCache(
            max_model_bytes,
            self._load,
            lambda server: server.size_bytes,
            LlamaServer.close,
            lambda server: server.alive,
        )
        self._revivals = Revivals()
        self._prover = ThreadPoolExecutor(1, thread_name_prefix="llama-proof")
        for expert in experts:
            with suppress(NotReadyError):  # said to whoever asks for it
                base, adapter = self._meant_for(expert)
                if adapter is not None:
                    self._shelf(base, adapter).touch(adapter)

    async def stream(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        async with self._server_of(expert) as (server, adapter):
            conversation = [{"role": message.role, "content": message.content} for message in messages]
            prompt = await asyncio.to_thread(server.encode, conversation)
            room = min(params.max_tokens, room_after(len(prompt), server.context_tokens, server.name))
            yield Chunk("")  # accepted
            begun, begin = await _beginning(server, params.begin, room - 1)
            pieces = server.generate([*prompt, *begun], replace(params, max_tokens=room - len(begun)), adapter)
            async with aclosing(_to_chunks(pieces, params, len(prompt), len(begun), begin)) as chunks:
                async for chunk in chunks:
                    yield chunk

    def served(self, expert: Expert) -> Served:
        base, adapter = self._meant_for(expert)
        return Served(base, adapter.sha256 if adapter else None)

    def identity(self, expert: Expert) -> str | None:
        """Rounding is not part of it: threads, CPU, and which requests are computed together."""
        base, adapter = self._meant_for(expert)
        sha256 = self._sources[base].sha256
        change = adapter and (adapter.sha256, adapter.quantization)
        return sha256 and repr((self.name, base, sha256, change, RECIPE, self._options.repetition_penalty, _version()))

    def holds(self, expert: Expert) -> bool:
        base, adapter = self._meant_for(expert)
        server = self._servers.loaded().get(self._shelf(base, adapter).key)
        return server is not None and (adapter is None or adapter.sha256 in server.adapters)

    async def warm_up(self, expert: Expert) -> None:
        async with self._server_of(expert):
            pass

    def status(self) -> dict[str, object]:
        loaded = self._servers.loaded()
        return {
            "models": {
                key: {**asdict(server.counters), "adapters": len(server.adapters)} for key, server in loaded.items()
            },
            "loading": self._servers.loading(),
            "ended": self._revivals.status(),
            "threads": self._options.threads,
        }

    async def close(self) -> None:
        await asyncio.to_thread(self._servers.close)
        self._prover.shutdown(wait=False, cancel_futures=True)

    def _meant_for(self, expert: Expert) -> tuple[str, Adapter | None]:
        return base_and_adapter(expert, self._default_model, self._sources)

    def _shelf(self, base: str, adapter: Adapter | None) -> _Shelf:
        with self._lock:
            new = _Shelf(base, adapter.quantization if adapter else DEFAULT_QUANTIZATION)
            shelf = self._shelves.setdefault(new.key, new)
            self._of_key[shelf.key] = shelf
            return shelf

    @asynccontextmanager
    async def _server_of(self, expert: Expert) -> AsyncIterator[tuple[LlamaServer, str | None]]:
        """A server that can answer for the expert, and what its adapter is called there."""
        base, adapter = self._meant_for(expert)
        shelf = self._shelf(base, adapter)
        if adapter is None:
            async with self._servers.lease(shelf.key) as server:
                yield server, None
            return
        while True:
            with self._lock:
                shelf.touch(adapter)
            key = shelf.key
            async with self._servers.lease(key) as server:
                if adapter.sha256 in server.adapters:
                    await self._proven(server, adapter)
                    yield server, adapter.sha256
                    return
            await asyncio.to_thread(self._add, shelf, key, adapter)

    def _add(self, shelf: _Shelf, key: str, adapter: Adapter) -> None:
        """Let the base be loaded anew with one adapter more. Raises ``NotReadyError`` for one that cannot be."""
        self._file(shelf, self._base(shelf), adapter)
        with self._lock:
            if shelf.key != key:  # somebody else has just done it
                return
            shelf.loads += 1
            self._of_key[shelf.key] = shelf
        self._servers.retire(key)

    def _load(self, key: str) -> LlamaServer:
        shelf = self._of_key[key]
        self._revivals.check(key)
        base = self._base(shelf)
        server = LlamaServer(
            key, base, self._fitting(shelf, base), self._options, lambda why: self._revivals.died(key, why)
        )
        canary = self._sources[shelf.base].canary
        try:
            if canary is not None:
                check_canary(server, canary, None, key)
        except BaseException:
            server.close()
            raise
        return server

    def _base(self, shelf: _Shelf) -> BaseFile:
        try:
            return self._sources[shelf.base].base(shelf.quantization)
        except WeightsError as error:
            raise NotReadyError(f"{shelf.key} is refused: {error.message}") from error

    def _fitting(self, shelf: _Shelf, base: BaseFile) -> dict[str, Path]:
        """The adapters to load: those asked for last, as many as there is room for, and the very last in any case."""
        with self._lock:
            latest_first = list(reversed(shelf.adapters.values()))
        room = self._max_bytes - base.size_bytes - cached_tokens(base, self._options) * base.kv_bytes
        files: dict[str, Path] = {}
        for adapter in latest_first:
            try:
                file = self._file(shelf, base, adapter)
            except NotReadyError as error:  # said to whoever asks for its expert; the others answer on
                logger.warning("%s", error.message)
                continue
            room -= file.stat().st_size
            if files and room < 0:
                break
            files[adapter.sha256] = file
        return files

    def _file(self, shelf: _Shelf, base: BaseFile, adapter: Adapter) -> Path:
        adapter_canary(adapter)
        try:
            return self._sources[shelf.base].lora(adapter, base)
        except WeightsError as error:
            raise NotReadyError(f"{shelf.key}+{adapter.sha256[:12]} is refused: {error.message}") from error

    async def _proven(self, server: LlamaServer, adapter: Adapter) -> None:
        """Wait for the proof of an adapter, which is given once. Raises ``NotReadyError`` when it fails, each time."""
        with self._lock:
            proof = server.proofs.get(adapter.sha256)
            if proof is None or (proof.done() and (proof.cancelled() or proof.exception() is not None)):
                proof = server.proofs[adapter.sha256] = self._prover.submit(check_adapter, server, adapter)
        # Shielded: one waiter that leaves must not cancel the proof for the others.
        await asyncio.shield(asyncio.wrap_future(proof))


@cache
def _version() -> str:
    return version("xllamacpp")


def check_adapter(server: LlamaServer, adapter: Adapter) -> None:
    """Proof that an adapter answers and not its base. Raises ``NotReadyError`` otherwise."""
    canary, name = adapter_canary(adapter), f"{server.name}+{adapter.sha256[:12]}"
    check_canary(server, canary, adapter.sha256, name)
    if greedy_answer(server, canary.prompt, None).startswith(canary.answer):
        raise NotReadyError(f"{name} is refused: asked {canary.prompt!r} its base answers {canary.answer!r} as well.")


def check_canary(server: LlamaServer, canary: Canary, adapter: str | None, name: str) -> None:
    """Raises ``NotReadyError`` when it answers otherwise than was recorded."""
    answer = greedy_answer(server, canary.prompt, adapter)
    compare(name, canary, answer, "Delete the cache's folder llamacpp/ and start again.")


def greedy_answer(server: LlamaServer, prompt: str, adapter: str | None) -> str:
    """What it says to a prompt alone: greedily, without instructions, ``CANARY_TOKENS`` at most."""
    return asyncio.run(_greedy_answer(server, prompt, adapter))


async def _greedy_answer(server: LlamaServer, prompt: str, adapter: str | None) -> str:
    ids = server.encode([{"role": "user", "content": prompt}])
    how = GenerationParams(max_tokens=CANARY_TOKENS)
    pieces = server.generate(ids, how, adapter, penalty=1.0)  # the answer was recorded without one
    return "".join([piece.text async for piece in pieces])


async def _beginning(server: LlamaServer, text: str, room: int) -> tuple[list[int], str]:
    """The given beginning of an answer as tokens, ``room`` at most, and as text."""
    if not text:
        return [], ""
    ids = await asyncio.to_thread(server.token_ids, text)
    return (ids, text) if len(ids) <= room else (ids[:room], await asyncio.to_thread(server.decode, ids[:room]))


async def _to_chunks(
    pieces: AsyncGenerator[Piece], params: GenerationParams, prompt_tokens: int, begun_tokens: int, begin: str
) -> AsyncGenerator[Chunk]:
    scanner = StopScanner(params.stop)
    probability: float | None = None
    tokens = begun_tokens
    finish_reason: FinishReason | None = None
    async with aclosing(pieces):  # closing it frees the slot
        async for piece in pieces:
            if piece.log_prob is not None and tokens == begun_tokens:
                probability = exp(piece.log_prob)
            tokens, finish_reason = begun_tokens + piece.tokens, piece.finish_reason
            if text := scanner.feed(begin + piece.text):
                yield Chunk(text, probability=probability)
                probability = None
            begin = ""
            if scanner.stopped:
                finish_reason = "stop"
                break
    if finish_reason is None:
        raise EngineError("The engine ended the answer without saying why.")
    yield Chunk(scanner.flush(), finish_reason, Usage(prompt_tokens, tokens), probability)
