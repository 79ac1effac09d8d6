"""A linear head over sentence embeddings: one independent probability per expert, and one for none of them.

Logistic regression fitted by Newton's method (iteratively reweighted least squares; Bishop, Pattern Recognition and
Machine Learning, 2006, section 4.3.3): a few hundred dimensions and a few thousand examples take a second with numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CALIBRATION_L2 = 1e-3
MAX_STEPS = 30
SHORTEST_STEP = 1e-12
TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class LinearHead:
    """``weights_LD`` and ``bias_L``: one row per label, D features. Labels are the experts, then none-of-them."""

    weights_LD: NDArray[np.float32]
    bias_L: NDArray[np.float32]

    def logits(self, features_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """Shape (N, L)."""
        return np.asarray(features_ND @ self.weights_LD.T + self.bias_L, dtype=np.float32)

    def probabilities(self, features_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """Shape (N, L), each in [0, 1], independent of each other, as they are before calibration."""
        return np.asarray(sigmoid(self.logits(features_ND)), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Logits to probabilities that mean what they say: Platt scaling (Platt 1999), with further features beside.

    ``weights_LF``: one row per label: the logit's scale, a weight per further feature, the shift.
    """

    weights_LF: NDArray[np.float32]

    def probabilities(self, logits_NL: NDArray[np.float32], features_NLX: NDArray[np.float32]) -> NDArray[np.float32]:
        """Shape (N, L); ``features_NLX`` has X further features for each label, perhaps none."""
        inputs_NLF = np.concatenate([logits_NL[..., None], features_NLX], axis=2)
        scaled_NL = (inputs_NLF * self.weights_LF[:, :-1]).sum(axis=2) + self.weights_LF[:, -1]
        return np.asarray(sigmoid(scaled_NL), dtype=np.float32)


def fit_head(features_ND: NDArray[np.float32], labels_NL: NDArray[np.bool_], l2: float) -> LinearHead:
    """Fit each label on its own, with an L2 penalty ``l2``/2 · |w|² on the weights and none on the bias."""
    fits = [
        _fit_logistic(features_ND.astype(np.float64), labels_NL[:, k].astype(np.float64), l2)
        for k in range(labels_NL.shape[1])
    ]
    return LinearHead(
        np.array([w[:-1] for w in fits], dtype=np.float32), np.array([w[-1] for w in fits], dtype=np.float32)
    )


def fit_calibration(
    logits_NL: NDArray[np.float32], features_NLX: NDArray[np.float32], labels_NL: NDArray[np.bool_]
) -> Calibration:
    """Fit on examples that the head has not seen."""
    inputs_NLF = np.concatenate([logits_NL[..., None], features_NLX], axis=2).astype(np.float64)
    fits = [
        _fit_logistic(inputs_NLF[:, k], labels_NL[:, k].astype(np.float64), l2=CALIBRATION_L2)
        for k in range(labels_NL.shape[1])
    ]
    return Calibration(np.array(fits, dtype=np.float32))


def fit_weighted(
    features_ND: Floats,
    labels_N: NDArray[np.bool_],
    weights_N: Floats,
    penalty: Floats,
    *,
    towards: Floats | None = None,
    start: Floats | None = None,
) -> Floats:
    """Weights of length D + 1, the bias last, of a logistic regression whose examples weigh differently.

    ``penalty`` is half of what each weight's squared distance to ``towards`` (zero) costs. ``start`` only saves steps.
    """
    x = np.hstack([features_ND, np.ones((len(features_ND), 1))])
    half = x.astype(np.float32)  # the curvature need not be exact, only the gradient
    y = labels_N.astype(np.float64)
    centre = np.zeros(x.shape[1]) if towards is None else towards

    def cost(w: Floats) -> float:
        z = x @ w
        return float((weights_N * (np.logaddexp(0, z) - y * z)).sum() + (penalty * (w - centre) ** 2).sum() / 2)

    w = np.zeros(x.shape[1]) if start is None else start
    now = cost(w)
    for _ in range(MAX_STEPS):
        p = sigmoid(x @ w)
        gradient = x.T @ (weights_N * (p - y)) + penalty * (w - centre)
        curvature = weights_N * np.maximum(p * (1 - p), 1e-9)
        bend = (half.T * curvature.astype(np.float32)) @ half
        step = np.linalg.solve(bend + np.diag(penalty), gradient)
        length = 1.0
        while length > SHORTEST_STEP and cost(w - length * step) > now:  # far from the optimum Newton overshoots
            length /= 2
        before, now = now, cost(w - length * step)
        if now > before:
            break
        w = w - length * step
        if before - now < TOLERANCE * max(1.0, now):
            break
    return w


def _fit_logistic(x_ND: Floats, y_N: Floats, l2: float, max_steps: int = 30, tolerance: float = 1e-6) -> Floats:
    """Weights of length D + 1, the bias last."""
    x = np.hstack([x_ND, np.ones((len(x_ND), 1))])
    penalty = np.diag(np.r_[np.full(x_ND.shape[1], l2), 1e-6])
    w = np.zeros(x.shape[1])
    for _ in range(max_steps):
        p = sigmoid(x @ w)
        gradient = x.T @ (p - y_N) + penalty @ w
        curvature = np.maximum(p * (1 - p), 1e-6)
        step = np.linalg.solve((x.T * curvature) @ x + penalty, gradient)
        w -= step
        if float(np.abs(step).max()) < tolerance:
            break
    return w


def sigmoid(z: NDArray[np.floating] | np.floating) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z, -40.0, 40.0))), dtype=np.float64)
