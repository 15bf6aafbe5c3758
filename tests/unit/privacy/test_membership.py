"""Bounds on membership attacks, against closed formulas, dp-accounting's curve and an attack."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from cohortium.privacy.accounting import compose
from cohortium.privacy.mechanisms import GaussianMechanism
from cohortium.privacy.membership import membership_bounds


def gaussian(noise: float, rate: float = 1.0) -> GaussianMechanism:
    return GaussianMechanism(noise_multiplier=noise, sampling_rate=rate)


@pytest.mark.parametrize(
    ("mu", "rates"),
    [(1.51, (0.057, 0.207)), (0.33, (0.003, 0.023))],
    ids=["epsilon 6 at 1.9e-4", "epsilon 1 at 1.9e-4"],
)
def test_known_bounds_of_a_gaussian(mu: float, rates: tuple[float, float]) -> None:
    found = membership_bounds([(gaussian(1 / mu), 1)])
    assert [each.false_positive_rate for each in found] == [0.001, 0.01]
    assert [each.true_positive_rate for each in found] == pytest.approx(rates, abs=1e-3)


def test_rounds_compose() -> None:
    once = membership_bounds([(gaussian(0.5), 1)])
    spread = membership_bounds([(gaussian(1.0), 2), (gaussian(2.0), 8)])
    assert [each.true_positive_rate for each in spread] == pytest.approx(
        [each.true_positive_rate for each in once]
    )


def test_bound_is_reached_by_the_likelihood_ratio_test() -> None:
    rng = np.random.default_rng(0)
    absent, present = rng.normal(size=200_000), 1.5 + rng.normal(size=200_000)
    (bound,) = membership_bounds([(gaussian(1 / 1.5), 1)], [0.01])
    found = (present > np.quantile(absent, 0.99)).mean()
    assert found == pytest.approx(bound.true_positive_rate, abs=0.01)


@settings(max_examples=8)
@given(
    noise=st.floats(0.7, 8.0), rate=st.floats(0.01, 0.9), rounds=st.integers(1, 60),
    alpha=st.sampled_from([0.001, 0.01, 0.1]),
)  # fmt: skip
def test_sampled_bound_lies_between_guessing_and_no_sampling(
    noise: float, rate: float, rounds: int, alpha: float
) -> None:
    (sampled,) = membership_bounds([(gaussian(noise, rate), rounds)], [alpha])
    (whole,) = membership_bounds([(gaussian(noise), rounds)], [alpha])
    # The searched bound is above the exact curve, by a tenth of its distance to 1 at most here.
    assert alpha <= sampled.true_positive_rate <= 1
    (spent,) = compose([(gaussian(noise, rate), rounds)], 1e-5)
    by_one_point = math.exp(min(700.0, spent.epsilon)) * alpha + 1e-5
    assert sampled.true_positive_rate <= min(1.0, by_one_point) * 1.001
    assert sampled.true_positive_rate <= whole.true_positive_rate * 1.35 + 0.02


def test_sampled_bound_exceeds_one_sampled_release() -> None:
    """A release of one example at rate q: an attack's power is a mixture, computed exactly."""
    noise, rate, alpha = 1.0, 0.5, 0.01
    (bound,) = membership_bounds([(gaussian(noise, rate), 1)], [alpha])
    threshold = norm.isf(alpha)
    power = (1 - rate) * alpha + rate * norm.sf(threshold - 1 / noise)
    assert power <= bound.true_positive_rate <= 1.4 * power
