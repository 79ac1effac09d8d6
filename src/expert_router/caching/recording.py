"""An answer's chunks as bytes, to be given again piece by piece as they came."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, get_args

from expert_router.types import Chunk, FinishReason, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

REASONS = get_args(FinishReason)


def is_whole(chunks: Sequence[Chunk]) -> bool:
    """Whether it is an answer to its end: the last chunk says why it ended and what it took, and no other does."""
    return (
        bool(chunks)
        and chunks[-1].finish_reason is not None
        and chunks[-1].usage is not None
        and all(chunk.finish_reason is None for chunk in chunks[:-1])
    )


def written(chunks: Sequence[Chunk]) -> bytes:
    """Compact JSON: a chunk that is text alone is a string."""
    return json.dumps([_written(chunk) for chunk in chunks], separators=(",", ":")).encode()


def read(value: bytes) -> tuple[Chunk, ...] | None:
    """``None`` for anything but a whole answer as it was written."""
    try:
        chunks = tuple(map(_read, json.loads(value)))
    except (ValueError, TypeError, RecursionError):
        return None
    return chunks if is_whole(chunks) else None


def _written(chunk: Chunk) -> object:
    usage = chunk.usage and [chunk.usage.prompt_tokens, chunk.usage.completion_tokens]
    rest = [chunk.finish_reason, usage, chunk.probability]
    return chunk.text if rest == [None, None, None] else [chunk.text, *rest]


def _read(entry: object) -> Chunk:
    """Raises ``ValueError`` or ``TypeError``."""
    if isinstance(entry, str):
        return Chunk(entry)
    if not isinstance(entry, list):
        raise TypeError
    text, reason, usage, probability = entry
    if not isinstance(text, str) or reason not in {None, *REASONS}:
        raise ValueError
    if probability is not None and not isinstance(probability, float):
        raise TypeError
    if usage is not None:
        prompt_tokens, completion_tokens = usage
        if type(prompt_tokens) is not int or type(completion_tokens) is not int:
            raise TypeError
        usage = Usage(prompt_tokens, completion_tokens)
    return Chunk(text, reason, usage, probability)
