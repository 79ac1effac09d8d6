"""Numbers in, decision out: pure, so that every rule can be read and tested without a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from expert_router.types import GENERAL, Decision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from expert_router.types import DecisionKind, Scores, Thresholds

OnAmbiguous = Literal["clarify", "best", "all"]
"""When more than one may be meant: ask which, take the most probable, or let all of them answer."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules around the thresholds. ``titles`` gives each expert the name that people read."""

    thresholds: Thresholds
    titles: Mapping[str, str]
    on_general: Literal["answer", "refuse"] = "answer"
    on_ambiguous: OnAmbiguous = "clarify"

    def decide(self, scores: Scores, router: str = "") -> Decision:
        """Who answers: every expert that is needed, a question back, or nobody."""
        needed = tuple(name for name, p in scores.ranked() if p >= self.thresholds.accept)
        likely = self._prediction_set(scores, needed)
        kind, chosen, reason = self._choose(scores, needed, likely)
        taken = likely if kind == "clarify" else chosen or (GENERAL,)
        return Decision(kind, chosen, scores, _runner_up(scores, taken), reason, router, likely)

    def _prediction_set(self, scores: Scores, needed: tuple[str, ...]) -> tuple[str, ...]:
        """Experts that may be needed and ``general`` for none of them, the most probable first."""
        ranked = sorted([*scores.ranked(), (GENERAL, scores.none)], key=lambda pair: -pair[1])
        return tuple(name for name, p in ranked if name in needed or p >= self.thresholds.clarify)

    def _choose(
        self, scores: Scores, needed: tuple[str, ...], likely: tuple[str, ...]
    ) -> tuple[DecisionKind, tuple[str, ...], str]:
        """The kind, the experts, and the reason."""
        if len(needed) > 1:
            return "several", needed, self._why_chosen(scores, needed)
        experts = tuple(name for name in likely if name != GENERAL)
        if len(likely) > 1:
            if self.on_ambiguous == "clarify":
                names = " or ".join(self._named(scores, name) for name in likely)
                return "clarify", experts, f"It could be about {names}: please say which."
            experts = experts if self.on_ambiguous == "all" else tuple(name for name in likely[:1] if name != GENERAL)
        if experts:
            return "single" if len(experts) == 1 else "several", experts, self._why_chosen(scores, experts)
        return "general" if self.on_general == "answer" else "refused", (), self._why_none(scores)

    def _why_chosen(self, scores: Scores, chosen: tuple[str, ...]) -> str:
        names = " and ".join(self._named(scores, name) for name in chosen)
        runner_up = _runner_up(scores, chosen)
        rest = f"; next: {self._named(scores, runner_up)}" if runner_up else ""
        return f"The question is about {names}{rest}."

    def _why_none(self, scores: Scores) -> str:
        best = scores.ranked()[0][0] if scores.experts else None
        closest = f"; the closest was {self._named(scores, best)}" if best else ""
        ending = (
            " The base model answers, without an expert." if self.on_general == "answer" else " It is not answered."
        )
        return f"No expert covers this question{closest}.{ending}"

    def _named(self, scores: Scores, name: str) -> str:
        probability = scores.none if name == GENERAL else scores.experts[name]
        title = "no expert" if name == GENERAL else self.titles.get(name, name)
        return f"{title} ({probability:.0%})"


def forced(name: str, title: str) -> Decision:
    """The decision when the caller names who answers."""
    who = "the bare base model" if name == GENERAL else f"the expert {title}"
    return Decision("forced", (name,), None, None, f"The request asks for {who}.")


def _runner_up(scores: Scores, chosen: tuple[str, ...]) -> str | None:
    """The best name not chosen; ``general`` takes part with the none-of-them score."""
    others = [(p, name) for name, p in [*scores.experts.items(), (GENERAL, scores.none)] if name not in chosen]
    return max(others)[1] if others else None
