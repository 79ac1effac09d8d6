"""Requantise a GGUF file for the embedded engine, with numpy alone.

Why: the engine reads Q8_0 and Q4_0 right, Q4_1 wrongly (degraded answers) and Q4_K not at all; the published small
files are mixtures of kinds. Eight bits hold what four left: the answers are those of the source file (docs/log.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from tqdm import tqdm

from expert_router.engines.adapter import Heads, LoraWeights, Merge
from expert_router.errors import WeightsError
from expert_router.types import DEFAULT_QUANTIZATION
from expert_router.weights.gguf_file import (
    ARCHITECTURE,
    copy_metadata,
    metadata_number,
    metadata_value,
    open_gguf,
    write_and_close,
)

if TYPE_CHECKING:
    from pathlib import Path

    from expert_router.types import Quantization

_OF_THE_FORMAT = ("general.file_type", "general.quantization_version")
_Q8_0, _Q4_0 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0
_FILE_TYPES = {"q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0}
_LAYER = "blk."


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the file says of the model; ``context_tokens`` is the longest prompt plus answer it was trained for."""

    architecture: str
    context_tokens: int


def read_facts(path: Path) -> ModelFacts:
    """Raises ``WeightsError`` when the file is not a readable GGUF model."""
    reader = open_gguf(path)
    architecture = metadata_value(reader, ARCHITECTURE, path)
    return ModelFacts(str(architecture), metadata_number(reader, f"{architecture}.context_length", path))


def requantise(
    source: Path,
    target: Path,
    *,
    lora: LoraWeights | None = None,
    quantization: Quantization = DEFAULT_QUANTIZATION,
    progress: bool,
) -> int:
    """Write ``target``: every matrix quantised, every vector (norms, biases) as float32, all metadata kept.

    As q4_0 the layers have four bits a weight; embeddings and output stay at eight, as llama.cpp keeps them finer.
    ``lora`` is added to the weights on the way; the number of its modules is returned. Raises ``WeightsError`` when the
    file cannot be read, holds a kind of tensor that gguf cannot convert, or does not fit the adapter.
    """
    reader = open_gguf(source)
    merge = Merge(lora or LoraWeights(1.0, {}), read_heads(reader, source))
    writer = gguf.GGUFWriter(target, str(metadata_value(reader, ARCHITECTURE, source)))
    copy_metadata(reader, writer, without=_OF_THE_FORMAT)
    writer.add_file_type(_FILE_TYPES[quantization])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for tensor in tqdm(
        reader.tensors, desc=f"requantise {source.stem}", unit="tensor", disable=None if progress else True
    ):
        kind = _Q4_0 if quantization == "q4_0" and tensor.name.startswith(_LAYER) else _Q8_0
        try:
            _add_requantised(writer, tensor, merge, kind)
        except (gguf.quants.QuantError, NotImplementedError) as error:
            raise WeightsError(
                f"{source}: the tensor {tensor.name} cannot be converted to {kind.name} ({error})."
            ) from error
    merged = merge.finish()
    write_and_close(writer)
    return merged


def read_heads(reader: Any, path: Path) -> Heads:
    """Of an open GGUF file. Raises ``WeightsError`` when its metadata lack them."""
    architecture = str(metadata_value(reader, ARCHITECTURE, path))
    query = metadata_number(reader, f"{architecture}.attention.head_count", path)
    shared = f"{architecture}.attention.head_count_kv"
    return Heads(architecture, query, metadata_number(reader, shared, path) if reader.get_field(shared) else query)


def _add_requantised(writer: Any, tensor: Any, merge: Merge, kind: gguf.GGMLQuantizationType) -> None:
    values = merge(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    if len(tensor.shape) > 1:
        writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(tensor.name, values.astype(np.float32))
