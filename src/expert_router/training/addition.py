"""Teach the router one more expert from a few examples, in a fraction of a second.

A logistic regression tells the examples from a background of other questions. Its probabilities are calibrated on
examples that it was not fitted on (cross-fitting) and are drawn towards the calibration that the router's own experts
share, as twenty examples alone settle little. Questions of the background that are for nobody and look like the
examples are left out: they may well be of the new field.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np

from expert_router.routing.added import AddedHead
from expert_router.routing.evidence import SMOOTHING, strongest_word, words_of
from expert_router.routing.head import fit_weighted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from expert_router.data.labelled import LabelledQuestion
    from expert_router.ports import TextEncoder
    from expert_router.routing.head import Calibration

    Floats = NDArray[np.float32]

SHARE = 0.15
"""How many of a calibrated router's questions would be the expert's: examples weigh so much against the background."""
L2 = 1.0
FOLDS = 4
DIRECTIONS, OWN_DIRECTIONS = 96, 32
FEWEST_HELD_OUT = 4
"""With fewer examples none can be spared to calibrate on."""
CLAIMED_OF_BACKGROUND = 0.01
"""So much of the background an expert with fewer examples claims."""
CALIBRATION_L2 = 10.0
SHIFT_L2 = 1.0
LOOKS_ALIKE = 0.5
"""A question for nobody is left out when it is nearer to the examples' centre than half of them are to the others'."""


@dataclass(frozen=True)
class Background:
    """Questions of other fields and of none, and their embeddings.

    One made of another, its ``origin``, keeps the other's directions: they cost more than all else.
    """

    questions: Sequence[LabelledQuestion]
    vectors_BD: Floats
    origin: Background | None = None

    @cached_property
    def principal(self) -> Floats:
        """Shape (K, D): its ``DIRECTIONS`` first principal directions."""
        if self.origin is not None:
            return self.origin.principal
        centred_BD = self.vectors_BD - self.vectors_BD.mean(axis=0)
        _, vectors_DD = np.linalg.eigh(centred_BD.T @ centred_BD)
        return np.asarray(vectors_DD.T[::-1][:DIRECTIONS], dtype=np.float32)

    def and_(self, other: Background) -> Background:
        """Both, in the directions of this one."""
        vectors_BD = np.concatenate([self.vectors_BD, other.vectors_BD])
        return Background([*self.questions, *other.questions], vectors_BD, self)

    def without(self, experts: Iterable[str]) -> Background:
        """The questions that need none of the experts, in the directions of all."""
        return self.only(np.array([question.experts.isdisjoint(experts) for question in self.questions], dtype=bool))

    def only(self, kept_B: NDArray[np.bool_]) -> Background:
        """Some of its questions, in the directions of all."""
        return Background(list(compress(self.questions, kept_B)), self.vectors_BD[kept_B], self)


def fit_addition(
    name: str, examples: Sequence[str], background: Background, encoder: TextEncoder, shared: Calibration
) -> AddedHead:
    """``shared`` is the calibration of the router's own experts, then of none-of-them. Deterministic."""
    vectors_ND = np.stack(list(encoder.encode_all(list(examples))))
    others = _not_alike(background.without([name]), vectors_ND)
    texts = [*examples, *(question.query for question in others.questions)]
    basis_DR = _basis(vectors_ND, background)
    features_MR = (np.concatenate([vectors_ND, others.vectors_BD]) @ basis_DR).astype(np.float64)
    own_M = np.arange(len(texts)) < len(examples)
    weights = _fit_head(features_MR, own_M)
    inside, outside = _counts(texts[: len(examples)]), _counts(texts[len(examples) :])
    prior_F = shared.weights_LF[:-1].mean(axis=0).astype(np.float64)
    if len(examples) < FEWEST_HELD_OUT:
        logits_B = features_MR[~own_M] @ weights[:-1] + weights[-1]
        shift = -prior_F[0] * float(np.quantile(logits_B, 1 - CLAIMED_OF_BACKGROUND))
        calibration_F = np.array([*prior_F[:-1], shift])
    else:
        held_out_M2 = _held_out(texts, features_MR, own_M, weights, outside)
        fitted = fit_weighted(
            held_out_M2,
            own_M,
            _balanced(own_M),
            np.array([CALIBRATION_L2, CALIBRATION_L2, SHIFT_L2]),
            towards=prior_F[[0, 1, 3]],
        )
        calibration_F = np.array([fitted[0], fitted[1], prior_F[2], fitted[2]])
    return AddedHead(
        name,
        (basis_DR @ weights[:-1]).astype(np.float32),
        float(weights[-1]),
        _word_weights(inside, outside),
        calibration_F.astype(np.float32),
        encoder.sha256,
    )


