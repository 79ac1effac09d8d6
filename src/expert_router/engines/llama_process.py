"""The process that one of llama.cpp's servers runs in: it can be ended when it hangs, and takes nobody along.

It is asked over its HTTP door alone, on the loopback address, on a port that the system chooses, with a key that nobody
else knows. When its connection ends, also because the server was killed, so does the process.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from expert_router.engines.child import OUT_OF_MEMORY, begin

CHILD = "from expert_router.engines.llama_process import main; main()"
BATCH_TOKENS = 512
"""So many tokens of prompts are read at once; that a request was left is noticed in between."""


@dataclass(frozen=True, slots=True)
class LlamaJob:
    """What to load and how: files by their paths, ``loras`` in the order in which requests name them."""

    base: str
    loras: tuple[str, ...]
    key: str
    slots: int
    cached_tokens: int
    threads: int
    lone_threads: int


def load_library() -> Any:
    """The module ``xllamacpp``. Raises ``ImportError`` where it or what it needs is missing."""
    # Read when the library is loaded: threads that wait for each other by spinning stand still beside a busy neighbour.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return import_module("xllamacpp")


def _run(job: LlamaJob) -> Any:
    """A running ``xllamacpp.Server``. Raises ``RuntimeError``."""
    xllamacpp = load_library()
    params = xllamacpp.CommonParams()
    params.model.path = job.base
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(file, 0.0) for file in job.loras]
    params.n_parallel = job.slots
    params.n_ctx = job.cached_tokens
    params.kv_unified = True
    params.cache_ram_mib = 0  # kept prompts are found by their tokens alone, whatever adapter had read them
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    params.cpuparams.n_threads = job.lone_threads
    params.cpuparams_batch.n_threads = job.threads
    params.api_keys = [job.key]
    params.ui = False
    params.endpoint_slots = False
    params.warmup = False
    params.verbosity = 0
    return xllamacpp.Server(params)


def main() -> None:
    """First comes the job; the answer is the server's address in a list of one, or why it cannot be."""
    connection = begin()
    status = 0
    with suppress(EOFError, OSError):
        try:
            server = _run(connection.recv())
        except RuntimeError as error:
            connection.send(str(error))
        except MemoryError:
            status = OUT_OF_MEMORY
        else:
            connection.send([server.listening_address])
            connection.recv()  # nothing comes: it waits for the end
    os._exit(status)  # nothing is left to save, and the library takes its time
