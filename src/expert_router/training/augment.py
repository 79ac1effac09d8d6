"""More ways to ask the same: rewordings as people type, and two questions joined into one."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from expert_router.data.labelled import LabelledQuestion

if TYPE_CHECKING:
    from collections.abc import Sequence

JOINTS = (
    " and ",
    "; ",
    " ",
    " Also, ",
    " btw ",
    ", and also ",
    "? and ",
    " plus ",
    ". ",
    " / ",
    ", ",
    " & ",
    " then ",
    "? Also ",
    " - ",
    "\n",
)
PREAMBLES = ("Hi, ", "please tell me: ", "quick question: ", "Can you help? ", "I was wondering, ", "hey ")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHARE_OF_BOTH = 0.75


def joined_pairs(questions: Sequence[LabelledQuestion], count: int, seed: int) -> list[LabelledQuestion]:
    """Two questions in one: three quarters need two experts, the rest join two questions of the same field."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    single = [question for question in questions if len(question.experts) == 1]
    fields = sorted({expert for question in single for expert in question.experts})
    by_field = {field: [question for question in single if field in question.experts] for field in fields}
    if len(fields) < 2:  # noqa: PLR2004 - a pair
        return []
    pairs = []
    for _ in range(count):
        first, second = rng.sample(fields, 2)
        if rng.random() > SHARE_OF_BOTH:
            second = first
        one, other = rng.choice(by_field[first]), rng.choice(by_field[second])
        pairs.append(LabelledQuestion(joined(one.query, other.query, rng), one.experts | other.experts, "joined"))
    return pairs


def reworded(query: str, rng: random.Random) -> str:
    """The question in lower case, without its mark, with a typing error or a preamble: each now and then."""
    if rng.random() < 0.25:  # noqa: PLR2004 - a quarter of real questions come so
        query = query.lower()
    if rng.random() < 0.25:  # noqa: PLR2004 - the same
        query = query.rstrip("?. ")
    if rng.random() < 0.15:  # noqa: PLR2004 - more often than in life, to be robust
        query = mistyped(query, rng)
    if rng.random() < 0.12:  # noqa: PLR2004 - the same
        query = rng.choice(PREAMBLES) + query
    return query


def mistyped(query: str, rng: random.Random) -> str:
    """One letter dropped, doubled, swapped with the next, or replaced."""
    if len(query) < 6:  # noqa: PLR2004 - a slip in a very short question may leave nothing of it
        return query
    at = rng.randrange(1, len(query) - 1)
    before, here, after = query[:at], query[at], query[at + 1 :]
    return rng.choice(
        [
            before + after,
            before + here * 2 + after,
            before + after[0] + here + after[1:],
            before + rng.choice(LETTERS) + after,
        ]
    )


def joined(one: str, other: str, rng: random.Random) -> str:
    """As people put two requests into one message."""
    joint = rng.choice(JOINTS)
    if joint[0] in "?;,&" or joint.strip() in {"and", "plus", "btw", "then"}:
        one = one.rstrip("?. ")
    if rng.random() < 0.5:  # noqa: PLR2004 - people do both
        other = other[0].lower() + other[1:]
    return one + joint + other
