"""ε by the distribution of privacy losses, held to what is known by other ways."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opacus.accountants.analysis.rdp import compute_rdp

from cohortium.errors import PrivacyError
from cohortium.privacy import accounting, privacy_loss
from cohortium.privacy.accounting import (
    ORDERS,
    GaussianMechanism,
    Mechanism,
    calibrate_noise_multiplier,
    compose,
    within_budget,
)
from cohortium.privacy.loss_grids import ReleaseGroup, discretise

DELTAS = (0.3, 1e-2, 1.9e-4, 1e-5, 1e-9, 1e-30)


def sampled(rate: float, noise: float, releases: int = 1) -> GaussianMechanism:
    return GaussianMechanism(noise_multiplier=noise, sampling_rate=rate, num_releases=releases)


def epsilon(*spends: tuple[Mechanism, int], delta: float) -> float:
    return compose(spends, delta)[0].epsilon


mechanisms = st.builds(
    sampled,
    st.sampled_from([1e-4, 0.02, 0.4, 0.9, 1.0]),
    st.sampled_from([0.6, 1.0, 4.0, 30.0]),
    st.integers(1, 50),
)


@given(
    spends=st.lists(st.tuples(mechanisms, st.integers(1, 20)), min_size=1, max_size=4),
    deltas=st.lists(st.sampled_from(DELTAS), min_size=1, max_size=4),
    seed=st.randoms(use_true_random=False),
)
@example(spends=[(sampled(0.4, 2.2048780096697382), 60)], deltas=[1.9e-4, 1e-5], seed=None)
@settings(deadline=None, max_examples=10)
def test_epsilon_is_identical_for_equivalent_queries(
    spends: list[tuple[Mechanism, int]], deltas: list[float], seed: object
) -> None:
    # To the bit: a site's floor is held to what the study's own plan comes to.
    alone = {delta: compose(spends, delta)[0] for delta in deltas}
    assert compose(spends, *deltas) == [alone[delta] for delta in deltas]
    others = [m for m, n in spends for _ in range(n)] if len(spends) < 3 else []
    shuffled = list(reversed(spends)) if seed is None else seed.sample(spends, len(spends))  # type: ignore[attr-defined]
    assert compose(shuffled, deltas[0]) == [alone[deltas[0]]]
    if others:
        assert compose([(m, 1) for m in others], deltas[0]) == [alone[deltas[0]]]
    for delta, spent in alone.items():
        assert within_budget(spends, epsilon=spent.epsilon, delta=delta)
        assert not within_budget(spends, epsilon=spent.epsilon * (1 - 1e-12) - 1e-300, delta=delta)


@given(
    mu=st.floats(1e-6, 20),
    times=st.sampled_from([1, 2, 60, 5000, 200_000]),
    delta=st.sampled_from(DELTAS),
)
@settings(deadline=None, max_examples=40)
def test_unsampled_epsilon_closely_bounds_exact_formula(
    mu: float, times: int, delta: float
) -> None:
    exact = epsilon((GaussianMechanism(noise_multiplier=math.sqrt(times) / mu), times), delta=delta)
    bound = privacy_loss.epsilon([ReleaseGroup(mu / math.sqrt(times), 1.0, times)], delta)
    assert exact * (1 - 1e-9) <= bound <= exact * 1.002 + 1e-3 * mu


@pytest.mark.parametrize(
    ("rate", "noise"), [(0.4, 4.0), (0.1, 1.0), (0.02, 0.6), (0.5, 0.05), (0.3, 0.3), (0.9, 1.5)]
)
def test_renyi_divergences_are_those_of_opacus(rate: float, noise: float) -> None:
    theirs = compute_rdp(q=rate, noise_multiplier=noise, steps=7, orders=ORDERS)
    # Its series for orders that are not whole end early.
    assert sampled(rate, noise, 7).rdp_curve == pytest.approx(theirs, rel=1e-6)


@given(
    rate=st.sampled_from([1e-9, 1e-3, 0.02, 0.4, 0.99]),
    noise=st.floats(0.3, 50),
    times=st.sampled_from([1, 30, 1000]),
    delta=st.sampled_from(DELTAS),
)
@settings(deadline=None, max_examples=40)
def test_epsilon_is_monotone_and_below_renyi(
    rate: float, noise: float, times: int, delta: float
) -> None:
    one = sampled(rate, noise)
    (spent,) = compose([(one, times)], delta)
    assert spent.bounds.get("prv", 0.0) <= spent.bounds["rdp"] * 1.0001 + 1e-6
    # Grids differ between these, each an upper bound.
    near = 1e-3 * spent.epsilon + 1e-9
    assert epsilon((one, times + 1), delta=delta) >= spent.epsilon - near
    assert epsilon((one, times), delta=delta / 2) >= spent.epsilon - near
    assert epsilon((sampled(rate, noise * 1.1), times), delta=delta) <= spent.epsilon + near
    assert epsilon((sampled(min(1.0, rate * 1.01), noise), times), delta=delta) >= (
        spent.epsilon - near
    )
    whole = epsilon((sampled(1.0, noise), times), delta=delta)
    assert spent.epsilon <= whole + near


def test_two_releases_are_bounded_in_both_directions() -> None:
    # δ(ε) of two releases by its definition, over the plane of what both show.
    rate, noise, delta = 0.3, 0.8, 1e-3
    claimed = epsilon((sampled(rate, noise), 2), delta=delta)
    grid = np.linspace(-9, 10, 2401)
    plain = np.exp(-((grid / noise) ** 2) / 2)
    mixed = (1 - rate) * plain + rate * np.exp(-(((grid - 1) / noise) ** 2) / 2)
    plain, mixed = plain / plain.sum(), mixed / mixed.sum()

    def worst(at: float) -> float:
        one, other = np.outer(plain, plain), np.outer(mixed, mixed)
        ways = one - math.exp(at) * other, other - math.exp(at) * one
        return float(max(way.clip(0).sum() for way in ways))

    assert worst(claimed) <= delta * (1 + 1e-6)
    assert worst(claimed - 0.005) > delta


ABSURD = [
    (rate, noise, releases, delta)
    for (rate, noise), releases, delta in itertools.product(
        [(1e-9, 1.0), (1e-12, 0.01), (0.4, 0.005), (0.4, 1e9), (1 - 1e-16, 3.0), (0.02, 0.3)],
        [1, 10**6, 10**12],
        [1e-100, 1e-5, 0.999999],
    )
]


def test_work_is_bounded_for_extreme_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    compose_ = privacy_loss._compose

    def composed(*args: object) -> object:
        found = compose_(*args)  # type: ignore[arg-type]
        sizes.append(len(found.chances))
        return found

    def gridded(*args: object) -> object:
        found = discretise(*args)  # type: ignore[arg-type]
        sizes.extend(len(grid.chances) for grid in found)
        return found

    monkeypatch.setattr(privacy_loss, "_compose", composed)
    monkeypatch.setattr("cohortium.privacy.privacy_loss.discretise", gridded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rate, noise, releases, delta in ABSURD:
            assert epsilon((sampled(rate, noise, releases), 1), delta=delta) >= 0
    # A transform's length is rounded up to one that is fast.
    assert max(sizes) <= 1.1 * privacy_loss.MAX_POINTS
    assert len(sizes) <= 4 * len(ABSURD)


@pytest.mark.parametrize(
    ("rate", "target", "attempts"),
    [(0.4, 6.0, 60), (0.4, 1000.0, 60), (0.4, 1e-3, 60), (1e-9, 1e-3, 10**6), (0.4, 999_999.0, 9)],
)
def test_calibration_uses_few_evaluations(
    monkeypatch: pytest.MonkeyPatch, rate: float, target: float, attempts: int
) -> None:
    asked: list[float] = []
    ask = privacy_loss.epsilon

    def asking(kinds: list[ReleaseGroup], delta: float) -> float:
        asked.append(delta)
        return ask(kinds, delta)

    monkeypatch.setattr(privacy_loss, "epsilon", asking)
    noise = calibrate_noise_multiplier(
        lambda noise: sampled(rate, noise), epsilon=target, delta=1.9e-4, attempts=attempts
    )
    assert len(asked) <= 25
    assert epsilon((sampled(rate, noise), attempts), delta=1.9e-4) <= target


@pytest.mark.parametrize("rate", [0.4, 1.0])
def test_small_epsilon_target_is_attainable(rate: float) -> None:
    noise = calibrate_noise_multiplier(
        lambda noise: sampled(rate, noise), epsilon=1e-3, delta=1.9e-4, attempts=60
    )
    assert noise < 1e4


def test_unattainable_renyi_target_error_names_alternative() -> None:
    def known(noise: float) -> accounting.RenyiBoundedMechanism:
        bounds = tuple(order / (2 * noise**2) for order in ORDERS)
        return accounting.RenyiBoundedMechanism(name="mine", bounds=bounds)

    with pytest.raises(PrivacyError, match=r"never shows less than ε = 0\.00\d+ .*'gaussian'"):
        calibrate_noise_multiplier(known, epsilon=1e-3, delta=1.9e-4, attempts=60)


@pytest.mark.parametrize(
    "numbers",
    [
        {"noise_multiplier": 1e-320},
        {"noise_multiplier": math.inf},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": 1.0, "sampling_rate": 1e-300},
        {"noise_multiplier": 1.0, "sampling_rate": math.nan},
        {"noise_multiplier": 1.0, "num_releases": 10**13},
        {"noise_multiplier": 1.0, "num_releases": 0},
    ],
)
def test_invalid_mechanism_numbers_are_refused(
    numbers: dict[str, float],
) -> None:
    with pytest.raises(ValueError, match="between"):
        GaussianMechanism(**numbers)  # type: ignore[arg-type]


@pytest.mark.parametrize("delta", [0.0, -1.0, 1e-320, 1.0, math.nan, math.inf])
def test_invalid_delta_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="δ is between"):
        compose([(sampled(0.4, 4.0), 1)], delta)
    with pytest.raises(PrivacyError, match="δ is between"):
        calibrate_noise_multiplier(
            lambda noise: sampled(0.4, noise), epsilon=1.0, delta=delta, attempts=3
        )
