from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from expert_router.routing.head import Calibration, LinearHead, fit_calibration, fit_head, fit_weighted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

D = 12


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def features(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32)


def drawn(probabilities: Array, seed: int = 1) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(probabilities.shape) < probabilities


def a_direction(seed: int, length: float) -> Array:
    w = np.random.default_rng(seed).normal(size=D)
    return np.asarray(w / np.linalg.norm(w) * length)


def calibration_error(predicted: NDArray[np.float32], true: NDArray[np.bool_], bins: int = 10) -> float:
    """Expected calibration error (Naeini et al. 2015): how far, on average, what is said is from what happens."""
    which = np.minimum((predicted * bins).astype(int), bins - 1)
    gaps = [
        (which == b).mean() * abs(predicted[which == b].mean() - true[which == b].mean())
        for b in range(bins)
        if (which == b).any()
    ]
    return float(sum(gaps))


def test_a_separable_problem_is_recovered_and_holds_for_unseen_examples() -> None:
    w = np.stack([a_direction(seed, 1.0) for seed in (1, 2, 3)])
    x = features(3000)
    x = x[(np.abs(x @ w.T) > 0.1).all(axis=1)]  # a margin on both sides
    train, test = x[:1500], x[1500:]
    head = fit_head(train, train @ w.T > 0, l2=0.01)
    for seen in (train, test):
        assert np.array_equal(head.probabilities(seen) > 0.5, seen @ w.T > 0)


def test_the_weights_behind_noisy_labels_are_found() -> None:
    w, bias = a_direction(4, 3.0), -0.7
    x = features(20_000)
    head = fit_head(x, drawn(sigmoid(x @ w + bias))[:, None], l2=1e-3)
    assert head.weights_LD[0] == pytest.approx(w, abs=0.15)
    assert head.bias_L[0] == pytest.approx(bias, abs=0.1)


def test_the_fit_is_where_the_penalised_loss_is_lowest() -> None:
    """Its gradient, X'(p - y) + l2 w for the weights and sum(p - y) for the bias, is zero there."""
    x, l2 = features(400), 2.0
    y = drawn(sigmoid(x @ a_direction(4, 2.0)))[:, None]
    head = fit_head(x, y, l2)
    residual = head.probabilities(x)[:, 0].astype(np.float64) - y[:, 0]
    assert x.T @ residual + l2 * head.weights_LD[0] == pytest.approx(np.zeros(D), abs=1e-2)
    assert residual.sum() == pytest.approx(0.0, abs=1e-2)


def test_each_label_is_fitted_as_if_it_were_alone() -> None:
    x = features(500)
    y = np.stack([x[:, 0] > 0, x[:, 1] > 0.5, drawn(np.full(500, 0.3))], axis=1)
    together = fit_head(x, y, l2=0.1)
    for label in range(3):
        alone = fit_head(x, y[:, label : label + 1], l2=0.1)
        assert np.array_equal(together.weights_LD[label], alone.weights_LD[0])
        assert together.bias_L[label] == alone.bias_L[0]


def test_probabilities_are_independent_of_each_other() -> None:
    """Several may be true at once, and none: they do not share a sum."""
    head = LinearHead(np.eye(3, dtype=np.float32), np.zeros(3, dtype=np.float32))
    all_three, none, one = head.probabilities(
        np.array([[9, 9, 9], [-9, -9, -9], [9, -9, 0]], dtype=np.float32)
    )  # fmt: skip
    assert (all_three > 0.99).all()
    assert (none < 0.01).all()
    assert one == pytest.approx([1, 0, 0.5], abs=0.01)


def test_a_several_experts_problem_is_learned_as_such() -> None:
    x = features(2000)
    needed = np.stack([x[:, 0] > 0, x[:, 1] > 0], axis=1)
    labels = np.column_stack([needed, ~needed.any(axis=1)])
    p = fit_head(x, labels, l2=0.01).probabilities(x)
    both = needed.all(axis=1)
    assert (p[both][:, :2] > 0.5).mean() > 0.99
    assert p[both].sum(axis=1).mean() > 1.8


def test_a_heavier_penalty_means_smaller_weights_and_leaves_the_bias_free() -> None:
    x = features(400)
    y = x[:, :1] > -1.0  # mostly true
    norms = [float(np.linalg.norm(fit_head(x, y, l2).weights_LD)) for l2 in (0.01, 1.0, 100.0, 1e6)]
    assert norms == sorted(norms, reverse=True)
    crushed = fit_head(x, y, 1e6)
    assert crushed.probabilities(x).mean() == pytest.approx(y.mean(), abs=0.01)


