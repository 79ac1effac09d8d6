"""How well a question for several experts is taken apart: two questions are joined as people do, and cut again."""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_router.errors import DataError
from expert_router.routing.splitting import split_question
from expert_router.training.augment import joined

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from expert_router.data.labelled import LabelledQuestion

_NOT_A_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class PartsReport:
    """Of ``count`` questions ``exact`` were cut where they were joined, ``near`` elsewhere, ``whole`` not at all.

    ``near`` counts only those of which each part is still most likely its own expert's. ``latency_ms``: the 50th and
    the 95th percentile.
    """

    count: int
    exact: int
    near: int
    whole: int
    latency_ms: tuple[float, float]


def measure_parts(
    questions: Sequence[LabelledQuestion], score: Callable[[str], Mapping[str, float]], *, count: int, seed: int = 0
) -> PartsReport:
    """``count`` pairs of questions that need one expert each, of different ones. Raises ``DataError`` without two."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    asked: dict[str, list[str]] = {}
    for question in questions:
        if len(question.experts) == 1:
            (expert,) = question.experts
            asked.setdefault(expert, []).append(question.query)
    if len(asked) < 2:  # noqa: PLR2004 - a pair
        raise DataError("Joining questions takes some of at least two experts.")
    exact = near = whole = 0
    seconds = []
    for _ in range(count):
        experts = rng.sample(sorted(asked), 2)
        ones = {name: rng.choice(asked[name]) for name in experts}
        message = joined(ones[experts[0]], ones[experts[1]], rng)
        started = time.perf_counter()
        parts = split_question(message, experts, score)
        seconds.append(time.perf_counter() - started)
        if all(_bare(parts[name]) == _bare(ones[name]) for name in experts):
            exact += 1
        elif message in parts.values():
            whole += 1
        else:
            near += all(max(experts, key=score(parts[name]).__getitem__) == name for name in experts)
    p50, p95 = np.percentile(np.array(seconds) * 1000, [50, 95])
    return PartsReport(count, exact, near, whole, (float(p50), float(p95)))


def _bare(text: str) -> str:
    return _NOT_A_WORD.sub("", text.casefold())
