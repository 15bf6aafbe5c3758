from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as distributions

from cohortium.plugin import (
    FederationSpec,
    KeyStream,
    PrivacyError,
    Randomness,
    RefusalError,
    RingSum,
    Workload,
)
from cohortium.privacy import accounting
from cohortium_skellam import Skellam, _draw, _renyi
from tests.support.round_plans import first_round

COHORT = FederationSpec(
    sites=6,
    cohort_size=6,
    min_contributors=4,
    max_colluding=1,
    examples=600,
    patients=120,
    rounds=5,
    retries=1,
)
WORK = Workload(output="gradient", steps=1, sampling_rate=0.25)


def planned(
    workload: Workload = WORK,
    federation_spec: FederationSpec = COHORT,
    parameters: int = 400,
    **terms: Any,
) -> Any:
    return Skellam(**terms).plan(workload, federation_spec, parameters)


@given(
    order=st.sampled_from([2, 3, 5, 16]),
    sensitivity=st.integers(1, 12),
    variance=st.floats(40.0, 4000.0),
)
@settings(deadline=None)
def test_divergence_bound_is_tight(order: int, sensitivity: int, variance: float) -> None:
    """In one dimension, by its definition: a sum over the whole numbers."""
    half = variance / 2
    k = np.arange(-int(40 * math.sqrt(variance)), int(40 * math.sqrt(variance)))
    here = distributions.skellam.logpmf(k, half, half)
    moved = distributions.skellam.logpmf(k - sensitivity, half, half)
    known = np.isfinite(here) & np.isfinite(moved) & (here > -500) & (moved > -500)
    terms = order * moved[known] - (order - 1) * here[known]
    exact = float(np.log(np.exp(terms).sum())) / (order - 1)
    bound = _renyi.skellam(order, variance, sensitivity, sensitivity)
    assert exact <= bound * (1 + 1e-6)
    if order * sensitivity < variance / 10:
        assert bound <= exact * 1.3


def test_fine_noise_guarantee_matches_gaussian() -> None:
    # With a grid so fine that it does not matter, what is left is Gaussian noise.
    variance, l2 = (4.0 * 1e6) ** 2, 1e6
    for rate in (1.0, 0.3):
        ours = _renyi.mechanism(rate, variance, l2, l2)
        gauss = accounting.GaussianMechanism(noise_multiplier=4.0, sampling_rate=rate)
        whole = [n for n, order in enumerate(accounting.ORDERS) if float(order).is_integer()]
        assert np.allclose(ours.rdp_curve[whole], gauss.rdp_curve[whole], rtol=1e-4)
        fractional = [n for n, order in enumerate(accounting.ORDERS) if n not in whole]
        assert np.isinf(ours.rdp_curve[fractional]).all()


@given(ratio=st.floats(1e-3, 1e3), rate=st.floats(0, 1), order=st.floats(1, 60))
def test_reverse_sampling_direction_diverges_less(ratio: float, rate: float, order: float) -> None:
    """Where a bijection exchanges P and Q, E_Q g(P/Q) = E_Q[g(r) + r g(1/r)]/2 with r = P/Q.

    So it is enough that this holds for g(r) = (1 - q + qr)^α - (1 - q + qr)^(1 - α) and each r.
    """

    def g(r: float) -> float:
        mixed = 1 - rate + rate * r
        return float(mixed**order - mixed ** (1 - order))

    there, back = g(ratio), ratio * g(1 / ratio)
    assert there + back >= -1e-9 * max(1.0, abs(there), abs(back))


def test_poisson_draws_match_poisson_distribution() -> None:
    stream = Randomness.insecure_from_seed(4).stream()
    for mean in (100.0, 1234.5):
        drawn = _draw.poisson(200_000, mean, stream)
        edges = np.unique(distributions.poisson.ppf(np.linspace(0.01, 0.99, 60), mean))
        counts = np.histogram(drawn, [-0.5, *(edges + 0.5), np.inf])[0]
        chances = np.diff([0, *distributions.poisson.cdf(edges, mean), 1])
        assert distributions.chisquare(counts, chances * len(drawn)).pvalue > 1e-4


