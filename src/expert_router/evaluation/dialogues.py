"""Whether each turn of a conversation goes where it should: follow-ups stay, new subjects leave, thanks go nowhere."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_router.errors import DataError
from expert_router.evaluation.intervals import Estimate, wilson

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from expert_router.types import Decision


@dataclass(frozen=True, slots=True)
class Turn:
    """``kind``: start, follow-up, change, return or thanks."""

    said: str
    experts: frozenset[str]
    kind: str


@dataclass(frozen=True, slots=True)
class DialogueReport:
    """``kinds`` in the order they first came; ``wrong``: what was said, who was needed, the kind and the experts."""

    kinds: dict[str, Estimate]
    all: Estimate
    wrong: list[tuple[str, str, str, str]]


def read_dialogues(path: Path) -> list[list[Turn]]:
    """JSON lines, each with ``turns`` of ``user``, ``experts`` and ``kind``. Raises ``DataError`` with the line."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    dialogues = []
    for number, line in enumerate(lines, start=1):
        try:
            turns = json.loads(line)["turns"]
            dialogues.append([Turn(str(t["user"]), frozenset(t["experts"]), str(t["kind"])) for t in turns])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: not a dialogue: {error!r}") from error
    if not any(dialogues):
        raise DataError(f"{path} has no dialogues.")
    return dialogues


def measure_dialogues(
    dialogues: Sequence[Sequence[Turn]], decide: Callable[[str, Sequence[str]], Decision]
) -> DialogueReport:
    """``decide`` gets a turn and what the user said before, oldest first. A question back counts as wrong."""
    marks: dict[str, list[bool]] = {}
    wrong: list[tuple[str, str, str, str]] = []
    for dialogue in dialogues:
        for place, turn in enumerate(dialogue):
            decision = decide(turn.said, [before.said for before in dialogue[:place]])
            right = decision.kind != "clarify" and frozenset(decision.experts) == turn.experts
            marks.setdefault(turn.kind, []).append(right)
            if not right:
                wrong.append((turn.said, ",".join(sorted(turn.experts)), decision.kind, ",".join(decision.experts)))
    everything = [mark for kind in marks.values() for mark in kind]
    return DialogueReport({kind: _share(kind_marks) for kind, kind_marks in marks.items()}, _share(everything), wrong)


def _share(marks: list[bool]) -> Estimate:
    return Estimate(sum(marks) / len(marks), *wilson(sum(marks), len(marks)), len(marks))
