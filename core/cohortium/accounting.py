"""How much privacy mechanisms give together, and how much noise a target needs.

    (spent,) = compose([(Gaussian(noise_multiplier=4.0, sampling_rate=0.4), 60)], 1.9e-4)

A run is one mechanism, applied once an attempt; a ledger holds many.
What is kept is the mechanisms, not their ε: together they cost less than their ε add up to.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np
from attrs import frozen

from cohortium.errors import PrivacyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

LEAST_NOISE, MOST_NOISE = 1e-2, 1e6
"""Noise multipliers between which a target is looked for."""

TOLERANCE = 1e-3
"""Relative width at which the search for the noise multiplier stops, on the safe side."""

ORDERS = (1.1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, *range(4, 65), 80, 96, 128, 192, 256, 384, 512)
"""Rényi orders that are tried; whole ones are quick."""

EPSILON_ERROR = 0.005
"""By how much the PRV bound may exceed the true ε; it is added, so the bound holds."""

MOST_POINTS = 1 << 24
"""Grid points, either side of zero, beyond which the PRV bound is given up."""


class Gaussian(msgspec.Struct, frozen=True, kw_only=True, tag="gaussian"):
    """Releases of a sum with Gaussian noise, each of all units or of a Poisson sample of them.

    Neighbouring data differ in one unit, which is there or counts as zero.

    Attributes:
        noise_multiplier: Standard deviation of the noise over the sensitivity.
        sampling_rate: Chance q of a unit to be in a release; 1 where there is no sampling.
        releases: How many.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    releases: int = 1

    def __post_init__(self) -> None:
        """Refuse numbers that are none of a mechanism."""
        if not (self.noise_multiplier > 0 and 0 < self.sampling_rate <= 1 and self.releases >= 1):
            raise ValueError("a Gaussian mechanism has noise, a rate in (0, 1] and a release.")

    @property
    def curve(self) -> NDArray[np.float64]:
        """Rényi divergence at each of `ORDERS` (Mironov, Talwar, Zhang 2019, by Opacus)."""
        from opacus.accountants.analysis.rdp import compute_rdp

        curve: NDArray[np.float64] = compute_rdp(
            q=self.sampling_rate,
            noise_multiplier=self.noise_multiplier,
            steps=self.releases,
            orders=ORDERS,
        )
        return curve