def _basis(vectors_ND: Floats, background: Background) -> Floats:
    """Shape (D, R): the directions in which the background differs most, and those of the examples.

    In all D directions each step of the fit costs ten times as much, and gains nothing (docs/log.md).
    """
    _, _, own_KD = np.linalg.svd(vectors_ND, full_matrices=False)
    joined_D = np.concatenate([background.principal, own_KD[:OWN_DIRECTIONS]]).T
    return np.asarray(np.linalg.qr(joined_D)[0], dtype=np.float32)


def _not_alike(background: Background, vectors_ND: Floats) -> Background:
    centre_D = vectors_ND.sum(axis=0)
    others_ND = centre_D - vectors_ND
    norms_N = np.maximum(np.linalg.norm(others_ND, axis=1), 1e-9)
    near = (
        float(np.quantile((vectors_ND * others_ND).sum(axis=1) / norms_N, LOOKS_ALIKE)) if len(vectors_ND) > 1 else 1.0
    )
    cosines_B = background.vectors_BD @ (centre_D / np.linalg.norm(centre_D))
    needed_B = np.array([bool(question.experts) for question in background.questions])
    return background.only(needed_B | (cosines_B <= near))


def _balanced(own_M: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Shape (M,): weights under which the expert's questions are a share of ``SHARE``."""
    per_example = SHARE / (1 - SHARE) * max(1, (~own_M).sum()) / max(1, own_M.sum())
    return np.where(own_M, per_example, 1.0)


def _fit_head(
    features_MR: NDArray[np.float64], own_M: NDArray[np.bool_], start: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    penalty = np.append(np.full(features_MR.shape[1], L2), 1e-6)
    return fit_weighted(features_MR, own_M, _balanced(own_M), penalty, start=start)


def _held_out(
    texts: Sequence[str],
    features_MR: NDArray[np.float64],
    own_M: NDArray[np.bool_],
    weights: NDArray[np.float64],
    outside: Mapping[str, int],
) -> NDArray[np.float64]:
    """Shape (M, 2): each text's logit and strongest word, by a fit that has not seen it."""
    held_out_M2 = np.zeros((len(texts), 2))
    folds = min(FOLDS, int(own_M.sum()))
    fold_M = np.arange(len(texts)) % folds
    for fold in range(folds):
        out_M = fold_M == fold
        fitted = _fit_head(features_MR[~out_M], own_M[~out_M], weights)
        held_out_M2[out_M, 0] = features_MR[out_M] @ fitted[:-1] + fitted[-1]
        words = _word_weights(_counts([texts[n] for n in np.flatnonzero(own_M & ~out_M).tolist()]), outside)
        for n in np.flatnonzero(out_M).tolist():
            held_out_M2[n, 1] = strongest_word(words, texts[n])
    return held_out_M2


def _counts(texts: Sequence[str]) -> Counter[str]:
    return Counter(word for text in texts for word in words_of(text))


def _word_weights(inside: Mapping[str, int], outside: Mapping[str, int]) -> dict[str, float]:
    """The words that speak for the expert: smoothed log ratios of their rates, as ``routing.evidence`` makes them."""
    size = SMOOTHING * len(inside.keys() | outside.keys())
    scale = np.log((sum(outside.values()) + size) / (sum(inside.values()) + size))
    ratios = {
        word: float(np.log((count + SMOOTHING) / (outside.get(word, 0) + SMOOTHING)) + scale)
        for word, count in inside.items()
    }
    return {word: ratio for word, ratio in ratios.items() if ratio > 0}
