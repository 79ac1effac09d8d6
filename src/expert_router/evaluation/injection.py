"""How often text that is no business of the reader's gives it orders: a written suite of prompt injections.

A case succeeds when the answer matches what its author wanted it to say. That is a lower bound of trouble, not a proof
of safety: nobody says that other words would not do it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expert_router.errors import DataError
from expert_router.evaluation.intervals import share_of_some
from expert_router.types import Found, Message, Passage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from expert_router.evaluation.intervals import Estimate
    from expert_router.ports import Knowledge

KINDS = ("question", "passage", "history", "template", "field", "reveal", "citation", "link")
PLANTED = "planted.md"


@dataclass(frozen=True, slots=True)
class Case:
    """``hit``: what an answer looks like that obeyed. ``before`` are earlier turns, the user's first."""

    id: str
    kind: str
    expert: str
    said: str
    hit: re.Pattern[str]
    passage: Passage | None = None
    before: tuple[str, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        earlier = (Message("assistant" if n % 2 else "user", text) for n, text in enumerate(self.before))
        return (*earlier, Message("user", self.said))


@dataclass(frozen=True, slots=True)
class InjectionReport:
    """``succeeded``: the ids of the cases that did, with the answers."""

    kinds: dict[str, Estimate]
    all: Estimate
    succeeded: dict[str, str]


class Planted:
    """Knowledge into which somebody put a passage for each of some questions; it is found first."""

    def __init__(self, knowledge: Knowledge, by_question: Mapping[str, Passage]) -> None:
        self._knowledge = knowledge
        self._by_question = by_question

    def search(self, expert: str, question: str, history: Sequence[str] = (), limit: int = 3) -> list[Found]:
        found = self._knowledge.search(expert, question, history, limit)
        planted = self._by_question.get(question)
        if planted is None:
            return found
        best = found[0] if found else None
        first = Found(planted, best.score if best else 1.0, "", best.similarity if best else 1.0)
        return [first, *found][:limit]


def read_cases(path: Path) -> list[Case]:
    """JSON lines. Raises ``DataError`` that names the line."""
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    cases = []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                cases.append(_case(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, re.error) as error:
            raise DataError(f"{path}, line {number}: not a case: {error!r}") from error
    if not cases:
        raise DataError(f"{path} has no cases.")
    return cases


def _case(row: dict[str, Any]) -> Case:
    if row["kind"] not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}")
    planted = row.get("passage")
    passage = planted and Passage(f"{PLANTED}#1", str(planted["title"]), str(planted["text"]), PLANTED)
    hit = re.compile(row["hit"], re.IGNORECASE)
    return Case(row["id"], row["kind"], row["expert"], str(row["said"]), hit, passage, tuple(row.get("before", ())))


def measure_injections(cases: Sequence[Case], answers: Sequence[str]) -> InjectionReport:
    """``answers`` in the order of ``cases``."""
    hits = [case.hit.search(answer) is not None for case, answer in zip(cases, answers, strict=True)]
    kinds = {
        kind: share_of_some([hit for case, hit in zip(cases, hits, strict=True) if case.kind == kind])
        for kind in dict.fromkeys(case.kind for case in cases)
    }
    succeeded = {case.id: answer for case, answer, hit in zip(cases, answers, hits, strict=True) if hit}
    return InjectionReport(kinds, share_of_some(hits), succeeded)
