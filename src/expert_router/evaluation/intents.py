"""Public intent data sets: how well the router's encoder tells many subjects apart, and knows what belongs to none.

Both come as their authors publish them. Intents exclude each other, so a softmax regression stands on the encoder here
instead of the router's independent probabilities; nothing out of scope trains it or sets its threshold.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from expert_router.evaluation.router_quality import calibration_error
from expert_router.training.router import embed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.linear_model import LogisticRegression

    from expert_router.data.intents import IntentData, Labelled
    from expert_router.ports import TextEncoder

FALSE_ALARMS = 0.04
"""So much of the in-scope validation questions lies under the threshold; what the test questions make of it is told."""
INVERSE_L2 = 10.0
TIMED = 1000

Embedded = tuple["NDArray[np.float32]", "NDArray[np.str_]"]
"""The questions as vectors, shape (N, D), and their intents."""


@dataclass(frozen=True, slots=True)
class IntentReport:
    """Shares are from 0 to 1; what needs out-of-scope questions is ``None`` where there are none.

    ``auroc`` and ``auprc`` are of telling out-of-scope from in-scope test questions, by one score without a threshold;
    ``oos_recall`` and ``false_alarm`` are what the threshold refuses of them; ``ece`` is the expected calibration error
    of the likeliest intent's probability in ten bins; ``fit_s`` is from the questions to the calibrated head, of which
    ``embed_s`` is their embedding; ``p50_ms`` and ``p95_ms`` are of one question after another, from text to decision.
    """

    dataset: str
    sha256: str
    intents: int
    train: int
    validation: int
    test: int
    out_of_scope: int
    accuracy: float
    false_alarm: float
    ece: float
    fit_s: float
    embed_s: float
    p50_ms: float
    p95_ms: float
    auroc: float | None = None
    auprc: float | None = None
    oos_recall: float | None = None


def measure_intents(data: IntentData, encoder: TextEncoder, *, progress: bool = False) -> IntentReport:
    """Fit on the training questions, calibrate on the validation ones, measure on the rest."""
    started = time.perf_counter()
    train, validation = (
        _embedded(questions, encoder, what, progress=progress)
        for what, questions in (("train", data.train), ("validation", data.validation))
    )
    embed_s = time.perf_counter() - started
    head = IntentHead.fit(train, validation)
    fit_s = time.perf_counter() - started
    test_ND, intents_N = _embedded(data.test, encoder, "test", progress=progress)
    probabilities_NI, inside_N = head.probabilities(test_ND), head.in_scope(test_ND)
    right_N = head.intents[probabilities_NI.argmax(axis=1)] == intents_N
    outside = {}
    if data.out_of_scope:
        outside = _out_of_scope(
            head, inside_N, embed(data.out_of_scope, encoder, "embed out of scope", progress=progress)
        )
    p50, p95 = _latency_ms(head, encoder, [question for question, _ in data.test])
    return IntentReport(
        dataset=data.name,
        sha256=data.sha256,
        intents=len(head.intents),
        train=len(data.train),
        validation=len(data.validation),
        test=len(data.test),
        out_of_scope=len(data.out_of_scope),
        accuracy=float(right_N.mean()),
        **outside,
        false_alarm=float((inside_N < head.threshold).mean()),
        ece=calibration_error(probabilities_NI.max(axis=1), right_N),
        fit_s=fit_s,
        embed_s=embed_s,
        p50_ms=p50,
        p95_ms=p95,
    )


@dataclass(frozen=True, slots=True)
class IntentHead:
    """Softmax regression on unit embeddings; ``calibrated`` is the same with a temperature (Guo et al. 2017).

    A question is in scope by the logarithm of the sum of its exponentiated logits, the negative free energy (Liu et al.
    2020): unlike the largest probability it does not fall because two intents are near each other.
    """

    model: LogisticRegression
    calibrated: CalibratedClassifierCV
    threshold: float

    @classmethod
    def fit(cls, train: Embedded, validation: Embedded) -> IntentHead:
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.frozen import FrozenEstimator
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=INVERSE_L2, max_iter=1000).fit(*train)
        calibrated = CalibratedClassifierCV(FrozenEstimator(model), method="temperature").fit(*validation)
        untold = cls(model, calibrated, float("-inf"))
        return replace(untold, threshold=float(np.quantile(untold.in_scope(validation[0]), FALSE_ALARMS)))

    @property
    def intents(self) -> NDArray[np.str_]:
        return np.asarray(self.model.classes_)

    def probabilities(self, features_ND: NDArray[np.float32]) -> NDArray[np.float64]:
        """Shape (N, I), each row of sum one."""
        return np.asarray(self.calibrated.predict_proba(features_ND), dtype=np.float64)

    def in_scope(self, features_ND: NDArray[np.float32]) -> NDArray[np.float64]:
        """Shape (N,): the higher the surer; under ``threshold`` a question belongs to no intent."""
        return np.asarray(np.logaddexp.reduce(self._logits(features_ND), axis=1), dtype=np.float64)

    def decide(self, feature_D: NDArray[np.float32]) -> str | None:
        """The intent, or ``None`` where the question belongs to none."""
        logits_I = self._logits(feature_D[None, :])[0]
        return None if np.logaddexp.reduce(logits_I) < self.threshold else str(self.intents[logits_I.argmax()])

    def _logits(self, features_ND: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(features_ND @ self.model.coef_.T + self.model.intercept_, dtype=np.float64)


def _out_of_scope(head: IntentHead, inside_N: NDArray[np.float64], outside_ND: NDArray[np.float32]) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    outside_N = head.in_scope(outside_ND)
    is_outside_N = np.repeat([0, 1], [len(inside_N), len(outside_N)])
    doubt_N = -np.concatenate([inside_N, outside_N])
    return {
        "auroc": float(roc_auc_score(is_outside_N, doubt_N)),
        "auprc": float(average_precision_score(is_outside_N, doubt_N)),
        "oos_recall": float((outside_N < head.threshold).mean()),
    }


def _embedded(rows: Labelled, encoder: TextEncoder, what: str, *, progress: bool) -> Embedded:
    vectors_ND = embed([question for question, _ in rows], encoder, f"embed {what}", progress=progress)
    return vectors_ND, np.array([intent for _, intent in rows])


def _latency_ms(head: IntentHead, encoder: TextEncoder, questions: Sequence[str]) -> tuple[float, float]:
    """The 50th and the 95th percentile over questions that the encoder does not remember."""
    seconds = []
    for question in list(dict.fromkeys(questions))[:TIMED]:
        started = time.perf_counter()
        head.decide(encoder.encode(question))
        seconds.append(time.perf_counter() - started)
    p50, p95 = np.percentile(np.array(seconds) * 1000, [50, 95])
    return float(p50), float(p95)
