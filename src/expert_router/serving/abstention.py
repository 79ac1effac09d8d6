"""Whether an expert answers or says that it does not know: its first token and what was found, weighed together.

Training teaches an expert to tell the one case from the other, but leaves to chance from where on it refuses. A rule
that is calibrated on questions which trained nothing (``train abstention``) sets that. So the expert is asked for its
first token alone, the rule decides, and the expert is asked to go on from the beginning of an answer or of a refusal:
its prompt is in the engine's cache by then, and the words are its own. A rule that takes no account of its doubt asks
nothing beforehand.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from heapq import nlargest
from math import log
from statistics import fmean
from typing import TYPE_CHECKING

from expert_router.knowledge.grounding import ANSWERING, REFUSING
from expert_router.types import Chunk, GenerationParams

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from expert_router.ports import Engine
    from expert_router.types import Expert, Found, Message

SUREST = 1e-6
"""Nearer to 0 or 1 a token's probability says no more."""
FIRST_TOKEN = GenerationParams(max_tokens=1, probability=True)


async def answered(
    engine: Engine, expert: Expert, messages: Sequence[Message], params: GenerationParams, found: Sequence[Found]
) -> AsyncGenerator[Chunk]:
    """As ``Engine.stream``, but ``expert.abstention`` says when it refuses; ``found`` is what it reads."""
    rule = expert.abstention.get(engine.served(expert).base) if found else None
    if rule is not None:
        doubt = doubt_of(await first_token(engine, expert, messages, params)) if rule.doubt else 0.0
        if doubt is not None:
            params = replace(params, begin=REFUSING if rule.refuses(doubt, match_of(found)) else ANSWERING)
    async with aclosing(engine.stream(expert, messages, params)) as chunks:
        async for chunk in chunks:
            yield chunk


async def first_token(
    engine: Engine, expert: Expert, messages: Sequence[Message], params: GenerationParams = FIRST_TOKEN
) -> Chunk:
    """What the expert would begin with, decoded greedily, with its probability where the engine tells it.

    Of ``params`` only what shapes no answer matters.
    """
    first, asked = Chunk(""), replace(FIRST_TOKEN, cache=params.cache, ticket=params.ticket, trace=params.trace)
    async with aclosing(engine.stream(expert, messages, asked)) as chunks:
        async for chunk in chunks:  # to its end: only what is whole is kept
            first = first if first.text else chunk
    return first


def refuses(first: Chunk) -> bool:
    """Whether what starts with this chunk begins as a refusal does."""
    return bool(first.text) and (REFUSING.startswith(first.text) or first.text.startswith(REFUSING))


def doubt_of(first: Chunk) -> float | None:
    """The log-odds that the expert refuses.

    ``None`` where it begins with something else, or the engine does not tell probabilities.
    """
    if first.probability is None or not (refuses(first) or first.text.startswith(ANSWERING)):
        return None
    bounded = min(max(first.probability, SUREST), 1 - SUREST)
    log_odds = log(bounded / (1 - bounded))
    return log_odds if refuses(first) else -log_odds


def match_of(found: Sequence[Found]) -> float:
    """How similar what was found is to the question: the two closest passages, as one alone may be so by chance."""
    return fmean(nlargest(2, (hit.similarity for hit in found)))
