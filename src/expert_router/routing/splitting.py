"""Which words of a question are for which expert, where it needs several.

The question is cut where people join requests (sentence ends, semicolons, commas, "and", "also", …), at the place whose
two sides the router tells apart best, and each side that still needs several experts is cut again. Where no cut tells
them apart ("how do cars notice that their driver is drowsy?") every expert gets the whole question.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Score = Callable[[str], Mapping[str, float]]
    Pieces = list[tuple[str, str]]

APART = 0.25
"""How much more probable each expert must be on its own side of a cut than on the other one."""
LONGEST = 4000
"""Characters. What is longer is a text with a question, and the patterns below take long for it."""
LIKELY = 0.5
MOST_CUTS = 24
"""So many places are tried, the strongest joints first: each costs two looks at the router."""
STRENGTH = 0.15
"""What a step between two kinds of joints is worth beside that: people seldom use the strong ones within a request."""
_JOINTS = tuple(
    re.compile(joint, re.IGNORECASE)
    for joint in (
        r",\s+|\s+(?=or\b)",
        r"(?<=[.…])\s+|,?\s+(?=(?:and|while|but)\b)",
        r"(?<=[?!])\s+",
        r"\s*[;\n/&]\s*|\s+[-\u2013\u2014]\s+|,?\s+(?=(?:and\s+also|also|plus|then|btw)\b)",
    )
)
"""From weak to strong."""
_WORDS = r"(?:and|also|plus|then|while|but|or|btw)"
_AT_AN_END = re.compile(rf"^(?:{_WORDS}\b[\s,:]*)+|(?:[\s,:]+{_WORDS})+$", re.IGNORECASE)
_STRONG = re.compile("|".join(joint.pattern for joint in _JOINTS[2:]), re.IGNORECASE)
_SIGNS = " \n,;:/&-\u2013\u2014"
_LETTER = re.compile(r"\w")


@dataclass(frozen=True, slots=True)
class _Cut:
    """Two texts, who is on which, and how well they are told apart."""

    left: str
    right: str
    on_left: list[str]
    on_right: list[str]
    merit: float


def split_question(question: str, experts: Sequence[str], score: Score) -> dict[str, str]:
    """What each of ``experts`` is asked, in the order of their parts; ``score`` gives each expert's probability.

    An expert that several pieces are for is asked them together. Experts that are not told apart all get the question,
    and so they do where it is longer than ``LONGEST``.
    """
    for cut in (_pieces, _in_turns) if len(question) <= LONGEST else ():
        pieces = cut(question, experts, score)
        parts = {expert: "\n".join(text for text, owner in pieces if owner == expert) for _, expert in pieces}
        if set(parts) == set(experts):
            return parts
    return dict.fromkeys(experts, question)


def _pieces(text: str, experts: Sequence[str], score: Score) -> Pieces:
    """Texts in their order, each with its expert; nothing where the experts cannot be told apart."""
    if len(experts) == 1:
        return [(text, experts[0])]
    for cut in sorted(_cuts(text, experts, score), key=lambda cut: -cut.merit):
        halves = [_pieces(cut.left, cut.on_left, score), _pieces(cut.right, cut.on_right, score)]
        if all(halves):
            return halves[0] + halves[1]
    return []


def _in_turns(text: str, experts: Sequence[str], score: Score) -> Pieces:
    """Cut at every strong joint, for experts that are asked in turns; what is for nobody goes with what it follows."""
    pieces: Pieces = []
    for piece in _STRONG.split(text, maxsplit=MOST_CUTS):
        if _LETTER.search(piece):
            scores = score(_bare(piece))
            best = max(experts, key=lambda expert: scores[expert])
            pieces.append((_bare(piece), pieces[-1][1] if pieces and scores[best] < LIKELY else best))
    return pieces


def _cuts(text: str, experts: Sequence[str], score: Score) -> Iterator[_Cut]:
    """Those with every expert on one side alone."""
    joints = [
        (n, match) for n in reversed(range(len(_JOINTS))) for match in islice(_JOINTS[n].finditer(text), MOST_CUTS)
    ]
    for strength, match in joints[:MOST_CUTS]:
        left, right = _bare(text[: match.start()]), _bare(text[match.end() :])
        if not (_LETTER.search(left) and _LETTER.search(right)):
            continue
        left_scores, right_scores = score(left), score(right)
        margins = {expert: left_scores[expert] - right_scores[expert] for expert in experts}
        on_left, on_right = ([e for e in experts if sign * margins[e] >= APART] for sign in (1, -1))
        if on_left and on_right and len(on_left) + len(on_right) == len(experts):
            merit = sum(map(abs, margins.values())) + STRENGTH * strength
            yield _Cut(left, right, on_left, on_right, merit)


def _bare(text: str) -> str:
    """Without the words and signs that join it to another."""
    return _AT_AN_END.sub("", text.strip(_SIGNS)).strip(_SIGNS)
