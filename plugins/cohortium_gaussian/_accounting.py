"""How much privacy Gaussian noise gives over a whole run, and how much noise a target needs."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Protocol

import numpy as np
from attrs import frozen

from cohortium.plugin import PrivacyError

if TYPE_CHECKING:
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


@frozen
class Spent:
    """An upper bound on ε, and the accountant that gave it."""

    epsilon: float
    accountant: str


class Accounting(Protocol):
    """The mechanism of one attempt, composed with itself."""

    def spent(self, noise_multiplier: float, attempts: int, *deltas: float) -> list[Spent]:
        """The least proven bounds on ε after `attempts` attempts, one at each δ."""
        ...


@frozen
class Unsampled:
    """Gaussian mechanisms on all of the data, whose composition is exactly one of them.

    T releases with noise multiplier σ are one with σ/√T (Dong, Roth, Su 2022, Corollary 3.3), and
    δ(ε) = Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ) with μ = √T/σ (Balle, Wang 2018, Theorem 8).
    The textbook formula σ = √(2 ln(1.25/δ))/ε is for one release and ε < 1 only.

    Attributes:
        releases: In one attempt.
    """

    releases: int = 1

    def spent(self, noise_multiplier: float, attempts: int, *deltas: float) -> list[Spent]:
        """The exact ε at each δ."""
        mu = math.sqrt(self.releases * attempts) / noise_multiplier
        return [Spent(_gaussian_epsilon(mu, delta), "analytic gaussian") for delta in deltas]


def _gaussian_epsilon(mu: float, delta: float) -> float:
    if _gaussian_delta(0.0, mu) <= delta:
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


@frozen
class PoissonSampled:
    """DP-SGD steps, each on a Poisson sample; neighbours differ by one example, in or out.

    Bounded by Opacus' PRV accountant (Gopi, Lee, Wutschitz 2021, with its numerical error on the
    safe side) and by its RDP accountant (Mironov, Talwar, Zhang 2019); the smaller is quoted.

    Attributes:
        rate: Chance q of an example to be in a batch.
        steps: In one attempt.
    """

    rate: float
    steps: int

    def spent(self, noise_multiplier: float, attempts: int, *deltas: float) -> list[Spent]:
        """The smaller of the two bounds, at each δ."""
        count = attempts * self.steps
        curve = self._curve(noise_multiplier)
        rdp = [Spent(self._rdp(curve, count, delta), "rdp") for delta in deltas]
        prv = [Spent(e, "prv") for e in self._prv(noise_multiplier, curve, count, deltas)]
        return [min(pair, key=lambda spent: spent.epsilon) for pair in zip(prv, rdp, strict=True)]

    def _curve(self, noise_multiplier: float) -> NDArray[np.float64]:
        """Rényi divergence of one step at each of `ORDERS`; steps add up."""
        from opacus.accountants.analysis.rdp import compute_rdp

        curve: NDArray[np.float64] = compute_rdp(
            q=self.rate, noise_multiplier=noise_multiplier, steps=1, orders=ORDERS
        )
        return curve

    def _rdp(self, curve: NDArray[np.float64], count: int, delta: float) -> float:
        from opacus.accountants.analysis.rdp import get_privacy_spent

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the best order is the first or the last
            epsilon, _ = get_privacy_spent(orders=ORDERS, rdp=curve * count, delta=delta)
        return max(0.0, float(epsilon))

    def _prv(
        self,
        noise_multiplier: float,
        curve: NDArray[np.float64],
        count: int,
        deltas: tuple[float, ...],
    ) -> list[float]:
        """The PRV bounds; infinity where no sensible grid holds the distribution.

        The grid is Gopi et al.'s (remark 5.6), with its half-width from the RDP bound.
        """
        from opacus.accountants.analysis import prv

        slack = min(deltas) / 1000
        half = 3 + max(
            EPSILON_ERROR,
            self._rdp(curve, count, slack / 4),
            self._rdp(curve, 1, slack / (8 * count)),
        )
        mesh = EPSILON_ERROR / math.sqrt(count * math.log(12 / slack) / 2)
        if half / mesh > MOST_POINTS:
            return [math.inf] * len(deltas)
        domain = prv.Domain.create_aligned(-half, half, mesh)
        step = prv.PoissonSubsampledGaussianPRV(self.rate, noise_multiplier)
        whole = prv.TruncatedPrivacyRandomVariable(step, domain.t_min, domain.t_max)
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                losses = prv.compose_heterogeneous([prv.discretize(whole, domain)], [count])
                bounds = [losses.compute_epsilon(d, slack, EPSILON_ERROR)[2] for d in deltas]
        except (RuntimeError, ValueError):  # its own checks of the numerical error
            return [math.inf] * len(deltas)
        return [max(0.0, float(b)) if math.isfinite(b) else math.inf for b in bounds]


def calibrate(accounting: Accounting, *, epsilon: float, delta: float, attempts: int) -> float:
    """The least noise multiplier, to within 0.1 %, that keeps `attempts` attempts within `epsilon`.

    Raises:
        PrivacyError: None that is sensible does.
    """
    from scipy.optimize import brentq

    def excess(log_noise: float) -> float:
        """How far above the target ε lies, in logarithms; smooth, and falling."""
        spent = accounting.spent(math.exp(log_noise), attempts, delta)[0].epsilon
        return math.log(min(max(spent, 1e-9), 1e9) / epsilon)

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
