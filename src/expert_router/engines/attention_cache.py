"""How many blocks of a pipeline's attention cache fit into so many bytes: the library itself is told whole GiB only.

A block has a layer's keys and values of 32 tokens. On x86 they are bytes, with a scale and a zero point, as two
float32, for each row that was rounded together: values by token, keys by channel.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

BLOCK_TOKENS = 32
ROUNDING_BYTES = 8
HALF_BYTES = 2
KEYS_OR_VALUES = re.compile(r'variable_id="([^"]+)"[^>]*variable_shape="[?],(\d+),[?],(\d+)"')


def blocks_within(limit_bytes: int, graph: Path, *, half: bool) -> int | None:
    """Of the model in ``graph`` (an OpenVINO XML file); at least one, ``None`` where it names no keys and values.

    ``half``: they are float16, not bytes.
    """
    found = KEYS_OR_VALUES.findall(graph.read_text("utf-8"))
    shapes = {name: (int(heads), int(width)) for name, heads, width in found}
    block_bytes = sum(_mean_bytes(heads, width, half=half) for heads, width in shapes.values())
    return max(1, limit_bytes // block_bytes) if block_bytes else None


def _mean_bytes(heads: int, width: int, *, half: bool) -> int:
    """Of a layer's keys and its values; there are as many of the ones as of the others."""
    if half:
        return heads * BLOCK_TOKENS * width * HALF_BYTES
    keys, values = width * (BLOCK_TOKENS + ROUNDING_BYTES), BLOCK_TOKENS * (width + ROUNDING_BYTES)
    return heads * (keys + values) // 2
