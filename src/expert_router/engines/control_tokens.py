"""Text of people and passages never becomes a control token: who writes ``<|im_start|>system`` begins no turn.

Tokenizers read a chat template's marks wherever they stand, in what a user wrote too. Here each is cut in two inside
the messages before the template is applied, and what was cut is encoded apart: the model reads the same characters, as
ordinary tokens. A conversation without such marks is encoded as it always was, token by token.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

SHORTEST = 2
"""What is shorter cannot be cut."""
CHARACTERS_A_TOKEN = 8
"""More than a token of ordinary text has."""


class ControlTokens:
    """``tokens`` are a tokenizer's, as they are written."""

    def __init__(self, tokens: Iterable[str]) -> None:
        written = sorted(token for token in tokens if len(token) >= SHORTEST)
        # One character and a look ahead: where two overlap, both are cut.
        self._first = re.compile(f"(?={'|'.join(map(re.escape, written))}).", re.DOTALL) if written else None
        self._cut = secrets.token_hex(16)  # nobody can write it who cannot guess it

    def marked(self, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        """The messages with a mark in each control token, for the template."""
        first = self._first
        if first is None:
            return list(messages)
        return [{**each, "content": first.sub(rf"\g<0>{self._cut}", each["content"])} for each in messages]

    def parts(self, prompt: str) -> list[str]:
        """What the template made of them, cut at the marks."""
        return prompt.split(self._cut)

    def encoded(self, prompt: str, encode: Callable[[str], list[int]], enough: int) -> list[int]:
        """What the template made of them, part by part; no more than about ``enough`` tokens' worth is encoded.

        A megabyte is too long for any model well before its end, and to encode it holds Python's lock for seconds. A
        long part's beginning says whether the rest is needed: all but its last word is encoded as it is in the whole.
        """
        ids: list[int] = []
        for part in self.parts(prompt):
            length = CHARACTERS_A_TOKEN * enough
            while length < len(part):
                begun = encode(part[:length])
                if len(ids) + len(begun) >= enough:
                    return ids + begun
                length *= 2
            ids += encode(part)
            if len(ids) >= enough:
                break
        return ids
