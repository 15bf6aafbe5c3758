"""Mechanisms that somebody chooses after seeing the releases before."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr

from cohortium.privacy import accounting
from cohortium.privacy.accounting import (
    GaussianMechanism,
    RenyiBoundedMechanism,
    adaptive_epsilon,
    compose,
    within_budget,
)
from cohortium.privacy.mechanisms import ORDERS, losses

EPSILON, DELTA = 6.0, 1.9e-4
POINTS = np.linspace(-8.0, 8.0, 801)
CHANCES = np.exp(-(POINTS**2) / 2) / np.exp(-(POINTS**2) / 2).sum()

Reals = NDArray[np.float64]


def remaining_delta(mechanism: GaussianMechanism, epsilon: Reals) -> Reals:
    """Return δ at each ε of one release, where a unit is removed.

    It is E[(1 - e^(ε - loss))⁺], by an integral over the noise of the data with the unit.
    """
    rate, mu = mechanism.sampling_rate, 1 / mechanism.noise_multiplier
    if rate == 1:
        second = np.exp(np.minimum(epsilon + log_ndtr(-mu / 2 - epsilon / mu), 0.0))
        exact: Reals = np.maximum(ndtr(mu / 2 - epsilon / mu) - second, 0.0)
        return exact
    found = np.zeros_like(epsilon)
    for share, z in ((1 - rate, POINTS), (rate, POINTS + mu)):
        gap = epsilon[:, None] - losses(rate, mu, z)[None, :]
        found += share * (-np.expm1(np.minimum(gap, 0.0)) @ CHANCES)
    return found


def chosen_delta(first: GaussianMechanism, choices: list[GaussianMechanism]) -> float:
    """Return δ at `EPSILON` if the second release is the worst one for each loss of the first."""
    mu = 1 / first.noise_multiplier
    loss = mu * POINTS + mu**2 / 2
    worst = np.max([remaining_delta(each, EPSILON - loss) for each in choices], axis=0)
    return float(worst @ CHANCES)


def least_noise(first: GaussianMechanism, rate: float) -> GaussianMechanism:
    """Return the second release with the least noise with which both are a list in the budget."""
    low, high = 0.05, 50.0
    while high > 1.001 * low:
        noise = math.sqrt(low * high)
        second = GaussianMechanism(noise_multiplier=noise, sampling_rate=rate)
        fits = within_budget([(first, 1), (second, 1)], epsilon=EPSILON, delta=DELTA)
        low, high = (low, noise) if fits else (noise, high)
    return GaussianMechanism(noise_multiplier=high, sampling_rate=rate)


def test_a_choice_reaches_more_than_each_list() -> None:
    """Why a ledger cannot rely on the bound of lists, and that the filter refuses such a choice."""
    first = GaussianMechanism(noise_multiplier=0.9)
    choices = [least_noise(first, 1.0), least_noise(first, 1e-3)]
    for each in choices:
        (list_,) = compose([(first, 1), (each, 1)], DELTA)
        assert list_.epsilon <= EPSILON
        assert chosen_delta(first, [each]) == pytest.approx(DELTA, rel=0.02)
    assert chosen_delta(first, choices) > 1.8 * DELTA
    assert any(
        adaptive_epsilon([(first, 1), (each, 1)], epsilon=EPSILON, delta=DELTA) > EPSILON
        for each in choices
    )


@given(
    noise=st.floats(0.6, 5.0),
    choices=st.lists(
        st.tuples(st.floats(0.2, 5.0), st.sampled_from([1e-4, 1e-3, 0.01, 0.1, 0.4, 1.0])),
        min_size=1,
        max_size=4,
    ),
)
@settings(max_examples=20, deadline=None)
def test_choice_that_the_filter_admits_stays_within_delta(
    noise: float, choices: list[tuple[float, float]]
) -> None:
    first = GaussianMechanism(noise_multiplier=noise)
    each = [GaussianMechanism(noise_multiplier=s, sampling_rate=q) for s, q in choices]
    admitted = [
        one
        for one in each
        if adaptive_epsilon([(first, 1), (one, 1)], epsilon=EPSILON, delta=DELTA) <= EPSILON
    ]
    assume(admitted)
    assert chosen_delta(first, admitted) <= DELTA


@given(
    epsilon=st.floats(0.1, 20.0),
    delta=st.sampled_from([1e-9, 1e-5, 1e-3]),
    kinds=st.lists(
        st.tuples(st.floats(0.5, 20.0), st.sampled_from([0.01, 0.4, 1.0]), st.integers(1, 50)),
        min_size=1,
        max_size=3,
    ),
)
@settings(max_examples=20, deadline=None)
def test_filter_is_above_the_bound_of_the_list_and_grows(
    epsilon: float, delta: float, kinds: list[tuple[float, float, int]]
) -> None:
    spends: list[tuple[accounting.Mechanism, int]] = [
        (GaussianMechanism(noise_multiplier=s, sampling_rate=q), n) for s, q, n in kinds
    ]
    found = adaptive_epsilon(spends, epsilon=epsilon, delta=delta)
    (list_,) = compose(spends, delta)
    assert found >= list_.epsilon * (1 - 1e-9)
    assert adaptive_epsilon(spends[:-1], epsilon=epsilon, delta=delta) <= found


def test_filter_of_no_releases_is_zero_where_gaussian_noise_is() -> None:
    assert adaptive_epsilon([], epsilon=1.0, delta=1e-5) == 0.0
    curve = RenyiBoundedMechanism(name="curve", bounds=(math.inf,) * len(ORDERS))
    assert math.isinf(adaptive_epsilon([(curve, 1)], epsilon=1.0, delta=1e-5))
