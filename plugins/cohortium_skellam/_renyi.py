"""Rényi divergences of the Skellam mechanism, and of its Poisson samples."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.special import gammaln, logsumexp

from cohortium.plugin import accounting


def skellam(order: int, variance: float, l1: float, l2: float) -> float:
    """Return a bound on the divergence at a whole `order` ≥ 2.

    The divergence is that of sums with Skellam noise (Agarwal, Kairouz, Liu 2021, Corollary 3.6).

    Args:
        order: α.
        variance: μ, the variance of the noise on each value.
        l1: ℓ₁ sensitivity, in units of the grid.
        l2: ℓ₂ sensitivity, in units of the grid.
    """
    gaussian = order * l2**2 / (2 * variance)
    fine = ((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2)
    return gaussian + min(fine, 3 * l1 / (2 * variance))


def mechanism(
    rate: float, variance: float, l1: float, l2: float
) -> accounting.RenyiBoundedMechanism:
    """Return one release of a Poisson sample's sum with Skellam noise.

    Neighbours differ by one unit.  For R = (1 - q)Q + qP, the moment E_Q[(R/Q)^α] is a binomial sum
    over those of P/Q.  The moment of the other direction, E_R[(Q/R)^α], is no larger where a
    bijection exchanges P and Q (Mironov, Talwar, Zhang 2019).  With symmetric noise, x ↦ Δ - x is
    such a bijection.
    """
    most = int(max(accounting.ORDERS))
    divergences = [skellam(k, variance, l1, l2) for k in range(2, most + 1)]

    def bound(order: int) -> float:
        known = divergences[: order - 1]
        return known[-1] if rate == 1 else _sampled(order, rate, known)

    bounds = tuple(
        bound(int(order)) if float(order).is_integer() else math.inf for order in accounting.ORDERS
    )
    return accounting.RenyiBoundedMechanism(name="skellam", bounds=bounds)


def _sampled(order: int, rate: float, divergences: list[float]) -> float:
    """Return the sampled divergence at `order`.

    `divergences` are those of the unsampled mechanism, at 2 to `order`.
    """
    powers = np.arange(2, order + 1)
    moments = (powers - 1) * np.array(divergences)
    # The first two terms of the sum over k: there P/Q has moment 1.
    first = (order - 1) * math.log1p(-rate) + math.log1p((order - 1) * rate)
    rest = (
        _log_binomials(order)[2:] + powers * math.log(rate) + (order - powers) * math.log1p(-rate)
    )
    # The sum is slightly above 1.  A logarithm of the whole sum would lose digits of the
    # difference.
    return max(0.0, float(logsumexp(np.append(rest + moments, first)))) / (order - 1)


@lru_cache(maxsize=128)
def _log_binomials(order: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    k = np.arange(order + 1)
    logs: np.ndarray[tuple[int], np.dtype[np.float64]] = (
        gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    )
    return logs
