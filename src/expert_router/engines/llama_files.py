"""What llama.cpp loads, made once and kept in the cache: a base as one GGUF file, each adapter as another.

The base is requantised as for the other embedded engine: published kinds are read right, but more slowly. An adapter's
layout is that of llama.cpp's own converter: ``<tensor>.lora_a`` and ``.lora_b`` for each module, and alpha, which is
divided by the rank. Names hold the hashes of what a file was made of and the recipe's version. Files are written beside
their place and renamed, so that a killed build leaves nothing that looks finished.
"""

from __future__ import annotations

import json
import logging
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from filelock import FileLock

from expert_router.artifacts import sha256_of, sha256_once, write_atomically
from expert_router.engines.adapter import Heads, in_gguf_order, read_lora, refuse_missing
from expert_router.engines.gguf import read_heads, requantise
from expert_router.engines.prepared import refuse_altered
from expert_router.errors import WeightsError
from expert_router.types import DEFAULT_QUANTIZATION
from expert_router.weights.gguf_file import ARCHITECTURE, metadata_number, metadata_value, open_gguf, write_and_close

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from expert_router.types import Adapter, Quantization

logger = logging.getLogger(__name__)

RECIPE = 1
"""Raise it when the way of making either changes."""
_KV_BYTES = 2
"""Of one number in the attention cache, which is of float16."""


@dataclass(frozen=True, slots=True)
class BaseFile:
    """A base model on disk, and what is needed to know of it without reading it again.

    ``shapes`` are those of its matrices, (outputs, inputs), by name; ``kv_bytes`` is what a token of context takes in
    the attention cache.
    """

    path: Path
    sha256: str
    size_bytes: int
    heads: Heads
    context_tokens: int
    kv_bytes: int
    shapes: dict[str, tuple[int, int]]


def base_file(
    name: str,
    weights: Path,
    sha256: str,
    cache: Path,
    *,
    quantization: Quantization = DEFAULT_QUANTIZATION,
    progress: bool,
) -> BaseFile:
    """The base for llama.cpp, made of ``weights`` if it is not there. Raises ``WeightsError``, also on a full disk."""
    path = cache / "llamacpp" / f"{name}-{sha256[:12]}-{quantization}-r{RECIPE}.gguf"
    if (ready := _read(path, sha256)) is not None:
        return ready
    with _building(path) as work:
        if (ready := _read(path, sha256)) is not None:
            return ready
        refuse_altered(name, weights, sha256)
        requantise(weights, work, quantization=quantization, progress=progress)
        facts = {**_facts(work), "size_bytes": work.stat().st_size, "file_sha256": sha256_of(work)}
        work.replace(path)
        write_atomically(_facts_path(path), json.dumps(facts).encode())
    built = _read(path, sha256)
    if built is None:
        raise WeightsError(f"Preparing {name} left no usable model in {path}.")
    return built


def lora_file(adapter: Adapter, base: BaseFile, cache: Path) -> Path:
    """The adapter for llama.cpp on this base, written if it is not there.

    Raises ``WeightsError`` for anything but a plain LoRA that fits the base with every module, and on a full disk.
    """
    path = cache / "llamacpp" / "adapters" / f"{base.sha256[:12]}-{adapter.sha256[:12]}-r{RECIPE}.gguf"
    if not path.is_file():
        with _building(path) as work:
            write_lora_file(adapter.path, base, work)
            work.replace(path)
    return path


def write_lora_file(adapter: Path, base: BaseFile, target: Path) -> int:
    """Write it; returns how many modules it has: all of the adapter's. Raises ``WeightsError`` or ``OSError``."""
    lora = read_lora(adapter)
    refuse_missing(lora.modules.keys() - base.shapes.keys(), lora)
    writer = gguf.GGUFWriter(target, base.heads.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", lora.scale * lora.rank)
    for name, module in lora.modules.items():
        shape = (module.b_OR.shape[0], module.a_RI.shape[1])
        if shape != base.shapes[name]:
            raise WeightsError(f"The adapter's {name} has shape {shape}, the base model's {base.shapes[name]}.")
        writer.add_tensor(f"{name}.lora_a", _halves(name, module.a_RI))
        writer.add_tensor(f"{name}.lora_b", _halves(name, in_gguf_order(name, module.b_OR, base.heads)))
    write_and_close(writer)
    return len(lora.modules)


def _halves(name: str, values: NDArray[np.float32]) -> NDArray[np.float16]:
    if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise WeightsError(f"The adapter's {name} has numbers that are too large for float16.")
    return values.astype(np.float16)


@contextmanager
def _building(path: Path) -> Iterator[Path]:
    """A place to write the file, beside its own, while no other process does. Raises ``WeightsError``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(f"{path}.lock"),
            tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder,
        ):
            yield Path(folder) / path.name
    except OSError as error:
        raise WeightsError(f"Writing {path} failed: {error}. Free some space there and retry.") from error


def _facts(path: Path) -> dict[str, Any]:
    reader = open_gguf(path)
    architecture = str(metadata_value(reader, ARCHITECTURE, path))
    heads = read_heads(reader, path)

    def number(key: str) -> int:
        return metadata_number(reader, f"{architecture}.{key}", path)

    own_width = reader.get_field(f"{architecture}.attention.key_length") is not None
    width = number("attention.key_length") if own_width else number("embedding_length") // heads.query
    return {
        "heads": asdict(heads),
        "context_tokens": number("context_length"),
        "kv_bytes": 2 * _KV_BYTES * number("block_count") * heads.key * width,
        "shapes": {t.name: [int(t.shape[1]), int(t.shape[0])] for t in reader.tensors if len(t.shape) > 1},
    }


def _facts_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _read(path: Path, sha256: str) -> BaseFile | None:
    """The base when it is whole: what is known of it was written last, and it has its size and its hash."""
    try:
        facts: dict[str, Any] = json.loads(_facts_path(path).read_text("utf-8"))
        if path.stat().st_size != facts["size_bytes"]:
            return None
        made = facts.pop("file_sha256", None)  # a version before this one wrote none
        if made is not None and sha256_once(path) != made:
            logger.warning("a prepared model is damaged and built anew", extra={"file": str(path)})
            return None
        heads = Heads(**facts.pop("heads"))
        shapes = {name: (shape[0], shape[1]) for name, shape in facts.pop("shapes").items()}
        return BaseFile(path, sha256, heads=heads, shapes=shapes, **facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return None