class Renyi(msgspec.Struct, frozen=True, kw_only=True, tag="renyi"):
    """Any mechanism, known by a bound on its Rényi divergence between neighbouring data.

    Attributes:
        name: What it is called.
        bounds: At each of `ORDERS`; infinity where none is known.
    """

    name: str
    bounds: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse a curve that is not one over `ORDERS`."""
        if len(self.bounds) != len(ORDERS) or not all(bound >= 0 for bound in self.bounds):
            raise ValueError(f"bounds must be {len(ORDERS)} numbers that are not negative.")

    @property
    def curve(self) -> NDArray[np.float64]:
        """Rényi divergence at each of `ORDERS`."""
        return np.array(self.bounds)


Mechanism: TypeAlias = Gaussian | Renyi


@frozen
class Spent:
    """An upper bound on ε.

    Attributes:
        epsilon: The least that any accountant gives.
        accountant: Which one that is.
        bounds: What each gives, by its name; without those that give none.
    """

    epsilon: float
    accountant: str
    bounds: Mapping[str, float]

    @classmethod
    def least(cls, **bounds: float) -> Spent:
        """The least of some bounds."""
        best = min(bounds, key=bounds.__getitem__)
        finite = {name.replace("_", " "): e for name, e in bounds.items() if math.isfinite(e)}
        return cls(bounds[best], best.replace("_", " "), finite)


def compose(spends: Iterable[tuple[Mechanism, int]], *deltas: float) -> list[Spent]:
    """The least proven bound on ε, at each δ, of mechanisms applied so many times each.

    Where nothing is sampled the bound is exact: releases with noise multipliers σᵢ are one with
    (Σ σᵢ⁻²)^(-1/2) (Dong, Roth, Su 2022, Corollary 3.3), and
    δ(ε) = Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ) with μ = 1/σ (Balle, Wang 2018, Theorem 8).
    The textbook formula σ = √(2 ln(1.25/δ))/ε is for one release and ε < 1 only.

    Else it is the smaller of Opacus' PRV bound (Gopi, Lee, Wutschitz 2021, with its numerical
    error on the safe side) and its RDP bound (Mironov, Talwar, Zhang 2019, converted as by Balle
    et al. 2020).  What is known by its Rényi divergence alone is bounded by that.
    """
    counts = Counter[Mechanism]()
    for mechanism, times in spends:
        counts[mechanism] += times
    whole, sampled = _sorted(counts)
    if not sampled:
        return [Spent.least(analytic_gaussian=_gaussian_epsilon(whole, delta)) for delta in deltas]
    curve = sum((m.curve * times for m, times in counts.items()), np.zeros(len(ORDERS)))
    rdp = [_converted(curve, delta) for delta in deltas]
    if any(isinstance(mechanism, Renyi) for mechanism in sampled):
        return [Spent.least(rdp=epsilon) for epsilon in rdp]
    prv = _prv(whole, sampled, curve, deltas)
    return [Spent.least(prv=one, rdp=other) for one, other in zip(prv, rdp, strict=True)]


def fits(spends: Iterable[tuple[Mechanism, int]], *, epsilon: float, delta: float) -> bool:
    """Whether `compose` proves a bound of no more than `epsilon`; the costly one only if needed.

    What fits, fits also without some of its mechanisms.
    """
    counts = list(spends)
    if any(isinstance(m, Renyi) or m.sampling_rate < 1 for m, _ in counts):
        curve = sum((m.curve * times for m, times in counts), np.zeros(len(ORDERS)))
        if _converted(curve, delta) <= epsilon:
            return True
    (spent,) = compose(counts, delta)
    return spent.epsilon <= epsilon


def _sorted(counts: Mapping[Mechanism, int]) -> tuple[float, dict[Mechanism, int]]:
    """All that is not sampled as one Gaussian of μ = 1/σ, and how often each of the rest."""
    squares, sampled = 0.0, Counter[Mechanism]()
    for mechanism, times in counts.items():
        if isinstance(mechanism, Renyi):
            sampled[mechanism] += times
            continue
        releases = times * mechanism.releases
        if mechanism.sampling_rate < 1:
            sampled[msgspec.structs.replace(mechanism, releases=1)] += releases
        else:
            squares += releases / mechanism.noise_multiplier**2
    return math.sqrt(squares), {m: times for m, times in sampled.items() if times}


def _gaussian_epsilon(mu: float, delta: float) -> float:
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
    """δ(ε), with the second term in logarithms: e^ε alone would overflow."""
    from scipy.special import log_ndtr, ndtr

    first = ndtr(mu / 2 - epsilon / mu)
    return float(first - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu)))


def _converted(curve: NDArray[np.float64], delta: float) -> float:
    """ε at δ of a Rényi curve."""
    from opacus.accountants.analysis.rdp import get_privacy_spent

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the best order is the first or the last
        epsilon, _ = get_privacy_spent(orders=ORDERS, rdp=curve, delta=delta)
    return max(0.0, float(epsilon))


@frozen
class _WholeGaussian:
    """The privacy loss of a Gaussian without sampling: normal, of mean μ²/2 and variance μ²."""

    mu: float

    def cdf(self, loss: NDArray[np.float64]) -> NDArray[np.float64]:
        from scipy.special import ndtr

        below: NDArray[np.float64] = ndtr((loss - self.mu**2 / 2) / self.mu)
        return below


def _prv(
    whole: float,
    sampled: Mapping[Mechanism, int],
    curve: NDArray[np.float64],
    deltas: tuple[float, ...],
) -> list[float]:
    """The PRV bounds; infinity where no sensible grid holds the distribution.

    The grid is Gopi et al.'s (remark 5.6), with its half-width from the RDP bound.
    """
    from opacus.accountants.analysis import prv

    losses: list[Any] = [
        prv.PoissonSubsampledGaussianPRV(m.sampling_rate, m.noise_multiplier)
        for m in sampled
        if isinstance(m, Gaussian)
    ]
    counts, steps = list(sampled.values()), [m.curve for m in sampled]
    if whole:
        losses.append(_WholeGaussian(whole))
        counts.append(1)
        steps.append(Gaussian(noise_multiplier=1 / whole).curve)
    slack = min(deltas) / 1000
    reach = max(_converted(step, slack / (8 * sum(counts))) for step in steps)
    half = 3 + max(EPSILON_ERROR, _converted(curve, slack / 4), reach)
    mesh = EPSILON_ERROR / math.sqrt(sum(counts) * math.log(12 / slack) / 2)
    if not half / mesh <= MOST_POINTS:
        return [math.inf] * len(deltas)
    domain = prv.Domain.create_aligned(-half, half, mesh)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bounded = [prv.TruncatedPrivacyRandomVariable(p, -half, half) for p in losses]
            discrete = [prv.discretize(loss, domain) for loss in bounded]
            total = prv.compose_heterogeneous(discrete, counts)
            bounds = [total.compute_epsilon(d, slack, EPSILON_ERROR)[2] for d in deltas]
    except (RuntimeError, ValueError):  # its own checks of the numerical error
        return [math.inf] * len(deltas)
    return [max(0.0, float(b)) if math.isfinite(b) else math.inf for b in bounds]


def calibrate(
    mechanism: Callable[[float], Mechanism], *, epsilon: float, delta: float, attempts: int
) -> float:
    """The least noise multiplier, to within 0.1 %, that keeps `attempts` attempts within `epsilon`.

    Args:
        mechanism: One attempt, by its noise multiplier.
        epsilon: ε of all attempts.
        delta: δ of all attempts.
        attempts: How many.

    Raises:
        PrivacyError: None that is sensible does.
    """
    from scipy.optimize import brentq

    def excess(log_noise: float) -> float:
        """How far above the target ε lies, in logarithms; smooth, and falling."""
        (spent,) = compose([(mechanism(math.exp(log_noise)), attempts)], delta)
        return math.log(min(max(spent.epsilon, 1e-9), 1e9) / epsilon)

    high = 0.0
    while excess(high) > 0:
        high += math.log(2)
        if high > math.log(MOST_NOISE):
            raise PrivacyError(
                f"ε = {epsilon:g} at δ = {delta:g} cannot be met with any noise up to "
                f"{MOST_NOISE:g} times the sensitivity; ask for fewer rounds or a larger ε."
            )
    low = high - math.log(2)
    while excess(low) <= 0:
        high, low = low, low - math.log(2)
        if low < math.log(LEAST_NOISE):
            return math.exp(high)
    found: float = brentq(excess, low, high, xtol=TOLERANCE / 3)
    while excess(found) > 0:
        found += TOLERANCE / 3
    return math.exp(found)
