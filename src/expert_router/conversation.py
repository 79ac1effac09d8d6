"""Which turn a question leans on: "And how long does it last?" means nothing alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLLOW_UP_WORDS = 8
"""A turn with more words than this stands on its own."""
LEANS_BACK = re.compile(
    r"^((and|but|or|so|also|then|what about|how about|tell me more|go on|more)\b|why( not)?\W*$)"
    r"|\b(it|its|they|them|their|this|that|these|those|he|she|him|his|her)\b",
    re.IGNORECASE,
)
"""Words that make sense only after another turn."""


def leans_back(question: str) -> bool:
    return len(question.split()) <= FOLLOW_UP_WORDS and LEANS_BACK.search(question.strip()) is not None


def standalone(question: str, history: Sequence[str]) -> str:
    """The question, with the user turn before it in front when it leans on that; ``history`` is oldest first."""
    return f"{history[-1]} {question}" if history and leans_back(question) else question
