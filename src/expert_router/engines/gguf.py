"""Requantise a GGUF file to Q8_0, with numpy alone.

Why: the embedded engine reads Q8_0 right, Q4_1 wrongly (degraded answers) and Q4_K not at all; the published small
files are Q4. Eight bits hold what four left: the answers are those of the source file (docs/log.md).
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from tqdm import tqdm

from expert_router.engines.adapter import Heads, LoraWeights, Merge
from expert_router.errors import WeightsError

if TYPE_CHECKING:
    from pathlib import Path

_WRITTEN_BY_THE_WRITER = {"general.architecture", "general.file_type", "general.quantization_version"}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the file says of the model; ``context_tokens`` is the longest prompt plus answer it was trained for."""

    architecture: str
    context_tokens: int


def read_facts(path: Path) -> ModelFacts:
    """Raises ``WeightsError`` when the file is not a readable GGUF model."""
    reader = _open(path)
    architecture = _value(reader, "general.architecture", path)
    return ModelFacts(str(architecture), int(_value(reader, f"{architecture}.context_length", path)))


def requantise(source: Path, target: Path, *, lora: LoraWeights | None = None, progress: bool) -> int:
    """Write ``target``: every matrix as Q8_0, every vector (norms, biases) as float32, all metadata kept.

    ``lora`` is added to the weights on the way; the number of its modules is returned. Raises ``WeightsError`` when the
    file cannot be read, holds a kind of tensor that gguf cannot convert, or does not fit the adapter.
    """
    reader = _open(source)
    merge = Merge(lora or LoraWeights(1.0, {}), _heads(reader, source))
    writer = gguf.GGUFWriter(target, str(_value(reader, "general.architecture", source)))
    _copy_metadata(reader, writer)
    for tensor in tqdm(
        reader.tensors, desc=f"requantise {source.stem}", unit="tensor", disable=None if progress else True
    ):
        try:
            _add_requantised(writer, tensor, merge)
        except (gguf.quants.QuantError, NotImplementedError) as error:
            raise WeightsError(f"{source}: the tensor {tensor.name} cannot be converted to Q8_0 ({error}).") from error
    merged = merge.finish()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return merged


def _open(path: Path) -> Any:
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise WeightsError(f"{path} is not a readable GGUF file ({error}). Delete it and fetch it again.") from error


def _value(reader: Any, key: str, path: Path) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise WeightsError(f"{path} is not a usable model: its metadata lacks {key!r}.")
    return field.contents()


def _heads(reader: Any, path: Path) -> Heads:
    architecture = str(_value(reader, "general.architecture", path))
    query = int(_value(reader, f"{architecture}.attention.head_count", path))
    shared = reader.get_field(f"{architecture}.attention.head_count_kv")
    return Heads(architecture, query, int(shared.contents()) if shared else query)


def _add_requantised(writer: Any, tensor: Any, merge: Merge) -> None:
    values = merge(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    if len(tensor.shape) > 1:
        packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(tensor.name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    else:
        writer.add_tensor(tensor.name, values.astype(np.float32))


def _copy_metadata(reader: Any, writer: Any) -> None:
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in _WRITTEN_BY_THE_WRITER:
            continue
        kind = field.types[0]
        item = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=item)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
