"""Composition of privacy mechanisms, and the noise that a target needs.

    (spent,) = compose([(GaussianMechanism(noise_multiplier=4.0, sampling_rate=0.4), 60)], 1.9e-4)

A run is one mechanism, applied once an attempt. A ledger has many mechanisms. The accounting stores
mechanisms, not their ε: together they cost less than the sum of their ε.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from attrs import frozen

from cohortium.errors import PrivacyError
from cohortium.privacy import privacy_loss
from cohortium.privacy.guarantee import MIN_DELTA, MIN_EPSILON, rounded_up
from cohortium.privacy.loss_grids import ReleaseGroup
from cohortium.privacy.mechanisms import ORDERS, GaussianMechanism, Mechanism, RenyiBoundedMechanism

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

__all__ = (
    "MIN_DELTA",
    "MIN_EPSILON",
    "ORDERS",
    "EpsilonBound",
    "GaussianMechanism",
    "Mechanism",
    "RenyiBoundedMechanism",
    "adaptive_epsilon",
    "calibrate_noise_multiplier",
    "compose",
    "gaussian_mu",
    "within_budget",
)

MIN_NOISE, MAX_NOISE = 1e-2, 1e6
"""Smallest and largest noise multiplier of the search for a target."""

TOLERANCE = 1e-3
"""Relative width at which the search for the noise multiplier stops.

The search stops on the safe side.
"""

MAX_RENYI_EPSILON = 2e4
"""Largest ε by Rényi divergence for which the losses' distribution is computed.

No mechanism with a larger ε protects.
"""

MAX_EXACT_MU = 1e3
"""Largest μ of a Gaussian whose ε is computed by the exact formula. Beyond it, a bound is."""


SAMPLED_ORDER = 0.8
"""Part of a filter's best order for Gaussian noise, beyond 1, that it takes.

