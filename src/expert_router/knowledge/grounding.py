"""How passages are put before an expert, and what it says when they do not hold the answer.

Training writes its examples with these words and serving asks with them, so they must not differ by a space.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_router.types import Found

UNKNOWN = "I don't know: the texts I have do not say."
"""An expert's whole answer when no passage holds the answer."""
ANSWERING, REFUSING = "[", "I don't know"
"""How the one answer and the other begin."""

RULES = (
    "Answer from one of the numbered passages and begin with its number, like [1]. "
    f'If none holds the answer, say only "{UNKNOWN}"'
)

ALWAYS_READ = 2
"""Passages. The second answers more often than the first one's lead over it says."""

_CITATION = re.compile(r"\s*\[(\d{1,2})\]")


def worth_reading(found: Sequence[Found], margin: float) -> list[Found]:
    """Of what was found, best first: the best two, and what matches worse than the best one by at most ``margin``.

    What is far behind hardly ever answers, and reading is most of what an answer costs.
    """
    return [hit for place, hit in enumerate(found) if place < ALWAYS_READ or hit.score >= found[0].score - margin]


def body_read(hit: Found, place: int) -> str:
    """What an expert reads of the passage at ``place``: of the first one all, of the others the excerpt.

    Five passages so are fewer tokens than three whole ones, and hold the answer at least as often.
    """
    return hit.excerpt if place and hit.excerpt else hit.passage.text


def texts_read(found: Sequence[Found]) -> list[str]:
    """What is read, passage by passage, each under its title."""
    return [f"{hit.passage.title}\n{body_read(hit, place)}" for place, hit in enumerate(found)]


def grounded_question(question: str, found: Sequence[Found]) -> str:
    """The user's turn: the question, the passages numbered from 1, and the question again.

    A decoder reads forwards: only with the question in front does it read a passage knowing what is sought.
    """
    asked = f"Question: {question}"
    numbered = [f"[{number}] {text}" for number, text in enumerate(texts_read(found), start=1)]
    return "\n\n".join([asked, *numbered, asked] if numbered else [asked])


def cited(answer: str, found: Sequence[Found]) -> list[Found]:
    """The passages that an answer names, in the order it names them."""
    numbers = dict.fromkeys(int(number) for number in _CITATION.findall(answer))
    return [found[number - 1] for number in numbers if 1 <= number <= len(found)]


def without_citations(answer: str) -> str:
    return _CITATION.sub("", answer).lstrip()


def is_unknown(answer: str) -> bool:
    """Whether the expert says that it does not know."""
    plain = answer.strip().lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return plain.startswith(("i don't know", "i do not know"))
