"""What accuracy alone does not tell of a router: classes that it neglects, confuses, or is too sure of."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_router.evaluation.intervals import RESAMPLES, bootstrap, mean, share
from expert_router.evaluation.routing import covered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from expert_router.data.labelled import LabelledQuestion
    from expert_router.evaluation.intervals import Estimate
    from expert_router.types import Decision

NONE = "none"
ASKS_BACK = "asks back"
BINS = 10


@dataclass(frozen=True, slots=True)
class RouterQuality:
    """``coverage`` is how often the prediction set holds what the question needs, ``set_size`` how many are in it.

    ``confusion`` has a row for each true class and a column for each decided one, both in the order of ``classes``.

    ``reliability``: by label and tenth of the probability, its mean, how often it was so, and of how many questions.
    """

    macro_f1: Estimate | None
    none_auroc: Estimate | None
    calibration_error: Estimate | None
    coverage: Estimate | None
    set_size: Estimate | None
    classes: list[str]
    confusion: list[list[int]]
    reliability: dict[str, list[tuple[float, float, int]]]


def router_quality(
    examples: Sequence[LabelledQuestion], decisions: Sequence[Decision], resamples: int = RESAMPLES
) -> RouterQuality:
    """``decisions`` are of the examples, in their order, and a router's own: they carry scores.

    The calibration error is the expected one (Naeini et al. 2015) over all probabilities, each expert's and none's.
    """
    from sklearn.metrics import f1_score, roc_auc_score

    true, decided = [_needed(example) for example in examples], [_chosen(decision) for decision in decisions]
    classes = _classes(true, decided)
    true_N, decided_N = (np.array([classes.index(name) for name in names]) for names in (true, decided))
    pairs = Counter(zip(true, decided, strict=True))
    there = sorted(set(true_N.tolist()))
    labels, probabilities_NL, is_so_NL = _probabilities(examples, decisions)
    none_N, is_none_N = probabilities_NL[:, -1], is_so_NL[:, -1]

    def macro_f1(rows: NDArray[np.intp]) -> float:
        return float(f1_score(true_N[rows], decided_N[rows], labels=there, average="macro", zero_division=0))

    def auroc(rows: NDArray[np.intp]) -> float:
        both = 0 < is_none_N[rows].sum() < len(rows)
        return float(roc_auc_score(is_none_N[rows], none_N[rows])) if both else float("nan")

    return RouterQuality(
        bootstrap(len(examples), macro_f1, resamples),
        bootstrap(len(examples), auroc, resamples),
        bootstrap(len(examples), lambda rows: calibration_error(probabilities_NL[rows], is_so_NL[rows]), resamples),
        share([covered(*pair) for pair in zip(examples, decisions, strict=True)]),
        mean([float(len(decision.prediction_set)) for decision in decisions]),
        classes,
        [[pairs[needed, chosen] for chosen in classes] for needed in classes],
        {label: _reliability(probabilities_NL[:, n], is_so_NL[:, n]) for n, label in enumerate(labels)},
    )


def calibration_error(probabilities: NDArray[np.float64], is_so: NDArray[np.bool_]) -> float:
    """The gap between what is said and what is so, in bins of what is said, weighted by how much is in them."""
    said, so, count = _binned(probabilities.ravel(), is_so.ravel())
    return float(np.abs(said - so).sum() / count.sum())


def _reliability(probabilities_N: NDArray[np.float64], is_so_N: NDArray[np.bool_]) -> list[tuple[float, float, int]]:
    said, so, count = _binned(probabilities_N, is_so_N)
    return [(float(p / n), float(q / n), int(n)) for p, q, n in zip(said, so, count, strict=True) if n]


def _binned(said_N: NDArray[np.float64], so_N: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """By tenth of the probability: the sum of what is said, how often it was so, how many there are."""
    bins_N = np.minimum((said_N * BINS).astype(np.intp), BINS - 1)
    return [np.bincount(bins_N, weights, BINS).astype(np.float64) for weights in (said_N, so_N, np.ones(len(said_N)))]


def _needed(example: LabelledQuestion) -> str:
    return " + ".join(sorted(example.experts)) or NONE


def _chosen(decision: Decision) -> str:
    return ASKS_BACK if decision.kind == "clarify" else " + ".join(sorted(decision.experts)) or NONE


def _classes(true: Sequence[str], decided: Sequence[str]) -> list[str]:
    """Experts, then several of them, then none, then the question back where there was one."""
    return sorted({*true, *decided}, key=lambda name: (name == ASKS_BACK, name == NONE, " + " in name, name))


def _probabilities(
    examples: Sequence[LabelledQuestion], decisions: Sequence[Decision]
) -> tuple[list[str], NDArray[np.float64], NDArray[np.bool_]]:
    """The labels, then two arrays of shape (N, L): what the router said, and what was so. None of them is last."""
    scores = [decision.scores for decision in decisions if decision.scores is not None]
    experts = sorted(scores[0].experts)
    said_NL = np.array([[*(each.experts[name] for name in experts), each.none] for each in scores], dtype=np.float64)
    so_NL = np.array([[*(name in e.experts for name in experts), not e.experts] for e in examples], dtype=bool)
    return [*experts, NONE], said_NL, so_NL