Samples of the data have large divergences at large orders. Runs with rates from 0.01 to 1 and ε
from 1 to 10 were tried. With 0.8, their bounds are within 6 % of those by their best order.
"""


@frozen
class EpsilonBound:
    """An upper bound on ε.

    Attributes:
        epsilon: The least bound of any accountant.
        accountant: Name of that accountant.
        bounds: Bound of each accountant, by its name, without those that have none.
    """

    epsilon: float
    accountant: str
    bounds: Mapping[str, float]

    @classmethod
    def tightest(cls, **bounds: float) -> EpsilonBound:
        """Return the least of some bounds."""
        best = min(bounds, key=bounds.__getitem__)
        finite = {name.replace("_", " "): e for name, e in bounds.items() if math.isfinite(e)}
        return cls(bounds[best], best.replace("_", " "), finite)


def compose(spends: Iterable[tuple[Mechanism, int]], *deltas: float) -> list[EpsilonBound]:
    """Return the least proven bound on ε, at each δ, of mechanisms.

    Each mechanism is applied a number of times.

    If nothing is sampled, the bound is exact. Releases with noise multipliers σᵢ are one with (Σ
    σᵢ⁻²)^(-1/2) (Dong, Roth, Su 2022, Corollary 3.3). Then, δ(ε) = Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ)
    with μ = 1/σ (Balle, Wang 2018, Theorem 8). The textbook formula σ = √(2 ln(1.25/δ))/ε is for
    one release and ε < 1 only.

    Otherwise, it is the smaller of two bounds. One is by the privacy loss' distribution
    (`privacy_loss`). The other is the RDP bound (Mironov, Talwar, Zhang 2019, converted as by Balle
    et al. 2020). A mechanism that is known by its Rényi divergence alone has the RDP bound alone.

    Guarantees:
        ε at one δ is a function of the mechanisms, their numbers and that δ.
        Neither the other δs, nor the order, nor the way in which equal mechanisms are counted
        together changes a bit of it.
    """
    for delta in deltas:
        if not MIN_DELTA <= delta < 1:
            raise ValueError(f"δ is between {MIN_DELTA:g} and 1, not {delta:g}.")
    whole, sampled, curves = _sorted(spends)
    if not sampled and not curves:
        return [
            EpsilonBound.tightest(analytic_gaussian=_gaussian_epsilon(whole, delta))
            for delta in deltas
        ]
    curve = _curve(whole, sampled, curves)
    rdp = [_converted(curve, delta) for delta in deltas]
    if curves:
        return [EpsilonBound.tightest(rdp=epsilon) for epsilon in rdp]
    prv = [
        privacy_loss.epsilon(_kinds(whole, sampled), delta)
        if bound <= MAX_RENYI_EPSILON
        else math.inf
        for delta, bound in zip(deltas, rdp, strict=True)
    ]
    return [EpsilonBound.tightest(prv=one, rdp=other) for one, other in zip(prv, rdp, strict=True)]


def gaussian_mu(spends: Iterable[tuple[Mechanism, int]]) -> float | None:
    """Return μ of the one Gaussian mechanism that equals some mechanisms.

    The result is None if one of them samples its data, or is known by its Rényi divergence alone.
    """
    whole, sampled, curves = _sorted(spends)
    return None if sampled or curves else whole


def within_budget(spends: Iterable[tuple[Mechanism, int]], *, epsilon: float, delta: float) -> bool:
    """Return whether `compose` proves a bound of no more than `epsilon`.

    The function computes the costly bound only if needed. If some mechanisms fit, any part of them
    fits, too.
    """
    counts = list(spends)
    whole, sampled, curves = _sorted(counts)
    if (sampled or curves) and _converted(_curve(whole, sampled, curves), delta) <= epsilon:
        return True
    (spent,) = compose(counts, delta)
    return spent.epsilon <= epsilon


def adaptive_epsilon(
    spends: Iterable[tuple[Mechanism, int]], *, epsilon: float, delta: float
) -> float:
    """Return a bound on ε at `delta` that also holds for mechanisms chosen one after another.

    `compose` is for a list of mechanisms that was fixed before the first release. Somebody may
    choose a mechanism after seeing the releases before it. One choice of two can reach nearly twice
    the δ of either list. So a limit on all that is ever released needs a *privacy filter* (Rogers,
    Roth, Ullman, Vadhan 2016). It stops before this function's result exceeds `epsilon`. Each of
    two filters has half of δ:

    - Releases without sampling stay within a sum of 1/σ² (Smith and Thakurta 2022).
    - All releases stay within a sum of Rényi divergences at one order (Feldman and Zrnic 2021). The
      order depends on `epsilon` and `delta` alone, so no choice of a mechanism moves it.

    Every choice ends within one of both. So the chances that they fail add up to δ at most.

    Args:
        spends: Each mechanism, and the number of its applications.
        epsilon: The limit, fixed in advance.
        delta: δ of the limit.

    Guarantees:
        Let the result for all mechanisms ever applied be at most `epsilon`. Then they are together
        (`epsilon`, `delta`)-differentially private, even if releases decided the next mechanism.
        More mechanisms never have a smaller result.
    """
    whole, sampled, curves = _sorted(spends)
    half = delta / 2
    order = _order(epsilon, half)
    curve = _curve(whole, sampled, curves)
    renyi = max(0.0, float((curve + _offsets(half))[order]))
    if not sampled and not curves:
        return min(renyi, _gaussian_epsilon(whole, half))
    return renyi


def _order(epsilon: float, delta: float) -> int:
    """Return the position in `ORDERS` of the order by which a filter counts.

    The divergence of Gaussian noise grows with the order in a straight line. So the order with the
    largest (ε - offset) / α has room for most of it. `SAMPLED_ORDER` is for sampling.
    """
    orders = np.array(ORDERS)
    best = orders[np.argmax((epsilon - _offsets(delta)) / orders)]
    return int(np.argmin(np.abs(orders - 1 - SAMPLED_ORDER * (best - 1))))


def _sorted(
    spends: Iterable[tuple[Mechanism, int]],
) -> tuple[float, list[tuple[GaussianMechanism, int]], list[tuple[RenyiBoundedMechanism, int]]]:
    """Return unsampled mechanisms as one Gaussian, and the counts of the rest.

    The Gaussian has μ = 1/σ. The rest is in one order, which does not depend on the order of
    `spends`. So rounding is the same, too.
    """
    whole, sampled, curves = (
        Counter[float](),
        Counter[GaussianMechanism](),
        Counter[RenyiBoundedMechanism](),
    )
    for mechanism, times in spends:
        if isinstance(mechanism, RenyiBoundedMechanism):
            curves[mechanism] += times
        elif mechanism.sampling_rate < 1:
            one = msgspec.structs.replace(mechanism, num_releases=1)
            sampled[one] += times * mechanism.num_releases
        else:
            whole[mechanism.noise_multiplier] += times * mechanism.num_releases
    squares = math.fsum(times / noise**2 for noise, times in whole.items())
    key = msgspec.msgpack.encode
    return (
        math.sqrt(squares),
        sorted(((m, n) for m, n in sampled.items() if n), key=lambda each: key(each[0])),
        sorted(((m, n) for m, n in curves.items() if n), key=lambda each: key(each[0])),
    )


def _curve(
    whole: float,
    sampled: list[tuple[GaussianMechanism, int]],
    curves: list[tuple[RenyiBoundedMechanism, int]],
) -> NDArray[np.float64]:
    """Return the Rényi divergence of everything at each of `ORDERS`."""
    total = np.array(ORDERS) * (whole**2 / 2)
    every: list[tuple[Mechanism, int]] = [*sampled, *curves]
    for mechanism, times in every:
        total += mechanism.rdp_curve * times
    return total


def _kinds(whole: float, sampled: list[tuple[GaussianMechanism, int]]) -> list[ReleaseGroup]:
    kinds = [ReleaseGroup(1 / m.noise_multiplier, m.sampling_rate, times) for m, times in sampled]
    return [*kinds, ReleaseGroup(whole, 1.0, 1)] if whole else kinds


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """Return ε at δ of one Gaussian mechanism."""
    from scipy.special import ndtri

    if mu > MAX_EXACT_MU:
        # By the first term alone, as the second is lost in rounding.
        return max(0.0, mu * mu / 2 - mu * float(ndtri(delta)))
    if mu == 0 or _gaussian_delta(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while _gaussian_delta(high, mu) > delta:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _gaussian_delta(middle, mu) > delta else (low, middle)
    return high


def _gaussian_delta(epsilon: float, mu: float) -> float:
    """Return δ(ε), with the second term in logarithms.

    e^ε alone would overflow.
    """
    from scipy.special import log_ndtr, ndtr

    first = ndtr(mu / 2 - epsilon / mu)
    return float(first - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu)))


def _converted(curve: NDArray[np.float64], delta: float) -> float:
    """Return ε at δ of a Rényi curve.

    The conversion is that of Balle et al. 2020, Theorem 21.
    """
    return max(0.0, float(np.min(curve + _offsets(delta))))


def _offsets(delta: float) -> NDArray[np.float64]:
    """Return the difference of ε and the Rényi divergence, at each of `ORDERS`."""
    orders = np.array(ORDERS)
    found: NDArray[np.float64] = np.log((orders - 1) / orders) - (
        np.log(delta) + np.log(orders)
    ) / (orders - 1)
    return found


def calibrate_noise_multiplier(
    mechanism: Callable[[float], Mechanism], *, epsilon: float, delta: float, attempts: int
) -> float:
    """Return the least noise multiplier that keeps `attempts` within `epsilon`.

    The result is within 0.1 % of it.

    Args:
        mechanism: The mechanism of one attempt, by its noise multiplier.
        epsilon: ε of all attempts.
        delta: δ of all attempts.
        attempts: Number of attempts.

    Raises:
        PrivacyError: No sensible multiplier suffices, or the numbers are not those of a mechanism.
    """
    from scipy.optimize import brentq

    known: dict[float, float] = {}

    def excess(log_noise: float) -> float:
        """Return log(ε / target), a smooth and falling function."""
        if log_noise not in known:
            spends = [(mechanism(math.exp(log_noise)), attempts)]
            (spent,) = compose(spends, delta)
            known[log_noise] = math.log(min(max(spent.epsilon, 1e-9), 1e9) / epsilon)
        return known[log_noise]

    try:
        high = 0.0
        while excess(high) > 0:
            high += math.log(2)
            if high > math.log(MAX_NOISE):
                raise PrivacyError(_unreachable(mechanism(MAX_NOISE), epsilon, delta))
        low = high - math.log(2)
        while excess(low) <= 0:
            high, low = low, low - math.log(2)
            if low < math.log(MIN_NOISE):
                return math.exp(high)
        found: float = brentq(excess, low, high, xtol=TOLERANCE / 3)
        while excess(found) > 0:
            found += TOLERANCE / 3
    except ValueError as error:
        raise PrivacyError(f"the noise cannot be worked out: {error}") from error
    return math.exp(found)


def _unreachable(mechanism: Mechanism, epsilon: float, delta: float) -> str:
    """Return the reason why no noise meets a target, and a remedy."""
    least = _converted(np.zeros(len(ORDERS)), delta)
    if isinstance(mechanism, RenyiBoundedMechanism) and epsilon <= least:
        return (
            f"ε = {epsilon:g} at δ = {delta:g} cannot be met by '{mechanism.name}', which is known "
            f"by its Rényi divergence: that never shows less than ε = {rounded_up(least)} at this "
            "δ; ask for more, or choose privatizer 'gaussian'."
        )
    return (
        f"ε = {epsilon:g} at δ = {delta:g} cannot be met with any noise up to "
        f"{MAX_NOISE:g} times the sensitivity; ask for fewer rounds or a larger ε."
    )
