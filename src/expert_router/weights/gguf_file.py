"""GGUF model files, read and written with numpy alone: their metadata, and a model without some of its layers.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import gguf

from expert_router.errors import WeightsError
from expert_router.weights.gguf_head import check_head

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

ARCHITECTURE = "general.architecture"
MOST = 2**31 - 1
_LAYER = re.compile(r"^blk\.(\d+)\.")


def open_gguf(path: Path) -> Any:
    """Raises ``WeightsError`` when it is no whole GGUF file."""
    try:
        check_head(path)
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise WeightsError(f"{path} is not a readable GGUF file ({error}). Delete it and fetch it again.") from error


def metadata_value(reader: Any, key: str, path: Path) -> Any:
    """Raises ``WeightsError`` when the file does not say."""
    field = reader.get_field(key)
    if field is None:
        raise WeightsError(f"{path} is not a usable model: its metadata lacks {key!r}.")
    return field.contents()


def metadata_number(reader: Any, key: str, path: Path) -> int:
    """A count, at least 1. Raises ``WeightsError`` when the file does not say, or says something else."""
    value = metadata_value(reader, key, path)
    if not isinstance(value, int) or not 1 <= value <= MOST:
        raise WeightsError(
            f"{path} is not a usable model: {key!r} must be a number from 1 to {MOST}, not {value!r:.60}."
        )
    return value


def copy_metadata(
    reader: Any, writer: Any, *, without: Collection[str] = (), changed: Mapping[str, Any] | None = None
) -> None:
    """All keys with their types, in their order; the architecture is what the writer was made with."""
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in {ARCHITECTURE, *without}:
            continue
        kind = field.types[0]
        item = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, (changed or {}).get(field.name, field.contents()), kind, sub_type=item)


def write_and_close(writer: Any) -> None:
    """Raises ``OSError``, as on a full disk."""
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def count_layers(path: Path) -> int:
    """How many decoder layers the model has. Raises ``WeightsError``."""
    return _count(open_gguf(path), path)


def leave_out_layers(source: Path, target: Path, layers: Collection[int]) -> None:
    """Write the model without some of its decoder layers, numbered from 0; those that stay close ranks, bit by bit.

    The same source and layers give the same bytes. Raises ``WeightsError`` when the source is no model that has these
    layers and others, and ``OSError`` when the target cannot be written.
    """
    reader = open_gguf(source)
    count = _count(reader, source)
    if not layers or not set(layers) < set(range(count)):
        raise WeightsError(
            f"{source} has the layers 0 to {count - 1}; what is left out must be some of them, not all: "
            f"{', '.join(map(str, sorted(layers))) or 'none'}."
        )
    architecture = str(metadata_value(reader, ARCHITECTURE, source))
    numbers = {old: new for new, old in enumerate(layer for layer in range(count) if layer not in layers)}
    writer = gguf.GGUFWriter(target, architecture)
    copy_metadata(reader, writer, changed={f"{architecture}.block_count": len(numbers)})
    for tensor in reader.tensors:
        match = _LAYER.match(tensor.name)
        if match is None:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        elif (number := numbers.get(int(match[1]))) is not None:
            name = f"blk.{number}.{tensor.name[match.end() :]}"
            writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
    write_and_close(writer)


def _count(reader: Any, path: Path) -> int:
    architecture = metadata_value(reader, ARCHITECTURE, path)
    return metadata_number(reader, f"{architecture}.block_count", path)
