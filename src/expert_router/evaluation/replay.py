"""Another router on the questions that were asked: where it decides otherwise, and what people said of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_router.errors import DataError
from expert_router.evaluation.intervals import paired_difference, share, share_of_some
from expert_router.evaluation.routing import exactly, outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from expert_router.decision_log import LoggedDecision
    from expert_router.evaluation.intervals import Estimate
    from expert_router.types import Decision


@dataclass(frozen=True, slots=True)
class Changed:
    """A question that is decided otherwise now; ``right`` tells whether it is right now, where that is known."""

    question: str
    then: str
    now: str
    right: bool | None


@dataclass(frozen=True, slots=True)
class Judged:
    """How often the decisions were right, and are now, by people's feedback on the same questions.

    ``open`` more were thumbed down, nobody named who should have answered, and they are decided otherwise now: whether
    rightly is not known, so they count nowhere.
    """

    logged: Estimate | None
    now: Estimate | None
    difference: Estimate | None
    open: int


@dataclass(frozen=True, slots=True)
class Replay:
    """``named`` decisions were the request's own: no router made them, so none is compared with them."""

    same: Estimate
    kinds: dict[str, Estimate]
    changed: list[Changed]
    judged: Judged
    named: int


def replay(logged: Sequence[LoggedDecision], decide: Callable[[str, Sequence[str]], Decision]) -> Replay:
    """``decide`` gets a question and the user's earlier turns. The same decision: the same kind with the same experts.

    Raises ``DataError`` when no router made any of the decisions.
    """
    routed = [each for each in logged if each.forced is None]
    if not routed:
        raise DataError("Every decision of this log was named by its request: there is none of a router to compare.")
    pairs = [(each, decide(each.question, each.history)) for each in routed]
    marks: dict[str, list[bool]] = {}
    changed = []
    for then, now in pairs:
        same = _same(then, now)
        marks.setdefault(then.kind, []).append(same)
        if not same:
            changed.append(Changed(then.question, shown(then.decision), shown(now), _is_right(then, now)))
    everything = [mark for of_kind in marks.values() for mark in of_kind]
    kinds = {kind: share_of_some(of_kind) for kind, of_kind in sorted(marks.items())}
    return Replay(share_of_some(everything), kinds, changed, _judge(pairs), len(logged) - len(routed))


def shown(decision: Decision) -> str:
    """The kind, and the experts where there are any."""
    return f"{decision.kind}: {', '.join(sorted(decision.experts))}" if decision.experts else decision.kind


def _judge(pairs: Sequence[tuple[LoggedDecision, Decision]]) -> Judged:
    said = [(then, now) for then, now in pairs if then.needed is not None or _thumbed_down(then)]
    known = [(then, right) for then, now in said if (right := _is_right(then, now)) is not None]
    now = [right for _, right in known]
    before = [_was_right(then) for then, _ in known]
    return Judged(
        share(before),
        share(now),
        paired_difference([float(right) for right in now], [float(right) for right in before]),
        len(said) - len(known),
    )


def _was_right(then: LoggedDecision) -> bool:
    return then.needed is not None and exactly(then.needed, then.decision)


def _is_right(then: LoggedDecision, now: Decision) -> bool | None:
    """A thumb down without a name says only that the old decision was wrong."""
    if then.needed is not None:
        return exactly(then.needed, now)
    return False if _thumbed_down(then) and _same(then, now) else None


def _thumbed_down(then: LoggedDecision) -> bool:
    return then.feedback is not None and then.feedback.rating == "down"


def _same(then: LoggedDecision, now: Decision) -> bool:
    return outcome(then.decision) == outcome(now)
