"""What counts refute: known answers, coverage, and what one run cannot show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from cohortium.auditing.bounds import (
    Counts,
    epsilon_bound,
    epsilon_bound_of_one_run,
    max_detectable_epsilon,
    max_detectable_epsilon_of_one_run,
    p_value,
    p_value_of_one_run,
)
from cohortium.auditing.hypothesis_samples import Claim, HypothesisSamples
from cohortium.privacy.accounting import GaussianMechanism, compose


@pytest.mark.parametrize(
    ("trials", "factor", "product"),
    [
        # The largest of (1 - p)ⁿ·(c·p)ⁿ over p: at p = 1/2, or where c·p = 1.
        (10, 1.0, 4.0**-10),
        (10, 1.5, (1.5 / 4) ** 10),
        (25, 4.0, 0.75**25),
        (400, 20.0, 0.95**400),
    ],
)
def test_p_value_all_correct_matches_closed_form(
    trials: int, factor: float, product: float
) -> None:
    found = p_value(
        Counts(true_positives=trials, false_positives=0, trials=trials),
        epsilon=math.log(factor),
        delta=0.0,
    )
    assert found == pytest.approx(product * (1 - math.log(product)), rel=1e-6)


@given(
    hits=st.integers(0, 60),
    alarms=st.integers(0, 60),
    epsilon=st.floats(0, 4),
    delta=st.floats(0, 0.5),
)
@settings(max_examples=60, deadline=None)
def test_p_value_maximises_over_false_positive_rate(
    hits: int, alarms: int, epsilon: float, delta: float
) -> None:
    n = 60
    chance = np.linspace(0, 1, 4001)
    quiet = binom.cdf(alarms, n, chance)
    loud = binom.sf(hits - 1, n, np.minimum(1.0, math.exp(epsilon) * chance + delta))
    worst = float((quiet * loud).max())
    found = p_value(
        Counts(true_positives=hits, false_positives=alarms, trials=n), epsilon=epsilon, delta=delta
    )
    wanted = worst * (1 - math.log(max(worst, 1e-300)))
    # One where the counts are within the claim; else the maximum, which a grid comes just below.
    assert found >= 0.999 * wanted
    assert found == pytest.approx(wanted, rel=1e-2) or found == 1.0


def test_true_claim_is_refuted_within_confidence() -> None:
    rng, n, epsilon, delta = np.random.default_rng(0), 300, 1.0, 0.05
    alarm = 0.2
    hits = rng.binomial(n, math.exp(epsilon) * alarm + delta, 4000)
    alarms = rng.binomial(n, alarm, 4000)
    p = [
        p_value(
            Counts(true_positives=int(h), false_positives=int(a), trials=n),
            epsilon=epsilon,
            delta=delta,
        )
        for h, a in zip(hits, alarms, strict=True)
    ]
    for level in (0.2, 0.1, 0.05, 0.01):
        assert np.mean(np.array(p) <= level) <= level
    # Nor is it so careful that it sees nothing.
    assert np.mean(np.array(p) <= 0.2) > 0.05


def test_epsilon_bound_has_p_value_alpha() -> None:
    counts = Counts(true_positives=900, false_positives=20, trials=1000)
    bound = epsilon_bound(counts, delta=1e-5, alpha=0.001)
    assert p_value(counts, epsilon=bound, delta=1e-5) == pytest.approx(0.001, rel=1e-3)
    assert 3.0 < bound < math.log(900 / 20)
    assert (
        epsilon_bound(
            Counts(true_positives=5, false_positives=5, trials=10), delta=0.0, alpha=0.001
        )
        == 0
    )
    assert bound < max_detectable_epsilon(1000, delta=1e-5, alpha=0.001)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("delta", [0.0, 0.01])
def test_one_canary_p_value_matches_formula(epsilon: float, delta: float) -> None:
    chance = math.exp(epsilon) / (1 + math.exp(epsilon))
    found = p_value_of_one_run(1, 1, 1, epsilon=epsilon, delta=delta)
    assert found == pytest.approx(chance + 2 * delta * (1 - chance))
    # No (ε, δ) mechanism is guessed better than with chance (e^ε + δ)/(1 + e^ε).
    assert found >= (math.exp(epsilon) + delta) / (1 + math.exp(epsilon)) - 1e-12


def test_one_run_without_delta_is_a_binomial_tail() -> None:
    found = p_value_of_one_run(40, 50, 200, epsilon=1.0, delta=0.0)
    assert found == pytest.approx(binom.sf(39, 50, math.e / (1 + math.e)))


def test_one_run_p_value_bounds_leaking_mechanism() -> None:
    # Each coin is told with chance δ, and else by randomised response: (ε, δ) for each coin.
    rng, m, epsilon, delta = np.random.default_rng(1), 30, 1.0, 0.02
    told = rng.random((40_000, m)) < delta
    right = (told | (rng.random((40_000, m)) < math.e / (1 + math.e))).sum(axis=1)
    for v in range(15, 31):
        p = p_value_of_one_run(v, m, m, epsilon=epsilon, delta=delta)
        assert np.mean(right >= v) <= p + 3 * math.sqrt(p / 40_000)


def test_one_run_detectable_epsilon_is_limited() -> None:
    # At δ = 1.9e-4 and 95 % confidence no number of canaries takes the bound beyond 5.3, so a
    # claim of ε = 6 stands whatever happens; at 99.9 % nearly every claim does.
    numbers = (20, 40, 60, 100, 200, 300, 500, 1000, 1250, 1500, 1750, 2000, 3000, 5000)
    most = max(max_detectable_epsilon_of_one_run(m, delta=1.9e-4, alpha=0.05) for m in numbers)
    assert most == pytest.approx(5.3, abs=0.01)
    assert (
        max(max_detectable_epsilon_of_one_run(m, delta=1.9e-4, alpha=1e-3) for m in numbers) < 1.03
    )
    assert max_detectable_epsilon_of_one_run(1000, delta=1e-5, alpha=1e-3) == pytest.approx(
        4.28, abs=0.01
    )
    bound = epsilon_bound_of_one_run(95, 100, 100, delta=1e-5, alpha=1e-3)
    assert p_value_of_one_run(95, 100, 100, epsilon=bound, delta=1e-5) == pytest.approx(
        1e-3, rel=1e-2
    )


def gaussian_worlds(rng: np.random.Generator, size: int, noise: float) -> HypothesisSamples:
    drawn = noise * rng.standard_normal((2, size))
    return HypothesisSamples(drawn[0], drawn[1] + 1.0)


@pytest.mark.parametrize(("multiplier", "attempts"), [(1.0, 1), (4.0, 4)])
def test_mechanism_at_its_claim_is_rarely_refuted(multiplier: float, attempts: int) -> None:
    rng, alpha, repetitions = np.random.default_rng(2), 0.2, 100
    deltas = (1e-5, 0.01, 0.1, 0.3, 0.5, 0.9)
    curve = compose([(GaussianMechanism(noise_multiplier=multiplier), attempts)], *deltas)
    claims = [
        Claim(attempts=attempts, epsilon=point.epsilon, delta=delta, says="mechanism")
        for point, delta in zip(curve, deltas, strict=True)
    ]
    refuted = {1.0: 0, 0.5: 0}
    for _ in range(repetitions):
        for share in refuted:
            worlds = gaussian_worlds(rng, 1200 * attempts, share * multiplier).summed(attempts)
            refuted[share] += any(t.is_refuted for t in worlds.test(claims, alpha))
    assert refuted[1.0] <= alpha * repetitions
    assert refuted[0.5] == repetitions
