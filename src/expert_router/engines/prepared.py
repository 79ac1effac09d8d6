"""Base weights, made ready for the embedded engine once and kept in the cache.

GGUF of any quantisation → Q8_0 or Q4_0 GGUF → OpenVINO IR with its tokenizer. The folder's name holds the hashes of
the weights and of an adapter, the quantisation and the recipe's version, so a changed file or recipe is never mixed up
with an older one. It is built beside its final place and renamed, so a killed build leaves nothing that looks finished.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from expert_router.artifacts import MANIFEST, sha256_of, sha256_once, write_atomically
from expert_router.engines.adapter import read_lora
from expert_router.engines.child import child
from expert_router.engines.gguf import ModelFacts, read_facts, requantise
from expert_router.engines.stacking import stack_adapters
from expert_router.errors import WeightsError
from expert_router.types import DEFAULT_QUANTIZATION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from expert_router.types import Adapter

logger = logging.getLogger(__name__)

CHILD = "from expert_router.engines.prepared import save_ir; save_ir()"
GRAPH = "openvino_model.xml"
RECIPE = 1
"""Raise it when the way of preparing changes."""


@dataclass(frozen=True, slots=True)
class PreparedModel:
    folder: Path
    facts: ModelFacts
    size_bytes: int
    modules: int = 0
    """How many modules of adapters are in the weights: all that they have, or it would not have been built."""
    vocabulary: int = 0
    """Of a stack: by so much the token ids of one slot are apart from the next one's (``engines.stacking``)."""


def prepare_model(
    name: str, weights: Path, sha256: str, cache: Path, *, adapter: Adapter | None = None, progress: bool
) -> PreparedModel:
    """The prepared folder of a model, built if it is not there. Raises ``WeightsError``, also on a full disk.

    ``adapter`` is merged into the weights; its own hash is part of the folder's name. Safe across processes: one
    builds, the others wait for it.
    """
    merged = f"-{adapter.sha256[:12]}" if adapter else ""
    if adapter and adapter.quantization != DEFAULT_QUANTIZATION:
        merged += f"-{adapter.quantization}"
    folder = cache / "prepared" / f"{name}-{sha256[:12]}{merged}-r{RECIPE}"

    def build(work: Path) -> dict[str, Any]:
        refuse_altered(name, weights, sha256)
        return _build(work, weights, adapter, progress)

    return _ready_or_built(folder, f"{name} from {weights}", build)


def prepare_stack(base: PreparedModel, adapters: Sequence[Adapter], *, progress: bool) -> PreparedModel:
    """The base with a slot for each adapter, in their order from 1 on; built if it is not there.

    Raises ``WeightsError``, also when one of the adapters does not fit.
    """
    digest = hashlib.sha256("".join(adapter.sha256 for adapter in adapters).encode()).hexdigest()[:12]
    folder = base.folder.with_name(f"{base.folder.name}-stack-{digest}")
    return _ready_or_built(
        folder, f"{len(adapters)} adapters on {base.folder.name}", lambda work: _stack(work, base, adapters, progress)
    )


def refuse_altered(name: str, weights: Path, sha256: str) -> None:
    """Raises ``WeightsError`` for a file that is not the one that was fetched; its date alone would not tell."""
    if sha256_of(weights) != sha256:
        raise WeightsError(
            f"{weights} was altered: its sha256 is not {sha256[:12]}…, which is pinned. Let it be noticed with "
            f"expert-router weights verify {name}, then bring it again with expert-router weights fetch {name}."
        )


def _ready_or_built(folder: Path, what: str, build: Callable[[Path], dict[str, Any]]) -> PreparedModel:
    """``build`` fills a folder and returns what its manifest says beside the files."""
    if (ready := _read(folder)) is not None:
        return ready
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if (ready := _read(folder)) is not None:
                return ready
            _build_beside(folder, build)
    except (OSError, RuntimeError, ValueError) as error:  # C++ raises RuntimeError, also when the disk is full
        raise WeightsError(
            f"Preparing {what} in {folder.parent} failed: {error}. Free some space there and retry."
        ) from error
    built = _read(folder)
    if built is None:
        raise WeightsError(f"Preparing {what} left no usable model in {folder}.")
    return built


def _build_beside(folder: Path, build: Callable[[Path], dict[str, Any]]) -> None:
    for stale in folder.parent.glob(f".{folder.name}.*"):  # a killed build's; the lock says none is running
        shutil.rmtree(stale, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        work = Path(temporary)
        about = build(work)
        files = {file.name: file.stat().st_size for file in sorted(work.iterdir())}
        hashes = {name: sha256_of(work / name) for name in files}
        manifest = {"recipe": RECIPE, **about, "files": files, "sha256": hashes}
        write_atomically(work / MANIFEST, json.dumps(manifest, indent=2).encode())
        finished = work.rename(folder)
        finished.chmod(0o755)
        work.mkdir()  # what TemporaryDirectory expects to remove


def _build(work: Path, weights: Path, adapter: Adapter | None, progress: bool) -> dict[str, Any]:
    facts = read_facts(weights)
    requantised = work / "model.gguf"
    lora = read_lora(adapter.path) if adapter else None
    quantization = adapter.quantization if adapter else DEFAULT_QUANTIZATION
    modules = requantise(weights, requantised, lora=lora, quantization=quantization, progress=progress)
    _save_ir(requantised)
    requantised.unlink()
    return {"weights": weights.name, "facts": asdict(facts), "modules": modules}


def _stack(work: Path, base: PreparedModel, adapters: Sequence[Adapter], progress: bool) -> dict[str, Any]:
    for file in base.folder.glob("openvino_*tokenizer.*"):
        shutil.copyfile(file, work / file.name)
    loras = [read_lora(adapter.path) for adapter in adapters]
    stacked = stack_adapters(base.folder / GRAPH, work / GRAPH, loras, progress=progress)
    return {"facts": asdict(base.facts), **asdict(stacked)}


def _save_ir(requantised: Path) -> None:
    """Let the library read the GGUF file once and save the graph and the tokenizer beside it.

    In a process of its own, which gives its memory back: a thread that had done this crashed when it ended, and the
    server with it. Raises ``RuntimeError`` with what the library said.
    """
    command, environment = child(CHILD, str(requantised))
    done = subprocess.run(  # noqa: S603 - our own
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        text=True,
        errors="replace",
        env=environment,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise RuntimeError(said[-1] if said else f"its process ended with status {done.returncode}")


def save_ir() -> None:
    """What runs there; the file is the first argument."""
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1
    save = {"enable_save_ov_model": True}
    pipeline = genai.ContinuousBatchingPipeline(sys.argv[1], scheduler, "CPU", save, save)
    os._exit(0 if pipeline else 1)


def _read(folder: Path) -> PreparedModel | None:
    """The model when the folder is whole: its manifest is there and every file has its size and its hash."""
    try:
        about: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
        files: dict[str, int] = about["files"]
        hashes: dict[str, str] = about.get("sha256", {})  # a version before this one wrote none
        if any((folder / name).stat().st_size != size for name, size in files.items()):
            return None
        if altered := [name for name, sha256 in hashes.items() if sha256_once(folder / name) != sha256]:
            logger.warning(
                "a prepared model is damaged and built anew", extra={"folder": str(folder), "files": altered}
            )
            return None
        facts, counts = ModelFacts(**about["facts"]), (about.get("modules", 0), about.get("vocabulary", 0))
        return PreparedModel(folder, facts, sum(files.values()), *counts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
