"""Intervals of noised scores hold the exact score, and the population's, as often as they say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from cohortium.data.estimates import (
    AUC_BINS,
    Ratio,
    area_ratio,
    area_rows,
    areas,
    mean_of_ratios,
    mean_ratio,
    share_ratio,
)
from cohortium.data.scores import interval
from cohortium.privacy.accounting import GaussianMechanism, calibrate_noise_multiplier

if TYPE_CHECKING:
    from numpy.typing import NDArray

REPEATS = 1000
LEAST, MOST = 0.93, 0.97


def noise_of(epsilon: float) -> float:
    """Return the noise of four parts with equal shares, at the paper's δ."""

    def once(noise: float) -> GaussianMechanism:
        return GaussianMechanism(noise_multiplier=noise, sampling_rate=1.0, num_releases=1)

    return 2 * calibrate_noise_multiplier(once, epsilon=epsilon, delta=1.9e-4, attempts=1)


@given(hits=st.integers(0, 500), misses=st.integers(0, 500))
def test_without_noise_a_share_has_the_interval_of_wilson(hits: int, misses: int) -> None:
    if hits + misses == 0:
        return
    found = share_ratio(hits, misses, noise=0.0).estimate("accuracy")
    low, high = interval(hits, hits + misses)
    assert found.low == pytest.approx(low, abs=1e-9)
    assert found.high == pytest.approx(high, abs=1e-9)
    assert found.noise_low == pytest.approx(found.noise_high, abs=1e-6)


@given(hits=st.floats(-50, 500), misses=st.floats(-50, 500), noise=st.floats(0, 100))
def test_an_interval_lies_in_the_range_and_holds_the_noise_alone(
    hits: float, misses: float, noise: float
) -> None:
    found = share_ratio(hits, misses, noise=noise).estimate("accuracy")
    assert 0 <= found.low <= found.noise_low <= found.noise_high <= found.high <= 1
    if found.value is not None and 0 <= found.value <= 1:
        assert found.noise_low <= found.value <= found.noise_high


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("examples", [200, 949])
def test_intervals_for_noise_hold_the_exact_score(epsilon: float, examples: int) -> None:
    rng, noise = np.random.default_rng(0), noise_of(epsilon)
    label = rng.integers(0, 4, examples)
    right = rng.random(examples) < 0.9
    hits, misses = (np.bincount(label[part], minlength=4) for part in (right, ~right))
    odds = rng.normal(size=examples) * 1.5 + 2.5 * (label == 0) - 1.2
    rows = area_rows(
        torch.from_numpy(odds).sigmoid()[:, None], torch.from_numpy(label == 0)[:, None]
    )
    bins = rows.sum(0).numpy()
    exact = {
        "accuracy": right.mean(),
        "sensitivity": hits[0] / (hits + misses)[0],
        "balanced": (hits / (hits + misses)).mean(),
        "auc": areas(bins, noise=0.0)[0].value,
    }
    held = dict.fromkeys(exact, 0)
    hidden = dict.fromkeys(exact, 0)
    for _ in range(REPEATS):
        by_class = [
            share_ratio(h + noise * rng.normal(), m + noise * rng.normal(), noise=noise)
            for h, m in zip(hits, misses, strict=True)
        ]
        noised = bins + noise * rng.normal(size=len(bins))
        found = {
            "accuracy": share_ratio(
                right.sum() + noise * rng.normal(),
                (~right).sum() + noise * rng.normal(),
                noise=noise,
            ).estimate("accuracy"),
            "sensitivity": by_class[0].estimate("sensitivity"),
            "balanced": mean_of_ratios(by_class, "balanced"),
            "auc": areas(noised, noise=noise)[0].estimate("auc"),
        }
        for name, estimate in found.items():
            value = exact[name]
            assert value is not None
            held[name] += estimate.noise_low <= value <= estimate.noise_high
            hidden[name] += estimate.is_hidden
    for name, count in held.items():
        # Where noise often hides a score, its interval is the whole range, and holds any score.
        most = MOST if hidden[name] < REPEATS / 10 else 1.0
        assert LEAST <= count / REPEATS <= most, (name, count, hidden[name])


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("examples", [200, 949])
def test_intervals_for_sampling_and_noise_hold_the_score_of_the_population(
    epsilon: float, examples: int
) -> None:
    rng, noise, accuracy, separation = np.random.default_rng(1), noise_of(epsilon), 0.85, 1.5
    # P(X > Y) of two normal variables.
    auc = float(torch.special.ndtr(torch.tensor(separation / 2**0.5)))
    held = {"accuracy": 0, "auc": 0}
    hidden = 0
    for _ in range(REPEATS):
        hits = rng.binomial(examples, accuracy)
        share = share_ratio(
            hits + noise * rng.normal(), examples - hits + noise * rng.normal(), noise=noise
        ).estimate("accuracy")
        held["accuracy"] += share.low <= accuracy <= share.high
        positive = rng.random(examples) < 0.4
        odds = rng.normal(size=examples) + separation * positive
        bins = (
            area_rows(
                torch.from_numpy(odds).sigmoid()[:, None], torch.from_numpy(positive)[:, None]
            )
            .sum(0)
            .numpy()
        )
        area = areas(bins + noise * rng.normal(size=len(bins)), noise=noise)[0].estimate("auc")
        held["auc"] += area.low <= auc <= area.high
        hidden += area.is_hidden
    assert LEAST <= held["accuracy"] / REPEATS <= MOST
    assert LEAST <= held["auc"] / REPEATS <= (MOST if hidden < REPEATS / 10 else 1.0)


