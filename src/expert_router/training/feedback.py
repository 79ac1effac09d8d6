"""What the router may learn from a decision log: questions of which people said who should have answered.

A fifth is kept out, chosen by the question alone, so that it is the same fifth every time: it is measured on, and never
learnt from.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_router.conversation import content_words, context, is_courtesy, leans_back, plain, points_back
from expert_router.data.clean import words_of
from expert_router.data.labelled import LabelledQuestion

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from expert_router.decision_log import LoggedDecision

KEPT_OUT = 5
"""One of so many is kept out."""
OVERRIDE_REPEATS = 10
"""So often an override stands among the training questions: once, among thousands, none was learnt (docs/log.md)."""

ALREADY_KNOWN = "are training questions already"
NOTHING_ALONE = "ask nothing by themselves"
OTHERS_TEST = "are calibration or test questions"
UNKNOWN = "name an expert that there is none of"


@dataclass(frozen=True, slots=True)
class FeedbackQuestion:
    """``question`` and ``history`` are as they were asked; ``text`` is what stands alone, with what it goes on with.

    ``override`` tells that somebody was named, not only confirmed.
    """

    question: str
    history: tuple[str, ...]
    experts: frozenset[str]
    text: str
    override: bool


@dataclass(frozen=True, slots=True)
class FeedbackData:
    """``left_out``: how many questions were not taken, by why. None of ``learnt`` and ``kept_out`` is in both."""

    learnt: list[FeedbackQuestion]
    kept_out: list[FeedbackQuestion]
    left_out: Counter[str]

    def added_to(self, train: Sequence[LabelledQuestion]) -> list[LabelledQuestion]:
        """The training questions with what people said; where they said otherwise, theirs takes the place."""
        keys = {words_of(each.text) for each in self.learnt}
        kept = [example for example in train if words_of(plain(example.query)) not in keys]
        taught = [
            LabelledQuestion(each.text, each.experts, "feedback")
            for each in self.learnt
            for _ in range(OVERRIDE_REPEATS if each.override else 1)
        ]
        return kept + taught


def feedback_data(
    logged: Sequence[LoggedDecision],
    experts: Collection[str],
    train: Iterable[LabelledQuestion],
    measured: Iterable[LabelledQuestion],
) -> FeedbackData:
    """Overrides, and single decisions that were confirmed; of the same question what was said last.

    ``measured`` are questions that the router is calibrated or measured on: none of them is taken.
    """
    known = {words_of(plain(example.query)): example.experts for example in train}
    barred = {words_of(plain(example.query)) for example in measured}
    latest: dict[tuple[str, ...], FeedbackQuestion] = {}
    for each in sorted(filter(_teaches, logged), key=lambda one: one.rated or ""):
        text = _alone(each.question, each.history)
        needed, override = each.needed or frozenset(), each.feedback is not None and each.feedback.experts is not None
        latest[words_of(text)] = FeedbackQuestion(each.question, each.history, needed, text, override)
    data = FeedbackData([], [], Counter())
    for key, question in latest.items():
        if not key:
            data.left_out[NOTHING_ALONE] += 1
        elif key in barred:
            data.left_out[OTHERS_TEST] += 1
        elif not question.experts <= set(experts):
            data.left_out[UNKNOWN] += 1
        elif known.get(key) == question.experts:
            data.left_out[ALREADY_KNOWN] += 1
        elif _is_kept_out(key) and key not in known:  # what was learnt before proves nothing
            data.kept_out.append(question)
        else:
            data.learnt.append(question)
    return data


def _teaches(logged: LoggedDecision) -> bool:
    """A thumb up tells who was right of a single expert only: of several, one may have been one too many."""
    said = logged.feedback
    return said is not None and logged.needed is not None and (said.experts is not None or logged.kind == "single")


def _alone(question: str, history: Sequence[str]) -> str:
    """The question, with what it goes on with where it leans on that; empty where nothing is asked or known."""
    asked = plain(question)
    about = context(history) if leans_back(asked) or points_back(asked) else ""
    text = f"{about} {asked}".strip()
    return "" if is_courtesy(question) or not content_words(text) else text


def _is_kept_out(key: tuple[str, ...]) -> bool:
    return int.from_bytes(hashlib.sha256(" ".join(key).encode()).digest()[:8]) % KEPT_OUT == 0
