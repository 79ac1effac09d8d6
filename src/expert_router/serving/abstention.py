"""Whether an expert answers or says that it does not know: its first token and retrieval's match, weighed together.

Training teaches an expert to tell the one case from the other, but leaves to chance from where on it refuses. A rule
that is calibrated on questions which trained nothing (``train abstention``) sets that. Where the rule is of another
mind than the expert, the answer is begun anew the other way: the prompt is in the engine's cache, so that costs little,
and the words are still the expert's.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from math import log
from statistics import fmean
from typing import TYPE_CHECKING

from expert_router.knowledge.grounding import ANSWERING, REFUSING
from expert_router.serving.prompts import expert_messages
from expert_router.types import GenerationParams, Message

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from expert_router.ports import Engine
    from expert_router.types import Chunk, Expert, Found

SUREST = 1e-6
"""Nearer to 0 or 1 a token's probability says no more."""


def refuses(first: Chunk) -> bool:
    """Whether the answer that starts with this chunk begins as a refusal does."""
    return bool(first.text) and (REFUSING.startswith(first.text) or first.text.startswith(REFUSING))


def doubt(first: Chunk) -> float | None:
    """The log-odds that the expert refuses, by its answer's first chunk with text.

    ``None`` where it does something else, or the engine does not tell probabilities.
    """
    if first.probability is None or not (refuses(first) or first.text.startswith(ANSWERING)):
        return None
    bounded = min(max(first.probability, SUREST), 1 - SUREST)
    log_odds = log(bounded / (1 - bounded))
    return log_odds if refuses(first) else -log_odds


def match(found: Sequence[Found]) -> float:
    """How well what was found fits the question, all of it together."""
    return fmean(hit.score for hit in found)


async def answered(
    engine: Engine, expert: Expert, messages: Sequence[Message], params: GenerationParams, found: Sequence[Found]
) -> AsyncGenerator[Chunk]:
    """As ``Engine.stream``, but ``expert.abstention`` says when it refuses; ``found`` is what it reads."""
    rule = expert.abstention.get(engine.served(expert).base) if found else None
    begun = False
    async with aclosing(engine.stream(expert, messages, replace(params, probability=rule is not None))) as chunks:
        async for chunk in chunks:
            if rule and chunk.text and not begun:
                begun, leaning = True, doubt(chunk)
                if leaning is not None and rule.refuses(leaning, match(found)) != refuses(chunk):
                    other = replace(params, begin=ANSWERING if refuses(chunk) else REFUSING)
                    break
            yield chunk
        else:
            return
    async with aclosing(engine.stream(expert, messages, other)) as chunks:
        async for chunk in chunks:
            yield chunk


async def ask_doubt(engine: Engine, expert: Expert, question: str, found: Sequence[Found]) -> float | None:
    """How much an expert of its own leans to refusing a question, by its first token alone."""
    messages = expert_messages(expert, [Message("user", question)], found=found)
    params = GenerationParams(max_tokens=1, probability=True)
    async with aclosing(engine.stream(expert, messages, params)) as chunks:
        async for chunk in chunks:
            if chunk.text:
                return doubt(chunk)
    return None
