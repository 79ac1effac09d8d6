"""How passages are put before an expert, and what it says when they do not hold the answer.

Training writes its examples with these words and serving asks with them, so they must not differ by a space.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_router.types import Found, Passage

UNKNOWN = "I don't know: the texts I have do not say."
"""An expert's whole answer when no passage holds the answer."""

RULES = (
    "Answer from the numbered passages alone and name the passage used, like [1]. "
    f'If none of them holds the answer, say only "{UNKNOWN}"'
)

_CITATION = re.compile(r"\s*\[(\d{1,2})\]")


def grounded_question(question: str, passages: Sequence[Passage]) -> str:
    """The user's turn: the passages, numbered from 1, then the question."""
    numbered = (f"[{number}] {p.title}\n{p.text}" for number, p in enumerate(passages, start=1))
    return "\n\n".join([*numbered, f"Question: {question}"])


def cited(answer: str, found: Sequence[Found]) -> list[Found]:
    """The passages that an answer names, in the order it names them."""
    numbers = dict.fromkeys(int(number) for number in _CITATION.findall(answer))
    return [found[number - 1] for number in numbers if 1 <= number <= len(found)]


def without_citations(answer: str) -> str:
    return _CITATION.sub("", answer)


def is_unknown(answer: str) -> bool:
    """Whether the expert says that it does not know."""
    plain = answer.strip().lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return plain.startswith(("i don't know", "i do not know"))
