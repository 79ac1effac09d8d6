"""The rule by which an expert says that it does not know, fitted on questions whose texts answer them or do not.

Selective classification: what is learnt orders the questions, and the operating point is chosen by the errors that one
is ready to bear (Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, 2017).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from expert_router.errors import TrainingError
from expert_router.types import Abstention

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

FEWEST = 20
"""Questions of either kind."""
LEAST_AUROC = 0.6
GAIN_BY_DOUBT, GAIN_BY_MATCH = 0.025, 0.005
"""So much of AUROC a sign must add to the other alone: to ask for the doubt takes the engine a further request."""
DIGITS = 12
"""Of a hash, enough to tell adapters apart."""
_SIGNS = ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
"""Of doubt and match, which a rule weighs."""
_FOLDS, _REPEATS = 5, 4


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that was put to an expert: its doubt and retrieval's match, as ``serving.abstention`` has them."""

    doubt: float
    match: float
    answerable: bool
    refused: bool
    """By the expert itself."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Shares, from 0 to 1, of the questions that the texts answer and of those that they do not."""

    answerable: float
    unanswerable: float


@dataclass(frozen=True, slots=True)
class Calibrated:
    """``by_rule`` is cross-validated; ``by_itself`` is what the expert refuses without a rule.

    ``auroc``: how well unanswerable questions are told from answerable ones by doubt, by match and by the rule, the
    last cross-validated.
    """

    rule: Abstention
    by_rule: Refused
    by_itself: Refused
    auroc: tuple[float, float, float]


def fit_abstention(asked: Sequence[Asked], adapter: str, *, false_refusals: float, seed: int = 0) -> Calibrated:
    """The rule that refuses ``false_refusals``, a share, of what is answerable and as much as it can of the rest.

    It weighs one sign alone where the other does not add what it costs.

    ``adapter`` is the hash of the weights that were asked. Raises ``TrainingError`` when there are too few questions of
    a kind, or neither doubt nor match tells the one kind from the other.
    """
    X_N2 = np.array([(each.doubt, each.match) for each in asked]).reshape(-1, 2)
    answerable_N = np.array([each.answerable for each in asked], dtype=bool)
    if min(answerable_N.sum(), (~answerable_N).sum()) < FEWEST:
        raise TrainingError(
            f"To find when an expert should refuse takes at least {FEWEST} questions that its texts answer and as many "
            f"that they do not; there are {answerable_N.sum()} and {(~answerable_N).sum()}."
        )
    doubt, match, both = (
        (signs, *_cross_validated(X_N2 * signs, answerable_N, false_refusals, seed)) for signs in _SIGNS
    )
    with_doubt = both if both[-1] - doubt[-1] >= GAIN_BY_MATCH else doubt
    signs, by_rule, auroc = with_doubt if with_doubt[-1] - match[-1] >= GAIN_BY_DOUBT else match
    rule = replace(_fit(X_N2 * signs, answerable_N, false_refusals), adapter=adapter[:DIGITS])
    if auroc < LEAST_AUROC or rule.doubt < 0 or rule.match > 0:
        raise TrainingError(
            f"Neither the expert's doubt nor what is found tells which questions the texts answer (AUROC {auroc:.2f}): "
            "a rule made of that would refuse by chance. Train the expert for longer, or write clearer questions."
        )
    return Calibrated(
        rule,
        by_rule,
        Refused(*_refused(np.array([each.refused for each in asked]), answerable_N)),
        (_auroc(X_N2[:, 0], answerable_N), _auroc(-X_N2[:, 1], answerable_N), auroc),
    )


def _cross_validated(
    X_N2: NDArray[np.float64], answerable_N: NDArray[np.bool_], false_refusals: float, seed: int
) -> tuple[Refused, float]:
    """What rules refuse of questions that they were not fitted on, and their AUROC."""
    from sklearn.model_selection import RepeatedStratifiedKFold

    folds = RepeatedStratifiedKFold(n_splits=_FOLDS, n_repeats=_REPEATS, random_state=seed)
    held_out = []
    for fit, test in folds.split(X_N2, answerable_N):
        scores = _scores(_fit(X_N2[fit], answerable_N[fit], false_refusals), X_N2[test])
        held_out.append((*_refused(scores > 0, answerable_N[test]), _auroc(scores, answerable_N[test])))
    answerable, unanswerable, auroc = (float(value) for value in np.mean(held_out, axis=0))
    return Refused(answerable, unanswerable), auroc


def _fit(X_N2: NDArray[np.float64], answerable_N: NDArray[np.bool_], false_refusals: float) -> Abstention:
    """A rule that names no adapter yet."""
    from sklearn.linear_model import LogisticRegression

    deviation_2 = X_N2.std(axis=0) + 1e-9
    model = LogisticRegression(class_weight="balanced").fit(X_N2 / deviation_2, ~answerable_N)
    doubt, match = (float(weight) for weight in model.coef_[0] / deviation_2)
    rule = Abstention("", 0.0, doubt, match)
    return replace(rule, bias=-float(np.quantile(_scores(rule, X_N2[answerable_N]), 1 - false_refusals)))


def _scores(rule: Abstention, X_N2: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(rule.bias + X_N2 @ np.array([rule.doubt, rule.match]))


def _refused(refuses_N: NDArray[np.bool_], answerable_N: NDArray[np.bool_]) -> tuple[float, float]:
    return float(refuses_N[answerable_N].mean()), float(refuses_N[~answerable_N].mean())


def _auroc(scores_N: NDArray[np.float64], answerable_N: NDArray[np.bool_]) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(~answerable_N, scores_N))