@pytest.mark.parametrize("mean", [1e6, 1e11])
def test_large_poisson_draws_have_correct_moments(mean: float) -> None:
    drawn = _draw.poisson(400_000, mean, Randomness.insecure_from_seed(5).stream())
    normal = (drawn - mean) / math.sqrt(mean)
    assert abs(normal.mean()) < 5 / math.sqrt(len(drawn))
    assert abs(normal.var() - 1) < 5 * math.sqrt(2 / len(drawn))
    assert abs((normal**3).mean() - 1 / math.sqrt(mean)) < 5 * math.sqrt(15 / len(drawn))


@given(mean=st.floats(100, 1e4), offset=st.floats(-6, 6))
def test_log_chance_matches_poisson_distribution(mean: float, offset: float) -> None:
    k = np.array([max(1.0, math.floor(mean + offset * math.sqrt(mean)))])
    assert _draw.log_chance(k, mean)[0] == pytest.approx(
        distributions.poisson.logpmf(k[0], mean), abs=1e-8
    )


def test_a_small_mean_is_refused() -> None:
    with pytest.raises(ValueError, match="below 100"):
        _draw.poisson(3, 50.0, KeyStream(bytes(32)))


def test_honest_shares_make_up_the_noise_exactly() -> None:
    plan = planned(parameters=2000)
    assert plan.guarantee.honest == 3
    total = plan.ring.zeros(2000)
    for _ in range(3):
        total += (
            first_round(plan).for_site(Randomness.system()).release(torch.zeros(2000), 1.0).words
        )
    noise = plan.ring.signed(total) / math.sqrt(plan.integer_grid.variance)
    assert distributions.kstest(noise, "norm").pvalue > 1e-4


def test_finer_grid_uses_more_bits_less_noise() -> None:
    coarse, fine = planned(rounding_slack=0.2), planned(rounding_slack=0.001)
    assert fine.ring.bits > coarse.ring.bits
    assert fine.integer_grid.noise < coarse.integer_grid.noise
    assert coarse.guarantee.epsilon <= 6.0
    # What is left of the difference to Gaussian noise is the accountant's.
    gauss = accounting.calibrate_noise_multiplier(
        lambda noise: accounting.GaussianMechanism(noise_multiplier=noise, sampling_rate=0.25),
        epsilon=6.0,
        delta=1.9e-4,
        attempts=6,
    )
    assert gauss < fine.integer_grid.noise < 1.15 * gauss


def test_the_mean_of_many_sites_decodes() -> None:
    plan = planned(epsilon=1e5, parameters=50)
    total = plan.ring.zeros(50)
    for site in range(6):
        vector = torch.full((50,), 0.01 * site)
        total += first_round(plan).for_site(Randomness.system()).release(vector, 1.0).words
    mean = first_round(plan).decode(RingSum(plan.ring, total, tuple(range(6))))
    tolerance = 8 * math.sqrt(plan.share) * plan.integer_grid.grid / plan.expected_batch
    assert torch.allclose(mean, torch.full((50,), 0.025), atol=tolerance)


@pytest.mark.parametrize(
    ("workload", "federation_spec", "terms", "words"),
    [
        (evolve(WORK, steps=3), COHORT, {}, "takes 3 steps"),
        (evolve(WORK, output="update"), COHORT, {}, "use trainer 'fedsgd'"),
        (WORK, evolve(COHORT, max_colluding=0), {}, "max_colluding to 1 or more"),
        (WORK, evolve(COHORT, patients=None), {"unit": "patient"}, "do not say whose"),
        (WORK, COHORT, {"epsilon": 1e-9, "delta": 1e-12}, "cannot be met"),
    ],
)
def test_unsupported_workload_or_terms_are_refused(
    workload: Workload, federation_spec: FederationSpec, terms: dict[str, Any], words: str
) -> None:
    with pytest.raises(PrivacyError, match=words):
        planned(workload, federation_spec, **terms)


def test_a_non_finite_gradient_is_refused() -> None:
    plan = planned(parameters=3)
    with pytest.raises(RefusalError, match="NaN or infinity"):
        first_round(plan).for_site(Randomness.system()).release(
            torch.tensor([0.0, math.nan, 0.0]), 1.0
        )
