"""Bounds on attacks that decide whether one unit was among the data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge, gt, le, lt

from cohortium.privacy import accounting

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cohortium.privacy.mechanisms import Mechanism

FALSE_POSITIVE_RATES = (0.001, 0.01)
"""Rates of false accusations at which attacks are customarily compared (Carlini et al. 2022)."""

MIN_LOG_DELTA, MAX_LOG_DELTA = math.log(1e-12), math.log(0.5)
"""Range of the δ at which the curve is looked at."""

STEPS = 12
"""Largest number of points of the curve for one rate."""


@frozen(kw_only=True)
class MembershipBound:
    """A bound on every attack that decides whether one unit took part.

    Attributes:
        false_positive_rate: Share of the units that did not take part and are accused.
        true_positive_rate: Largest share of the units that took part and are found.
    """

    false_positive_rate: float = field(validator=[gt(0), lt(1)])
    true_positive_rate: float = field(validator=[ge(0), le(1)])


def membership_bounds(
    spends: Iterable[tuple[Mechanism, int]], rates: Sequence[float] = FALSE_POSITIVE_RATES
) -> tuple[MembershipBound, ...]:
    """Return the bound of some mechanisms at each rate of false positives.

    Without sampling, the bound is Φ(Φ⁻¹(α) + μ), and an attack reaches it (Dong, Roth, Su 2022,
    Definition 2.6). Otherwise, the accountant gives a curve of points (ε, δ). Each point bounds the
    rate twice (Kairouz, Oh, Viswanath 2015). One bound is e^ε α + δ, and the other
    1 - e^-ε (1 - δ - α). The result is the least bound that a search over δ finds.

    Args:
        spends: Each mechanism, and the number of its applications.
        rates: Rates of false positives, α.

    Guarantees:
        Each result is an upper bound, however far the search has come.
    """
    known = list(spends)
    mu = accounting.gaussian_mu(known)
    return tuple(
        MembershipBound(
            false_positive_rate=rate,
            true_positive_rate=_gaussian_rate(mu, rate)
            if mu is not None
            else _searched_rate(known, rate),
        )
        for rate in rates
    )


def _gaussian_rate(mu: float, rate: float) -> float:
    from scipy.special import ndtr, ndtri

    return float(ndtr(ndtri(rate) + mu))


def _searched_rate(spends: list[tuple[Mechanism, int]], rate: float) -> float:
    from scipy.optimize import minimize_scalar

    least = 1.0

    def bound(log_delta: float) -> float:
        nonlocal least
        delta = math.exp(log_delta)
        (spent,) = accounting.compose(spends, delta)
        epsilon = min(spent.epsilon, 700.0)
        found = min(
            math.exp(epsilon) * rate + delta, 1 - math.exp(-epsilon) * (1 - delta - rate), 1.0
        )
        least = min(least, found)
        return math.log(found)

    ends = (MIN_LOG_DELTA, MAX_LOG_DELTA)
    minimize_scalar(bound, bounds=ends, method="bounded", options={"maxiter": STEPS})
    return least
