from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from cohortium.data.multiclass import Multiclass
from cohortium.data.scores import BINS, MAX_POINTS, interval


def example(seed: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(k), rng.integers(0, k, n)])
    logits = rng.normal(size=(n + k, k)).round(1) + 2 * np.eye(k)[labels]
    odds = np.exp(logits)
    return odds / odds.sum(1, keepdims=True), labels


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 60), k=st.integers(2, 6))
def test_scores_equal_scikit_learns(seed: int, n: int, k: int) -> None:
    p, y = example(seed, n, k)
    scores = Multiclass(tuple("abcdef"[:k])).score(p, y)
    assert scores.metrics["accuracy"] == pytest.approx(metrics.accuracy_score(y, p.argmax(1)))
    assert scores.metrics["balanced_accuracy"] == pytest.approx(
        metrics.balanced_accuracy_score(y, p.argmax(1))
    )
    areas = [metrics.roc_auc_score(y == c, p[:, c]) for c in range(k)]
    assert scores.metrics["auc"] == pytest.approx(np.mean(areas))
    assert scores.metrics["loss"] == pytest.approx(metrics.log_loss(y, p, labels=range(k)))
    assert np.array_equal(
        scores.confusion, metrics.confusion_matrix(y, p.argmax(1), labels=range(k))
    )
    assert scores.metrics["mcc"] == pytest.approx(metrics.matthews_corrcoef(y, p.argmax(1)))
    for c, curve in enumerate(scores.curves):
        false, true, _ = metrics.roc_curve(y == c, p[:, c], drop_intermediate=False)
        if len(false) <= MAX_POINTS:
            np.testing.assert_allclose(curve.points, np.stack([false, true], 1))
        assert (curve.points[0], curve.points[-1]) == ((0, 0), (1, 1))
    recall = metrics.recall_score(y, p.argmax(1), labels=range(k), average=None, zero_division=0)
    assert [c.metrics["sensitivity"] for c in scores.per_class] == pytest.approx(list(recall))


def test_a_class_without_images_has_no_sensitivity() -> None:
    scores = Multiclass(("a", "b")).score(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]))
    assert scores.per_class[1].metrics["sensitivity"] is None
    assert scores.per_class[1].metrics["specificity"] == 0.5
    assert scores.metrics["auc"] is None
    assert scores.metrics["balanced_accuracy"] == 0.5


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 60), k=st.integers(2, 6))
def test_bins_partition_images_and_give_calibration_error(seed: int, n: int, k: int) -> None:
    p, y = example(seed, n, k)
    scores = Multiclass(tuple("abcdef"[:k])).score(p, y)
    sure, right = p.max(1), p.argmax(1) == y
    expected = 0.0
    for number, part in enumerate(scores.calibration):
        inside = (sure > number / BINS) & (sure <= (number + 1) / BINS)
        assert part.examples == inside.sum()
        if part.examples:
            assert part.confidence == pytest.approx(sure[inside].mean())
            assert part.accuracy == pytest.approx(right[inside].mean())
            expected += inside.mean() * abs(sure[inside].mean() - right[inside].mean())
        else:
            assert part.confidence is part.accuracy is None
    assert sum(part.examples for part in scores.calibration) == len(y)
    assert scores.calibration_error == pytest.approx(expected)


def test_outputs_that_overflowed_are_scored_in_finite_numbers() -> None:
    scores = Multiclass(("a", "b")).score(
        np.array([[np.nan, np.nan], [0.2, 0.8]]), np.array([1, 1])
    )
    assert scores.metrics["accuracy"] == 0.5
    assert scores.loss is not None
    assert np.isfinite(scores.loss)
    assert sum(part.examples for part in scores.calibration) == 2
    assert scores.calibration_error == pytest.approx(0.1)


def test_certain_and_zero_confidence_predictions_are_binned() -> None:
    scores = Multiclass(("a", "b")).score(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([0, 1]))
    assert scores.calibration[-1].examples == scores.calibration[0].examples == 1
    assert scores.calibration_error == 0.0


@settings(deadline=None)
@given(trials=st.integers(1, 400), data=st.data())
def test_interval_matches_wilson_score(trials: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, trials))
    low, high = interval(hits, trials)
    expected = stats.binomtest(hits, trials).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert 0 <= low <= hits / trials <= high + 1e-12
