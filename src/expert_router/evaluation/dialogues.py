"""Whether each turn of a conversation goes where it should: follow-ups stay, new subjects leave, thanks go nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_router.evaluation.intervals import share_of_some
from expert_router.evaluation.routing import exactly

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from expert_router.data.dialogues import Turn
    from expert_router.evaluation.intervals import Estimate
    from expert_router.types import Decision


@dataclass(frozen=True, slots=True)
class DialogueReport:
    """``kinds`` in the order they first came; ``wrong``: what was said, who was needed, the kind and the experts."""

    kinds: dict[str, Estimate]
    all: Estimate
    wrong: list[tuple[str, str, str, str]]


def measure_dialogues(
    dialogues: Sequence[Sequence[Turn]], decide: Callable[[str, Sequence[str]], Decision]
) -> DialogueReport:
    """``decide`` gets a turn and what the user said before, oldest first. A question back counts as wrong."""
    marks: dict[str, list[bool]] = {}
    wrong: list[tuple[str, str, str, str]] = []
    for dialogue in dialogues:
        for place, turn in enumerate(dialogue):
            decision = decide(turn.said, [before.said for before in dialogue[:place]])
            right = exactly(turn.experts, decision)
            marks.setdefault(turn.kind, []).append(right)
            if not right:
                wrong.append((turn.said, ",".join(sorted(turn.experts)), decision.kind, ",".join(decision.experts)))
    everything = [mark for kind in marks.values() for mark in kind]
    return DialogueReport(
        {kind: share_of_some(kind_marks) for kind, kind_marks in marks.items()}, share_of_some(everything), wrong
    )
