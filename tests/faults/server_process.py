"""A server as people start it, with tiny random models, and many clients of it at once."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2

from expert_router.data.labelled import LabelledQuestion
from expert_router.evaluation.http_load import Asking, Target, ask, open_client
from processes import descendants, told_of
from support import SLEEP_QUESTION, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from expert_router.evaluation.http_load import Sample

PROGRAM = [sys.executable, "-c", "from expert_router.commands import main; main()"]
ADMIN_KEY = "a-key-of-this-test"


@dataclass(frozen=True)
class ServerProcess:
    """``log`` has its standard error."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def ready(self) -> dict[str, Any]:
        answer: dict[str, Any] = httpx2.get(f"{self.url}/health/ready", timeout=10, trust_env=False).json()
        return answer

    def post(self, **body: Any) -> httpx2.Response:
        question = {"messages": [{"role": "user", "content": SLEEP_QUESTION}], "model": "sleep", "max_tokens": 4}
        path = f"{self.url}/v1/chat/completions"
        return httpx2.post(path, json={**question, **body}, timeout=60, trust_env=False)

    def pid_of(self, model: str) -> int:
        """Of the process that holds a model's weights."""
        pids: list[int] = []

        def found() -> bool:
            pids[:] = [pid for pid in descendants(self.process.pid) if f"/prepared/{model}-" in told_of(pid, "maps")]
            return len(pids) == 1

        eventually(found, within_s=20)
        return pids[0]

    def end(self, how: signal.Signals = signal.SIGTERM, within_s: float = 20) -> int:
        self.process.send_signal(how)
        return self.process.wait(within_s)


@contextmanager
def serving(
    home: Path,
    log: Path,
    *arguments: str,
    profile: str = "random",
    limit: Callable[[], None] | None = None,
    variables: Mapping[str, str] | None = None,
    **settings: str,
) -> Iterator[ServerProcess]:
    """``settings`` are variables of the environment without their prefix, ``variables`` others.

    ``limit`` runs in the server's process first of all.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EXPERT_ROUTER_")}
    own = {
        "HOME": str(home),
        "PATHS__CACHE": str(home / "cache"),
        "PATHS__CATALOGUE": str(log.with_suffix(".catalogue")),
    }
    settings = {**own, "SERVER__ADMIN_KEY": ADMIN_KEY, **settings}
    environment = {**kept, **{f"EXPERT_ROUTER_{name}": value for name, value in settings.items()}, **(variables or {})}
    with log.open("wb") as error:
        process = subprocess.Popen(
            [*PROGRAM, "--config", profile, "serve", "--port", "0", "--no-page", *arguments],
            stdout=subprocess.PIPE, stderr=error, env=environment, preexec_fn=limit,  # noqa: PLW1509 - no threads yet
        )  # fmt: skip
    try:
        assert process.stdout is not None
        said = ""
        while "for example" not in said:
            line = process.stdout.readline().decode()
            assert line, log.read_text()
            said += line
        address = re.search(r"expert-router is at (http://127\.0\.0\.1:\d+)", said)
        assert address is not None
        yield ServerProcess(process, address[1], log)
    finally:
        for pid in descendants(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        process.kill()
        process.communicate()


def file_limit(file_bytes: int) -> Callable[[], None]:
    """No file may become larger, as on a disk that becomes full."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))


async def ask_many(
    url: str, count: int, max_tokens: int, during: Callable[[list[asyncio.Task[Sample]]], Any], model: str = "sleep"
) -> list[Sample]:
    """Streams of exactly so many tokens, all at once; ``during`` is awaited once they are under way."""
    question = LabelledQuestion(SLEEP_QUESTION, frozenset({model}), "sleep")
    async with open_client(url, 60) as client:
        how = Asking(max_tokens, ignore_eos=True, no_cache=True)
        asked = [asyncio.create_task(ask(client, Target(url, model, ours=True), how, question)) for _ in range(count)]
        await during(asked)
        return await asyncio.gather(*asked)
