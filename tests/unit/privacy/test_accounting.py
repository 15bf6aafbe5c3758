from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy import integrate
from scipy import stats as distributions

from cohortium.errors import PrivacyError
from cohortium.privacy.accounting import (
    ORDERS,
    GaussianMechanism,
    Mechanism,
    RenyiBoundedMechanism,
    _converted,
    calibrate_noise_multiplier,
    compose,
)


def whole(noise: float, releases: int = 1) -> GaussianMechanism:
    return GaussianMechanism(noise_multiplier=noise, num_releases=releases)


def sampled(rate: float, noise: float, releases: int = 1) -> GaussianMechanism:
    return GaussianMechanism(noise_multiplier=noise, sampling_rate=rate, num_releases=releases)


def epsilon(*spends: tuple[Mechanism, int], delta: float) -> float:
    return compose(spends, delta)[0].epsilon


def test_paper_noise_matches_exact_epsilon() -> None:
    # Noise 0.699 for sensitivity 1, 7 or 14, and 50 rounds (the settings of arXiv 2412.00687;
    # figures from exact accounting of the Gaussian mechanism, Balle and Wang 2018).
    sigma = math.sqrt(2 * math.log(1.25 / 1.9e-4)) / 6
    for sensitivity, epsilon, within in ((1, 86.3, 0.05), (7, 2758.8, 0.5), (14, 10_535, 1.0)):
        (spent,) = compose([(whole(sigma / sensitivity), 50)], 1.9e-4)
        assert spent.epsilon == pytest.approx(epsilon, abs=within)
        assert spent.accountant == "analytic gaussian"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_opacus_accountants_overestimate_paper_epsilon() -> None:
    sigma = math.sqrt(2 * math.log(1.25 / 1.9e-4)) / 6
    rdp, prv = RDPAccountant(), PRVAccountant()
    rdp.history = prv.history = [(sigma / 7, 1.0, 50)]
    assert rdp.get_epsilon(1.9e-4) == pytest.approx(2841.2, abs=0.1)
    assert prv.get_epsilon(1.9e-4) == math.inf


@given(mu=st.floats(0.05, 8), delta=st.sampled_from([1e-2, 1e-5, 1.9e-4]))
@settings(deadline=None)
def test_exact_accounting_inverts_the_hockey_stick_integral(mu: float, delta: float) -> None:
    claimed = epsilon((whole(1 / mu), 1), delta=delta)
    if claimed == 0:
        return
    p, q = distributions.norm(mu, 1).pdf, distributions.norm(0, 1).pdf
    start = claimed / mu + mu / 2
    area, _ = integrate.quad(
        lambda x: p(x) - math.exp(claimed) * q(x), start, start + 12, epsabs=0, limit=400
    )
    assert area == pytest.approx(delta, rel=1e-4)


def test_sampling_amplifies_except_at_rate_one() -> None:
    all_of_it = epsilon((whole(4.0), 60), delta=1e-5)
    nearly = epsilon((sampled(0.999999, 4.0, 60), 1), delta=1e-5)
    assert nearly == pytest.approx(all_of_it, rel=0.03)
    assert epsilon((sampled(0.1, 4.0, 60), 1), delta=1e-5) < all_of_it / 4


@pytest.mark.parametrize(("q", "sigma"), [(0.4, 1.0), (0.1, 0.7), (0.02, 0.5)])
def test_sampled_step_bound_is_tight_to_integral(q: float, sigma: float) -> None:
    # δ(ε) of one step by its definition, the larger of the two directions of "in or out".
    (spent,) = compose([(sampled(q, sigma), 1)], 1e-4)
    out, one = distributions.norm(0, sigma).pdf, distributions.norm(1, sigma).pdf

    def delta(epsilon: float) -> float:
        def excess(x: NDArray[np.float64]) -> NDArray[np.float64]:
            mixed, plain = (1 - q) * out(x) + q * one(x), out(x)
            return np.array([mixed - math.exp(epsilon) * plain, plain - math.exp(epsilon) * mixed])

        grid = np.linspace(-12, 12, 400_001)
        return float(np.trapezoid(excess(grid).clip(0), grid, axis=1).max())

    assert delta(spent.epsilon) <= 1e-4
    assert delta(spent.epsilon - 0.02) > 1e-4


