"""Fit the embedding router: embed the questions, fit the linear head, calibrate it, choose the thresholds.

Training questions fit the weights; calibration questions, never seen by them, set the probabilities and thresholds.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from expert_router.errors import DataError
from expert_router.routing.embedding import RouterArtifact, label_evidence
from expert_router.routing.evidence import fit_evidence
from expert_router.routing.head import fit_calibration, fit_head
from expert_router.training.augment import joined_pairs
from expert_router.types import Thresholds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from expert_router.data.labelled import LabelledQuestion
    from expert_router.routing.encoder import SentenceEncoder

L2 = 1.0
MIN_EXAMPLES = 8
PAIRS_PER_EXAMPLE = 0.08
"""Questions that need two experts are rare in data and are made by joining two questions."""

CALIBRATION_PAIRS = 0.25
"""More of them here, so that the few real questions on several topics do not set the scale alone."""
FEWEST_TO_VOTE = 30
SMOOTHING = 3
"""Grid steps to either side: accuracy over a few hundred questions moves in steps that mean nothing."""
CLARIFY_SHARE = 0.6
_GRID = np.round(np.arange(0.2, 0.81, 0.02), 2)


def fit_router(
    train: Sequence[LabelledQuestion],
    calibration: Sequence[LabelledQuestion],
    experts: Sequence[str],
    encoder: SentenceEncoder,
    *,
    seed: int = 0,
    progress: bool = False,
) -> RouterArtifact:
    """Deterministic for the same examples, encoder and seed. Raises ``DataError`` when an expert has too few."""
    for expert in experts:
        count = sum(expert in example.experts for example in train)
        if count < MIN_EXAMPLES:
            raise DataError(
                f"The expert {expert!r} has {count} training questions; at least {MIN_EXAMPLES} are needed."
            )
    fitting = [*train, *joined_pairs(train, round(len(train) * PAIRS_PER_EXAMPLE), seed)]
    held_out = [*calibration, *joined_pairs(calibration, round(len(calibration) * CALIBRATION_PAIRS), seed + 1)]
    evidence = fit_evidence([(example.query, example.experts) for example in train], experts)
    vectors = _encode([*fitting, *held_out], encoder, progress=progress)
    head = fit_head(vectors[: len(fitting)], labels(fitting, experts), L2)
    logits_NL = head.logits(vectors[len(fitting) :])
    evidence_NLX = np.stack([label_evidence(evidence, example.query) for example in held_out])
    calibrated = fit_calibration(logits_NL, evidence_NLX, labels(held_out, experts))
    thresholds = choose_thresholds(calibrated.probabilities(logits_NL, evidence_NLX), held_out, experts)
    about = {
        "l2": L2,
        "seed": seed,
        "train": len(train),
        "calibration": len(calibration),
        "joined_pairs": len(fitting) - len(train),
    }
    return RouterArtifact(head, evidence, calibrated, tuple(experts), thresholds, encoder.sha256, about)


def labels(examples: Sequence[LabelledQuestion], experts: Sequence[str]) -> NDArray[np.bool_]:
    """Shape (N, E + 1): one column per expert, then none of them."""
    return np.array(
        [[e in example.experts for e in experts] + [not example.experts] for example in examples], dtype=bool
    )


def choose_thresholds(
    probabilities_NL: NDArray[np.float32], questions: Sequence[LabelledQuestion], experts: Sequence[str]
) -> Thresholds:
    """The accept threshold that gets most questions exactly right, every kind of question weighing the same.

    The accuracies are averaged over neighbouring thresholds first; kinds with very few questions do not count.
    """
    probabilities_NE = probabilities_NL[:, :-1]
    needed_NE = labels(questions, experts)[:, :-1]
    kinds = np.array([question.kind for question in questions])
    counts = Counter(kinds.tolist())
    voting = [kind for kind, count in sorted(counts.items()) if count >= min(FEWEST_TO_VOTE, max(counts.values()))]

    def mean_accuracy(threshold: float) -> float:
        right = ((probabilities_NE >= threshold) == needed_NE).all(axis=1)
        return float(np.mean([right[kinds == kind].mean() for kind in voting]))

    accuracies = np.array([mean_accuracy(float(threshold)) for threshold in _GRID])
    smooth = np.convolve(np.pad(accuracies, SMOOTHING, mode="edge"), np.ones(2 * SMOOTHING + 1), "valid")
    best = np.flatnonzero(smooth >= smooth.max() - 1e-9)
    plateaus = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)  # between two of them it is worse
    accept = float(np.median(_GRID[max(plateaus, key=len)]))
    return Thresholds(accept=round(accept, 3), clarify=round(accept * CLARIFY_SHARE, 3))


def _encode(examples: Sequence[LabelledQuestion], encoder: SentenceEncoder, *, progress: bool) -> NDArray[np.float32]:
    texts = [example.query for example in examples]
    vectors = tqdm(
        encoder.encode_all(texts), total=len(texts), desc="embed", unit="question", disable=None if progress else True
    )
    return np.stack(list(vectors))
