"""Prompt lookup (Saxena 2023): what the prompt says after the answer's last words is guessed to be what comes next.

A step computes the guessed tokens with the newest one and keeps those that the model would have said: the same answer
in fewer steps, where it quotes. The library does it in a pipeline of its own, whose step relies on having room for all
tokens of all answers. Where some of them have to wait it takes guesses for tokens that were checked. So requests are
let in when there is room for all that they may come to need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from expert_router.engines.attention_cache import BLOCK_TOKENS

if TYPE_CHECKING:
    from collections.abc import Mapping

LOOKUP = "prompt_lookup"
"""What the library calls it among a device's settings."""
GUESSES = "num_assistant_tokens"
NGRAM_TOKENS = 3
"""So many of the last tokens are looked for, then fewer, down to one."""


def lookup_settings(tokens: int) -> dict[str, int]:
    """A request's, in the library's words: it guesses ``tokens`` a step, always as many, and at least one."""
    return {GUESSES: tokens, "max_ngram_size": NGRAM_TOKENS}


class LookupRoom:
    """What a pipeline has left.

    ``rows`` are the tokens that a step computes at most, ``blocks`` its attention cache, ``seats`` the answers at once.
    Half of the rows are shared out among the answers as they come, so many guess less; a quarter is left to prompts.
    """

    def __init__(self, rows: int, blocks: int, seats: int) -> None:
        self._rows = rows
        self._blocks = blocks
        self._seats = seats
        self._taken: dict[int, tuple[int, int]] = {}

    def take(self, number: int, prompt_tokens: int, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """A request's settings with its share of guesses, whose room it holds until it gives it back.

        ``None`` while there is not room enough. One that finds nobody there is always let in.
        """
        share = self._rows // 2 // (len(self._taken) + 1)
        rows_left = self._rows - self._rows // 4 - sum(rows for rows, _ in self._taken.values())
        rows = max(2, min(1 + config[GUESSES], share, rows_left))
        blocks = -(-(prompt_tokens + config["max_new_tokens"] + rows) // BLOCK_TOKENS)
        blocks_left = self._blocks - sum(blocks for _, blocks in self._taken.values())
        fits = rows <= rows_left and blocks <= blocks_left and len(self._taken) < self._seats
        if self._taken and not fits:
            return None
        self._taken[number] = (rows, blocks)
        return {**config, GUESSES: rows - 1}

    def give_back(self, number: int) -> None:
        self._taken.pop(number, None)