def test_epsilon_grows_with_steps_below_rdp() -> None:
    # N = 60,000, batch 256, σ = 1.1, 60 epochs, δ = 1e-5: the tutorial setting of TensorFlow
    # Privacy and Opacus, ε = 3.0 with the conversion of Mironov 2017, less with later ones.
    steps = 60 * 60_000 // 256
    run = sampled(256 / 60_000, 1.1, steps)
    rdp = _converted(run.rdp_curve, 1e-5)
    (spent,) = compose([(run, 1)], 1e-5)
    assert spent.accountant == "prv"
    assert spent.epsilon < rdp < 3.0
    half = epsilon((sampled(256 / 60_000, 1.1, steps // 2), 1), delta=1e-5)
    assert half < spent.epsilon < 2 * half


def test_epsilon_agrees_with_opacus_prv_accountant() -> None:
    accountant = PRVAccountant()
    accountant.history = [(4.0, 0.4, 60)]
    ours = compose([(sampled(0.4, 4.0), 60)], 1.9e-4, 1e-5)
    for spent, delta in zip(ours, (1.9e-4, 1e-5), strict=True):
        theirs = accountant.get_epsilon(delta=delta, eps_error=0.005)
        assert spent.epsilon == pytest.approx(theirs, abs=0.01)


@pytest.mark.parametrize(("rate", "releases"), [(1.0, 1), (0.2, 3)])
@pytest.mark.parametrize("target", [0.5, 6.0])
def test_calibration_is_tight_and_never_exceeds_target(
    rate: float, releases: int, target: float
) -> None:
    def attempt(noise: float) -> GaussianMechanism:
        return sampled(rate, noise, releases)

    noise = calibrate_noise_multiplier(attempt, epsilon=target, delta=1e-4, attempts=10)
    assert epsilon((attempt(noise), 10), delta=1e-4) <= target
    assert epsilon((attempt(noise * 0.995), 10), delta=1e-4) > target


def test_unattainable_privacy_target_is_refused() -> None:
    with pytest.raises(PrivacyError, match="cannot be met with any noise"):
        calibrate_noise_multiplier(whole, epsilon=1e-9, delta=1e-12, attempts=6)


def test_composition_is_between_largest_and_sum() -> None:
    runs: list[tuple[Mechanism, int]] = [
        (sampled(0.4, 4.0), 60),
        (sampled(0.1, 1.0), 30),
        (whole(20.0), 10),
    ]
    alone = [epsilon(run, delta=1e-5) for run in runs]
    together = epsilon(*runs, delta=1e-5)
    assert max(alone) < together < sum(alone)
    rdp = _converted(sum((m.rdp_curve * n for m, n in runs), np.zeros(len(ORDERS))), 1e-5)
    assert together <= rdp


def test_composition_is_independent_of_grouping() -> None:
    one = compose([(sampled(0.4, 4.0, 10), 6)], 1.9e-4, 1e-5)
    assert one == compose([(sampled(0.4, 4.0), 25), (sampled(0.4, 4.0, 5), 7)], 1.9e-4, 1e-5)
    assert epsilon((whole(3.0, 4), 2), delta=1e-5) == epsilon((whole(3.0), 8), delta=1e-5)


def test_sampled_gaussian_matches_exact_cases() -> None:
    # A rate next to 1 beside unsampled releases: all of them, nearly, are one Gaussian.
    mixed = epsilon((sampled(1 - 1e-9, 5.0), 10), (whole(4.0), 6), delta=1e-5)
    exact = epsilon((whole(1 / math.sqrt(10 / 25 + 6 / 16)), 1), delta=1e-5)
    assert exact <= mixed < exact + 0.02


def test_renyi_bounded_mechanism_composes_by_rdp() -> None:
    curve = tuple(order / (2 * 3.0**2) for order in ORDERS)
    alike = RenyiBoundedMechanism(name="gaussian by another name", bounds=curve)
    for times in (1, 7):
        exact = epsilon((whole(3.0), times), delta=1e-5)
        (spent,) = compose([(alike, times)], 1e-5)
        assert spent.accountant == "rdp"
        assert exact < spent.epsilon < 1.25 * exact
    both = epsilon((alike, 3), (sampled(0.2, 2.0), 5), delta=1e-5)
    assert both > epsilon((alike, 3), delta=1e-5)


@pytest.mark.parametrize("bounds", [(), (0.1,) * 3, (-1.0,) * len(ORDERS)])
def test_a_curve_over_other_orders_is_refused(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="bounds must be"):
        RenyiBoundedMechanism(name="x", bounds=bounds)


def test_empty_composition_has_epsilon_zero() -> None:
    assert epsilon(delta=1e-5) == 0
    assert epsilon((whole(3.0), 0), (sampled(0.1, 1.0), 0), delta=1e-5) == 0


def test_mechanisms_round_trip_through_messagepack() -> None:
    curve = tuple(math.inf if order % 1 else float(order) for order in ORDERS)
    for mechanism in (sampled(0.3, 2.5, 4), RenyiBoundedMechanism(name="skellam", bounds=curve)):
        written = msgspec.msgpack.encode(mechanism)
        assert msgspec.msgpack.decode(written, type=Mechanism) == mechanism


# dp-accounting 0.6.0 (Google), PLDAccountant, add-or-remove, value_discretization_interval 1e-4:
# it takes the worse of both directions, and rounds up.
PEERS: list[tuple[list[tuple[Mechanism, int]], float, float]] = [
    ([(sampled(0.4, 4.0), 60)], 3.42468, 2.79224),
    ([(sampled(256 / 60_000, 1.1), 14_062)], 2.38169, 1.92148),
    ([(sampled(0.1, 1.0), 30)], 4.17822, 3.17523),
    ([(sampled(0.02, 0.6), 500)], 10.28029, 8.08461),
    ([(sampled(0.4, 4.0), 60), (sampled(0.1, 1.0), 30), (whole(20.0), 10)], 5.44944, 4.35710),
    ([(whole(5.0), 50)], 6.57297, 5.52937),
    ([(whole(2.9427), 50)], 12.56316, 10.81634),
]


@pytest.mark.parametrize(("spends", "strict", "loose"), PEERS)
def test_epsilon_agrees_with_dp_accounting(
    spends: list[tuple[Mechanism, int]], strict: float, loose: float
) -> None:
    ours = compose(spends, 1e-5, 1.9e-4)
    for spent, theirs in zip(ours, (strict, loose), strict=True):
        assert theirs - 1e-4 <= spent.epsilon <= theirs + 0.006


def test_smaller_bound_is_quoted_and_both_kept() -> None:
    (spent,) = compose([(sampled(0.4, 4.0), 60)], 1e-5)
    assert spent.accountant == "prv"
    assert spent.bounds["prv"] == spent.epsilon < spent.bounds["rdp"]
    (exact,) = compose([(whole(4.0), 60)], 1e-5)
    assert exact.bounds == {"analytic gaussian": exact.epsilon}
    # So little noise that no grid holds its losses: the other accountant's bound stands.
    (loose,) = compose([(sampled(0.5, 0.02), 60)], 1e-5)
    assert (loose.accountant, set(loose.bounds)) == ("rdp", {"rdp"})
