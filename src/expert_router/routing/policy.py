"""Numbers in, decision out: pure, so that every rule can be read and tested without a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from expert_router.types import GENERAL, Decision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from expert_router.types import Scores, Thresholds


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules around the thresholds. ``titles`` gives each expert the name that people read."""

    thresholds: Thresholds
    titles: Mapping[str, str]
    on_general: Literal["answer", "refuse"] = "answer"

    def decide(self, scores: Scores, router: str = "") -> Decision:
        """Who answers: every expert that is needed, a question back, or nobody."""
        ranked = scores.ranked()
        chosen = tuple(name for name, p in ranked if p >= self.thresholds.accept)
        unsure = tuple(name for name, p in ranked if self.thresholds.clarify <= p < self.thresholds.accept)
        if chosen:
            kind: Literal["single", "several"] = "single" if len(chosen) == 1 else "several"
            return Decision(kind, chosen, scores, _runner_up(scores, chosen), self._why_chosen(scores, chosen), router)
        if len(unsure) > 1:
            names = " or ".join(self._named(scores, name) for name in unsure)
            return Decision("clarify", unsure, scores, GENERAL, f"It could be about {names}: please say which.", router)
        kind_none: Literal["general", "refused"] = "general" if self.on_general == "answer" else "refused"
        return Decision(kind_none, (), scores, _runner_up(scores, (GENERAL,)), self._why_none(scores), router)

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
