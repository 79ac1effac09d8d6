"""The head of a GGUF file, walked through before the library reads it: its counts and lengths must be true.

The library believes them: a list that is said to have 2^40 entries takes all memory, and one of a few million takes
minutes.
"""

from __future__ import annotations

import mmap
import struct
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_ENTRIES = 2_000_000
"""Of all lists together. A vocabulary of 262,144 tokens with its merges, scores and kinds has half as many."""
MOST_DIMENSIONS = 4
_INT32, _TEXT, _LIST = 5, 8, 9
_OF_32_BITS = {4, _INT32}
_NO_TEXT = {2, 3, 4}
"""Kinds of tokens: unknown, control, defined by somebody."""
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Of a value by its type (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""


def check_head(path: Path) -> None:
    """Raises ``ValueError`` when something is said to be longer than the file, and ``OSError``."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _Walk(content).through()


def control_tokens(path: Path) -> list[str]:
    """A model's tokens that are no text, as they are written: ``<|im_start|>`` and the like; none where it has none.

    Raises ``ValueError`` and ``OSError`` as ``check_head`` does.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        walk = _Walk(content)
        walk.through()
        tokens, kinds = walk.texts(b"tokenizer.ggml.tokens"), walk.numbers(b"tokenizer.ggml.token_type")
    # llama.cpp knows some by how they are written, whatever the file says of them.
    return [
        token
        for token, kind in zip_longest(tokens, kinds[: len(tokens)])
        if kind in _NO_TEXT or (token.startswith("<|") and token.endswith("|>"))
    ]


class _Walk:
    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._size = len(content)
        self._at = 0
        self._entries = 0
        self._lists: dict[bytes, tuple[int, int, int]] = {}
        """By key: the entries' type, how many there are, and where."""

    def texts(self, key: bytes) -> list[str]:
        kind, count, self._at = self._lists.get(key, (_TEXT, 0, 0))
        return [self._text().decode("utf-8", "replace") for _ in range(count)] if kind == _TEXT else []

    def numbers(self, key: bytes) -> list[int]:
        """Of 32 bits."""
        kind, count, start = self._lists.get(key, (_INT32, 0, 0))
        return list(struct.unpack_from(f"<{count}i", self._content, start)) if kind in _OF_32_BITS else []

    def through(self) -> None:
        if self._content[: len(MAGIC)] != MAGIC:
            raise ValueError("it does not begin as one")
        self._skip(len(MAGIC))
        version = self._number("<I")
        if version not in VERSIONS:
            raise ValueError(f"its format is {version}, and {' and '.join(map(str, VERSIONS))} are known")
        tensors, keys = self._number("<Q"), self._number("<Q")
        for _ in range(keys):
            key = self._text()
            self._value(key, self._number("<I"))
        for _ in range(tensors):
            self._skip(self._number("<Q"))
            dimensions = self._number("<I")
            if dimensions > MOST_DIMENSIONS:
                raise ValueError(f"a tensor has {dimensions} dimensions")
            self._skip(8 * dimensions + 4 + 8)  # sizes, kind, place

    def _value(self, key: bytes, kind: int) -> None:
        if kind == _TEXT:
            self._skip(self._number("<Q"))
        elif kind == _LIST:
            of, count = self._number("<I"), self._number("<Q")
            self._lists[key] = of, count, self._at
            self._list(of, count)
        else:
            self._skip(self._width(kind))

    def _list(self, kind: int, count: int) -> None:
        self._entries += count
        if self._entries > MOST_ENTRIES:
            raise ValueError(f"its lists have more than {MOST_ENTRIES} entries")
        if kind == _TEXT:
            for _ in range(count):
                self._skip(self._number("<Q"))
        else:
            self._skip(count * self._width(kind))

    def _width(self, kind: int) -> int:
        if kind not in _BYTES:
            raise ValueError(f"a value is of the kind {kind}")
        return _BYTES[kind]

    def _text(self) -> bytes:
        length = self._number("<Q")
        start = self._at
        self._skip(length)
        return self._content[start : self._at]

    def _number(self, code: str) -> int:
        start = self._at
        self._skip(struct.calcsize(code))
        return int(struct.unpack_from(code, self._content, start)[0])

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > self._size:
            raise ValueError(f"it ends after {self._size} bytes, in the middle of what it says to have")
