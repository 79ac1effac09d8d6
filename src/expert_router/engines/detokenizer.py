"""Token ids to text, piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

UNDECODABLE = "\ufffd"


class Detokenizer:
    """Token ids to text, piece by piece, never splitting a character: one that is not whole yet is held back.

    Only a short window is decoded anew each time: the tokens of the last piece, which settle how the next begins. An
    unfinished character at the end is decoded to nothing or to U+FFFD, as the tokenizer has it; both are understood.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._window = 0
        self._shown = 0

    def feed(self, ids: list[int]) -> str:
        self._ids.extend(ids)
        return self._advance(self._text(len(self._ids)).rstrip(UNDECODABLE))

    def flush(self) -> str:
        return self._advance(self._text(len(self._ids)))

    def _advance(self, text: str) -> str:
        new = text[len(self._text(self._shown).rstrip(UNDECODABLE)) :]
        if new:  # else the window stays: it may hold the beginning of a character
            self._window, self._shown = self._shown, len(self._ids)
        return new

    def _text(self, end: int) -> str:
        """The window's tokens before ``end`` as text. A window may begin with the end of a character: without it."""
        text = self._decode(self._ids[self._window : end]) if end > self._window else ""
        return text.lstrip(UNDECODABLE) if self._window else text