def test_the_mean_of_values_holds_the_exact_mean() -> None:
    rng, values, noise = np.random.default_rng(2), np.random.default_rng(3).random(400), 8.0
    held = 0
    for _ in range(REPEATS):
        found = mean_ratio(
            values.sum() + noise * rng.normal(),
            len(values) + noise * rng.normal(),
            noise=noise,
            spread=float(values.var()),
        ).estimate("dice")
        held += found.noise_low <= values.mean() <= found.noise_high
    assert LEAST <= held / REPEATS <= MOST


def histograms(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    positive = rng.random(300) < 0.3
    return rng.normal(size=300) * 2 + positive, positive


def test_the_area_of_bins_is_close_to_that_of_scikit_learn() -> None:
    odds, positive = histograms(np.random.default_rng(4))
    shares = torch.from_numpy(odds).sigmoid()[:, None]
    sums = area_rows(shares, torch.from_numpy(positive)[:, None]).sum(0).numpy()
    found = areas(sums, noise=0.0)[0]
    assert found.value == pytest.approx(roc_auc_score(positive, odds), abs=0.01)
    bins = sums.reshape(2, AUC_BINS)
    grades = np.tile(np.arange(AUC_BINS), 2)
    kinds = np.repeat([0, 1], AUC_BINS)
    exact = roc_auc_score(kinds, grades, sample_weight=bins.reshape(-1))
    assert found.value == pytest.approx(exact, abs=1e-9)


def test_without_one_kind_of_examples_there_is_no_area() -> None:
    found = area_ratio(np.zeros(AUC_BINS), np.ones(AUC_BINS), noise=1.0).estimate("auc")
    assert found.value is None
    assert (found.low, found.high, found.is_hidden) == (0.0, 1.0, True)


def test_a_value_beyond_its_range_is_not_cut() -> None:
    found = share_ratio(105.0, -5.0, noise=4.0).estimate("accuracy")
    assert found.value == pytest.approx(1.05)
    assert found.high == 1.0


def test_a_mean_without_any_value_is_hidden() -> None:
    assert mean_of_ratios([Ratio(part=1.0, whole=0.0)], "dice").is_hidden
