"""``expert-router train router --with-feedback``: the router learns what people said, and forgets nothing for it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from expert_router.errors import ConfigError, DataError

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable, Collection, Sequence

    from expert_router.data.labelled import LabelledQuestion
    from expert_router.routing.embedding import RouterArtifact
    from expert_router.serving.parts import Parts
    from expert_router.training.feedback import FeedbackData
    from expert_router.types import Decision

    Decide = Callable[[str, Sequence[str]], Decision]

EXIT_FORGETS = 1
PROJECTS = "the project's test questions"
MOST_FORGOTTEN = 0.01
"""The project's test questions may lose a point, which is within the 95 % interval of what they measure (1.2 points
either way of 95 % of 1,244). More is forgetting."""


def add_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("router")
    group.add_argument(
        "--with-feedback", type=Path, metavar="FILE", help="a decision log whose feedback is learnt from as well"
    )
    group.add_argument(
        "--force",
        action="store_true",
        help="save it even if it loses over a point of the project's test questions",
    )


@dataclass(frozen=True, slots=True)
class Feedback:
    """What is learnt, and what it is measured against: the router in place and the project's test questions."""

    data: FeedbackData
    before: RouterArtifact
    test: Sequence[LabelledQuestion]


def read_feedback(
    path: Path,
    in_place: Path,
    experts: Collection[str],
    *,
    train: Sequence[LabelledQuestion],
    calibration: Sequence[LabelledQuestion],
    test: Sequence[LabelledQuestion],
) -> Feedback:
    """``in_place`` is the router that would be replaced.

    Raises ``DataError`` when nothing can be learnt, ``ConfigError`` when no router is in place.
    """
    from expert_router.decision_log import read_decisions
    from expert_router.routing.embedding import RouterArtifact
    from expert_router.training.feedback import feedback_data

    if not in_place.is_dir():
        raise ConfigError(f"There is no router in {in_place} to compare with. First run: expert-router train router")
    logged = read_decisions(path)
    data = feedback_data(logged, experts, train, [*calibration, *test])
    left_out = "".join(f" {count} {why}." for why, count in data.left_out.items())
    if not data.learnt:
        raise DataError(
            f"{path} has no feedback to learn from: {len(logged)} decisions, {len(data.kept_out)} of them kept out to "
            f"measure on.{left_out} Overrides count, and thumbs up for a single expert."
        )
    print(f"Feedback: {len(data.learnt)} questions to learn from, {len(data.kept_out)} kept out.{left_out}")
    return Feedback(data, RouterArtifact.load(in_place), test)


def may_be_saved(feedback: Feedback, after: RouterArtifact, parts: Parts, *, force: bool) -> bool:
    """Print what it gets right before and after on what neither learnt from; false when too much is forgotten."""
    from expert_router.evaluation.report import markdown_table
    from expert_router.evaluation.routing import exactly

    routers = [_decide(artifact, parts) for artifact in (feedback.before, after)]
    asked: dict[str, list[tuple[str, tuple[str, ...], frozenset[str]]]] = {
        PROJECTS: [(each.query, (), each.experts) for each in feedback.test],
        "feedback kept out": [(each.question, each.history, each.experts) for each in feedback.data.kept_out],
        "feedback learnt from": [(each.question, each.history, each.experts) for each in feedback.data.learnt],
    }
    marks = {
        name: [[exactly(experts, decide(text, history)) for text, history, experts in group] for decide in routers]
        for name, group in asked.items()
    }
    rows = [_row(name, *both) for name, both in marks.items()]
    print(markdown_table(("exactly right", "questions", "before", "after", "points"), rows))
    before, now = (sum(each) / len(each) for each in marks[PROJECTS])
    if before - now <= MOST_FORGOTTEN + 1e-9:
        return True
    what = f"It gets {100 * (before - now):.1f} points fewer of the project's test questions right, over the "
    what += f"{100 * MOST_FORGOTTEN:g} that may be forgotten"
    if force:
        print(f"{what}; saved all the same (--force).", file=sys.stderr)
        return True
    print(
        f"{what}. Not saved: the router in place stays as it was. Look at the feedback (expert-router evaluate "
        "replay); where it is right and the project's questions are not, save with --force.",
        file=sys.stderr,
    )
    return False


def _decide(artifact: RouterArtifact, parts: Parts) -> Decide:
    from expert_router.routing.embedding import EmbeddingRouter
    from expert_router.serving.build import build_policy

    if artifact.encoder_sha256 != parts.encoder.sha256:
        raise ConfigError("The router in place was fitted on another encoder. First run: expert-router train router")
    router = EmbeddingRouter(parts.encoder, artifact, parts.terms, parts.settings.router.coverage)
    policy = build_policy(router, parts.experts, parts.settings)
    return lambda question, history: policy.decide(router.score(question, history))


def _row(name: str, before: Sequence[bool], after: Sequence[bool]) -> tuple[str, ...]:
    from expert_router.evaluation.intervals import paired_difference, share
    from expert_router.evaluation.report import in_points, with_interval

    difference = paired_difference([float(mark) for mark in after], [float(mark) for mark in before])
    return name, str(len(after)), with_interval(share(before)), with_interval(share(after)), in_points(difference)
