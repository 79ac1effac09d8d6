"""The servers that a gateway measurement runs, each in a process of its own; none of them outlives it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from expert_router.errors import ConfigError, EngineError
from expert_router.evaluation import fake_upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

END_WITHIN_S = 10.0
BACKLOG = 2048
LITELLM_MODEL = "fixed"
HOW_TO_INSTALL = "python -m venv litellm && litellm/bin/pip install 'litellm[proxy]'"

_COUNT = """
import sys
from importlib.metadata import PackageNotFoundError, requires
from packaging.requirements import Requirement
installed, waiting = set(), [Requirement(sys.argv[1])]
while waiting:
    wanted = waiting.pop()
    known = (wanted.name.lower().replace("_", "-"), *sorted(wanted.extras))
    try:
        needed = map(Requirement, () if known in installed else requires(wanted.name) or ())
    except PackageNotFoundError:
        continue
    installed.add(known)
    extras = [{"extra": extra} for extra in ("", *wanted.extras)]
    waiting += [each for each in needed if not each.marker or any(map(each.marker.evaluate, extras))]
print(len({name for name, *_ in installed}))
"""


@contextmanager
def upstream() -> Iterator[tuple[int, Callable[[], bool]]]:
    """The port that gives the fixed answer, and whether somebody is there."""
    # The protocol is named because asyncio switches Nagle's delay off only on sockets that name it.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(BACKLOG)  # here: who comes before the process is ready waits a moment
        spawned = multiprocessing.get_context("spawn")
        process = spawned.Process(target=fake_upstream.serve, args=(listener,), daemon=True)
        process.start()
        try:
            yield listener.getsockname()[1], process.is_alive
        finally:
            process.terminate()
            process.join(END_WITHIN_S)
            process.kill()


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway's process, which leads a session of its own."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    def running(self) -> bool:
        return self.process.poll() is None

    def memory_bytes(self) -> int | None:
        """Resident, of all its processes; ``None`` where there is no /proc."""
        pages = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # one that ended meanwhile
                if int(stat.read_text().rpartition(")")[2].split()[3]) == self.process.pid:  # its session's leader
                    pages += int(stat.with_name("statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") or None

    def end(self) -> None:
        """Ask it to, then end it and all that it started."""
        self.process.terminate()
        try:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(END_WITHIN_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextmanager
def ours(upstream_port: int, config: str | None, folder: Path) -> Iterator[Gateway]:
    """``expert-router serve`` as it ships, without the page; nothing is read or kept, so that all go upstream."""
    program = [sys.executable, "-c", "from expert_router.commands import main; main()"]
    command = [*program, *(["--config", config] if config else []), "serve", "--no-page", "--lazy"]
    settings = {
        "ENGINE__NAME": "openai_http",
        "ENGINE__BASE_URL": f"http://127.0.0.1:{upstream_port}/v1",
        "KNOWLEDGE__PASSAGES": "0",
        "CACHE__STORE": "none",
        "ROUTER__ON_AMBIGUOUS": "best",
    }
    environment = {f"EXPERT_ROUTER_{name}": value for name, value in settings.items()}
    with _started("ours", command, environment, folder) as gateway:
        yield gateway


@contextmanager
def as_configured(config: str | None, settings: Mapping[str, str], folder: Path) -> Iterator[Gateway]:
    """``expert-router serve`` with a profile, and ``settings`` over it."""
    program = [sys.executable, "-c", "from expert_router.commands import main; main()"]
    command = [*program, *(["--config", config] if config else []), "serve", "--no-page"]
    environment = {f"EXPERT_ROUTER_{name}": value for name, value in settings.items()}
    with _started("server", command, environment, folder) as server:
        yield server


@contextmanager
def litellm(upstream_port: int, python: Path, folder: Path) -> Iterator[Gateway]:
    """LiteLLM's proxy: one worker, no keys to check, its log as quiet as its documentation has it for production."""
    program = [str(python), "-c", "from litellm.proxy.proxy_cli import run_server; run_server()"]
    about = {"model": f"openai/{LITELLM_MODEL}", "api_base": f"http://127.0.0.1:{upstream_port}/v1", "api_key": "none"}
    config = folder / "litellm.yaml"
    config.write_text(json.dumps({"model_list": [{"model_name": LITELLM_MODEL, "litellm_params": about}]}))
    environment = {
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    options = ["--config", str(config), "--host", "127.0.0.1", "--num_workers", "1", "--telemetry", "False"]
    with _started("litellm", [*program, *options], environment, folder) as gateway:
        yield gateway


@contextmanager
def _started(name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Iterator[Gateway]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    said = folder / f"{name}.log"
    with said.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own command, or the python that the caller named
            [*command, "--port", str(port)],
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    gateway = Gateway(name, port, process)
    try:
        yield gateway
    except EngineError as error:
        if gateway.running():
            raise
        raise EngineError(f"{error.message} It said: {said.read_text(errors='replace')[-2000:].strip()}") from error
    finally:
        gateway.end()


def installed_packages(python: Path | str, requirement: str) -> int:
    """How many packages a requirement and all that it needs are, as installed there. Raises ``ConfigError``."""
    try:
        done = subprocess.run(  # noqa: S603 - the python that the caller named
            [str(python), "-c", _COUNT, requirement], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{python} cannot say what is installed: {error}") from error
    if not (count := int(done.stdout)):
        raise ConfigError(f"{requirement} is not installed for {python}. Make a place for it: {HOW_TO_INSTALL}")
    return count