@pytest.mark.parametrize("value", [False, True])
def test_a_label_that_never_varies_is_still_a_fit(value: bool) -> None:
    x = features(50)
    p = fit_head(x, np.full((50, 1), value), l2=1.0).probabilities(x)
    assert (np.abs(p - value) < 0.01).all()


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e4, 1e30])
def test_any_features_give_probabilities(size: float) -> None:
    head = LinearHead(np.ones((2, D), dtype=np.float32), np.array([0.0, -3.0], dtype=np.float32))
    p = head.probabilities(features(100) * np.float32(size))
    assert (p.shape, p.dtype) == ((100, 2), np.float32)
    assert ((p >= 0) & (p <= 1)).all()


def test_calibration_scales_each_labels_logit_and_adds_its_own_features() -> None:
    logits, extras = features(50)[:, :2], features(50, seed=6)[:, :4].reshape(50, 2, 2)
    weights = np.array([[2.0, 0.5, -1.0, 1.0], [0.5, 0.0, 3.0, -1.0]], dtype=np.float32)
    expected = (
        logits * weights[:, 0] + extras[:, :, 0] * weights[:, 1] + extras[:, :, 1] * weights[:, 2] + weights[:, 3]
    )
    assert Calibration(weights).probabilities(logits, extras) == pytest.approx(sigmoid(expected), abs=1e-5)


def test_a_further_feature_is_used_where_the_logit_errs() -> None:
    """The head sees one half of what decides, the feature the other."""
    x = features(4000)
    truth = (x[:, :1] + x[:, 1:2]) > 0
    logits, feature = x[:, :1], x[:, 1:2, None]
    nothing = np.zeros((4000, 1, 0), dtype=np.float32)
    alone = fit_calibration(logits, nothing, truth).probabilities(logits, nothing)
    together = fit_calibration(logits, feature, truth).probabilities(logits, feature)
    assert ((alone > 0.5) == truth).mean() < 0.8
    assert ((together > 0.5) == truth).mean() > 0.98


@pytest.mark.parametrize(("too_steep", "offset"), [(6.0, 0.0), (0.2, 0.0), (3.0, 2.0), (1.0, -3.0)])
def test_platt_scaling_mends_a_miscalibrated_head(too_steep: float, offset: float) -> None:
    """Over-confident, under-confident or leaning to one side: measured on examples that neither fit has seen."""
    w = np.stack([a_direction(1, 1.5), a_direction(2, 1.5)])
    head = LinearHead((w * too_steep).astype(np.float32), np.full(2, offset, dtype=np.float32))
    calibration, test = features(4000, seed=2), features(8000, seed=3)
    none = np.zeros((4000, 2, 0), dtype=np.float32)
    calibrated = fit_calibration(head.logits(calibration), none, drawn(sigmoid(calibration @ w.T), seed=4))
    truth = drawn(sigmoid(test @ w.T), seed=5)
    mended = calibrated.probabilities(head.logits(test), np.zeros((8000, 2, 0), dtype=np.float32))
    for label in range(2):
        before = calibration_error(head.probabilities(test)[:, label], truth[:, label])
        after = calibration_error(mended[:, label], truth[:, label])
        assert before > 0.08
        assert after < 0.03


def no_features(n: int, labels: int = 1) -> NDArray[np.float32]:
    return np.zeros((n, labels, 0), dtype=np.float32)


def test_platt_scaling_keeps_the_order_of_the_scores() -> None:
    x = features(2000)
    w = a_direction(1, 1.0)
    logits = LinearHead((w[None] * 5).astype(np.float32), np.ones(1, dtype=np.float32)).logits(x)
    calibration = fit_calibration(logits, no_features(2000), drawn(sigmoid(x @ w))[:, None])
    calibrated = calibration.probabilities(logits, no_features(2000))[:, 0]
    assert (np.diff(calibrated[np.argsort(logits[:, 0])]) >= -1e-6).all()


def test_platt_scaling_leaves_a_calibrated_head_nearly_alone() -> None:
    x = features(20_000)
    w = a_direction(1, 2.0)
    logits = LinearHead(w[None].astype(np.float32), np.zeros(1, dtype=np.float32)).logits(x)
    calibration = fit_calibration(logits, no_features(20_000), drawn(sigmoid(x @ w))[:, None])
    assert calibration.weights_LF == pytest.approx(np.array([[1.0, 0.0]]), abs=0.1)


def test_platt_scaling_survives_calibration_examples_that_it_separates() -> None:
    x = features(300)
    y = x[:, :1] > 0
    logits = fit_head(x, y, l2=1.0).logits(x)
    calibration = fit_calibration(logits, no_features(300), y)
    assert np.isfinite(calibration.weights_LF).all()
    assert ((calibration.probabilities(logits, no_features(300)) > 0.5) == y).mean() > 0.97


# Examples that weigh differently


