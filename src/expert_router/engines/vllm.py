"""vLLM as a child of this process: one base on the machine's GPU, one LoRA adapter per expert (decision 18)."""

from __future__ import annotations

import json
import secrets
import socket
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_router.artifacts import ADAPTER_CONFIG
from expert_router.engines.backoff import FIRST_PAUSE_S
from expert_router.engines.openai_http import OpenAIHTTPEngine
from expert_router.engines.remote.failures import AttemptError
from expert_router.engines.remote.supervisor import ChildProgram, Supervisor
from expert_router.engines.remote.upstream import Upstream
from expert_router.errors import ConfigError, NotReadyError, UpstreamsDownError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence

    from expert_router.types import Adapter, Chunk, Expert, GenerationParams, Message, Served

LOOPBACK = "127.0.0.1"
PROBE_TIMEOUT_S = 5.0
USUAL_START = "130 to 160 s on an H100"
RETRY_AFTER_S = 10.0
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` takes."""
LEAST_RANK = 16
SPARE_LORAS = 2
"""For experts that are added while it runs."""
SET = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
PROPOSED = {"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True, slots=True)
class VLLMOptions:
    """``command`` starts vLLM's command line; ``model`` is a Hugging Face folder or name, served as ``base``.

    ``args`` follow our own on the command line, where the last one counts.
    """

    command: Sequence[str]
    model: str
    base: str
    args: Sequence[str] = ()
    start_timeout_s: float = 600.0

    def command_line(self, port: int, adapters: Collection[Adapter]) -> list[str]:
        """With room for each of the ``adapters``: fewer places cost more than the adapters. Raises ``ConfigError``."""
        ours = {
            "--served-model-name": self.base,
            "--host": LOOPBACK,
            "--port": str(port),
            "--max-loras": str(len(adapters) + SPARE_LORAS),
            "--max-lora-rank": str(_rank(adapters)),
        }
        flags = [word for pair in ours.items() for word in pair]
        return [*self.command, "serve", self.model, *flags, "--enable-lora", "--disable-uvicorn-access-log", *self.args]


class VLLMEngine:
    """Started by ``warm_up``, or by the first question, which then waits for it; on a port and with a key of its own.

    ``adapters`` are those that there has to be room for. While it starts, or is started again after it died, questions
    are refused with a time to come back. ``read_timeout_s``, ``revision`` and ``wanted`` are the HTTP engine's.
    """

    name = "vllm"

    def __init__(
        self,
        options: VLLMOptions,
        model_of: Callable[[Expert], str],
        adapters: Iterable[Adapter] = (),
        *,
        read_timeout_s: float = 60.0,
        revision: str | None = None,
        wanted: Callable[[], Collection[str]] | None = None,
        first_pause_s: float = FIRST_PAUSE_S,
        poll_s: float = 0.5,
    ) -> None:
        port, key = _free_port(), secrets.token_urlsafe(32)
        self._options = options
        self._model_of = model_of
        self._revision = revision
        address = f"http://{LOOPBACK}:{port}/v1"
        self._probe = Upstream(address, key, PROBE_TIMEOUT_S, PROBE_TIMEOUT_S)
        self._remote = OpenAIHTTPEngine(address, key, model_of, read_timeout_s=read_timeout_s, wanted=wanted)
        program = ChildProgram(
            "vLLM",
            options.command_line(port, {adapter.sha256: adapter for adapter in adapters}.values()),
            USUAL_START,
            {**SET, "VLLM_API_KEY": key},
            PROPOSED,
            secret=key,
            start_timeout_s=options.start_timeout_s,
        )
        self._server = Supervisor(program, self._answers, first_pause_s=first_pause_s, poll_s=poll_s)
        self._asked_first = False
        """Whether a question started it: then questions wait for it."""

    async def stream(
        self, expert: Expert, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Chunk]:
        """See ``ports.Engine``; also raises ``UpstreamsDownError`` while the server is not there."""
        if not self._server.begun:
            self._asked_first = True
            self._server.begin()
        if self._asked_first:
            await self._server.settled()
        if why := self._server.unusable:
            if self._server.state == "failed":
                raise NotReadyError(why)
            raise UpstreamsDownError(f"{why}.", retry_after_s=RETRY_AFTER_S)
        async with aclosing(self._remote.stream(expert, messages, params)) as chunks:
            async for chunk in chunks:
                yield chunk

    def served(self, expert: Expert) -> Served:
        return self._remote.served(expert)

    def identity(self, expert: Expert) -> str | None:
        """As that of a server elsewhere, without its address, which is another with each start."""
        options = self._options
        return self._revision and repr((options.model, tuple(options.args), self._model_of(expert), self._revision))

    async def warm_up(self, expert: Expert) -> None:
        """Wait until it is up, then load the expert's adapter. Raises ``NotReadyError``, given up on it too."""
        self._server.begin()
        if not await self._server.settled():
            raise NotReadyError(self._server.unusable or "vLLM is gone.")
        await self._remote.warm_up(expert)

    def status(self) -> dict[str, object]:
        server, remote = self._server, self._remote.status()
        about = {"state": server.state, "pid": server.pid, "starts": server.starts, "last_failure": server.failure}
        unusable = server.unusable if server.begun else None
        return {**remote, "engine": self.name, "server": about, "unusable": unusable or remote["unusable"]}

    async def close(self) -> None:
        """End the server, with all that it started."""
        await self._remote.close()
        await self._server.stop()
        self._probe.close()

    async def _answers(self) -> bool:
        """Apart from the engine's own checks, for which a server that starts would be one that failed."""
        try:
            await self._probe.models()
        except AttemptError:
            return False
        return await self._remote.answers()


def _rank(adapters: Iterable[Adapter]) -> int:
    """The least that vLLM takes and that all of them fit in."""
    needed = LEAST_RANK
    for adapter in adapters:
        path = adapter.path / ADAPTER_CONFIG
        try:
            needed = max(needed, int(json.loads(path.read_text("utf-8"))["r"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} does not say the adapter's rank: {error}") from error
    rank = next((rank for rank in RANKS if rank >= needed), None)
    if rank is None:
        raise ConfigError(f"vLLM serves adapters up to rank {RANKS[-1]}; one has {needed}.")
    return rank


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as free:
        return int(free.getsockname()[1])