def weighted_problem(n: int = 300) -> tuple[Array, NDArray[np.bool_], Array]:
    x = features(n).astype(np.float64)
    return x, drawn(sigmoid(x @ a_direction(4, 2.0) - 0.5)), np.random.default_rng(7).integers(1, 6, n).astype(float)


def plain_penalty(l2: float) -> Array:
    """On the weights, and next to none on the bias."""
    return np.append(np.full(D, l2), 1e-6)


@pytest.mark.parametrize("l2", [0.1, 1.0, 10.0])
def test_a_weighted_fit_is_scikit_learns(l2: float) -> None:
    from sklearn.linear_model import LogisticRegression

    x, y, weights = weighted_problem()
    theirs = LogisticRegression(C=1 / l2, tol=1e-8, max_iter=1000).fit(x, y, sample_weight=weights)
    expected = np.append(theirs.coef_[0], theirs.intercept_)
    assert fit_weighted(x, y, weights, plain_penalty(l2)) == pytest.approx(expected, abs=2e-3)


def test_to_weigh_thrice_is_to_be_there_thrice() -> None:
    x, y, weights = weighted_problem()
    times = weights.astype(int)
    repeated = fit_weighted(x.repeat(times, axis=0), y.repeat(times), np.ones(times.sum()), plain_penalty(1.0))
    assert fit_weighted(x, y, weights, plain_penalty(1.0)) == pytest.approx(repeated, abs=1e-3)
    assert fit_weighted(x, y, np.ones(len(x)), plain_penalty(1.0)) != pytest.approx(repeated, abs=1e-2)


def test_a_weighted_fit_is_drawn_towards_its_centre_the_more_the_heavier_the_penalty() -> None:
    x, y, weights = weighted_problem()
    centre = np.linspace(-3, 3, D + 1)
    far = [
        float(np.linalg.norm(fit_weighted(x, y, weights, np.full(D + 1, l2), towards=centre) - centre))
        for l2 in (0.01, 10.0, 1e3, 1e7)
    ]
    assert far == sorted(far, reverse=True)
    assert far[0] > 1.0
    assert far[-1] < 1e-3


@pytest.mark.parametrize("start", [np.full(D + 1, 5.0), np.full(D + 1, -50.0), np.append(np.zeros(D), 20.0)])
def test_where_a_weighted_fit_starts_does_not_matter_and_is_left_as_it_was(start: Array) -> None:
    x, y, weights = weighted_problem()
    given = start.copy()
    from_there = fit_weighted(x, y, weights, plain_penalty(1.0), start=given)
    assert from_there == pytest.approx(fit_weighted(x, y, weights, plain_penalty(1.0)), abs=2e-3)
    assert np.array_equal(given, start)


def plain_newton(x: Array, y: NDArray[np.bool_], weights: Array, penalty: Array) -> Array:
    """What ``fit_weighted`` would be if it took whole steps."""
    x = np.hstack([x, np.ones((len(x), 1))])
    w = np.zeros(x.shape[1])
    for _ in range(30):
        p = sigmoid(np.clip(x @ w, -40, 40))
        gradient = x.T @ (weights * (p - y)) + penalty * w
        w = w - np.linalg.solve((x.T * (weights * np.maximum(p * (1 - p), 1e-9))) @ x + np.diag(penalty), gradient)
    return w


def penalised_cost(w: Array, x: Array, y: NDArray[np.bool_], weights: Array, penalty: Array) -> float:
    z = x @ w[:-1] + w[-1]
    return float((weights * (np.logaddexp(0, z) - y * z)).sum() + (penalty * w**2).sum() / 2)


def test_few_heavy_examples_are_fitted_where_plain_newton_overshoots() -> None:
    """Five examples that can be told from 295 others, and weigh ten thousand times as much."""
    from sklearn.linear_model import LogisticRegression

    x = np.random.default_rng(2).normal(size=(300, D))
    y = np.arange(300) < 5
    x[y, 0] += 2.0
    problem = (x, y, np.where(y, 1e4, 1.0), plain_penalty(1e-3))
    w = fit_weighted(*problem)
    theirs = LogisticRegression(C=1e3, tol=1e-10, max_iter=10_000).fit(x, y, sample_weight=problem[2])
    best = penalised_cost(np.append(theirs.coef_[0], theirs.intercept_), *problem)
    assert penalised_cost(w, *problem) == pytest.approx(best, rel=1e-3)
    assert (sigmoid(x[y] @ w[:-1] + w[-1]) > 0.99).all()
    assert penalised_cost(plain_newton(*problem), *problem) > 1e6


def test_the_same_weighted_problem_has_the_same_answer_to_the_last_bit() -> None:
    problem = (*weighted_problem(), plain_penalty(1.0))
    assert np.array_equal(fit_weighted(*problem), fit_weighted(*problem))
