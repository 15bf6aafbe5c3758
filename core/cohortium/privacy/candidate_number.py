"""Choice of the best of several private runs, for an observer of the chosen run alone.

A search that reveals only its best run can cost less than the composition of all runs. Its number
of runs must be random and stay secret (Liu and Talwar 2019). The theorems are those of Papernot and
Steinke (2022), "Hyperparameter tuning with Rényi differential privacy".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from attrs import field, frozen
from attrs.validators import gt, in_, le

from cohortium.errors import PrivacyError
from cohortium.privacy.mechanisms import ORDERS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Reals = NDArray[np.float64]

MAX_MEAN = 1000.0

MAX_CANDIDATES = 10_000
"""Largest number of runs that a search counts."""

Distribution = Literal["fixed", "poisson", "negative binomial"]


@frozen(kw_only=True)
class CandidateNumber:
    """Distribution of the number of runs of a search.

    "poisson" is the Poisson distribution.  "negative binomial" is the truncated negative binomial
    distribution D(η, γ), which has at least one run.  With η = 1 it is the geometric distribution,
    and with η = 0 the logarithmic one.

    Attributes:
        distribution: "fixed", "poisson" or "negative binomial".
        mean: Mean number of runs.
        shape: η of the negative binomial distribution.
    """

    distribution: Distribution = field(
        default="fixed", validator=in_(("fixed", "poisson", "negative binomial"))
    )
    mean: float = field(validator=[gt(0.0), le(MAX_MEAN)])
    shape: float = field(default=1.0, validator=[gt(-1.0), le(100.0)])

    def __attrs_post_init__(self) -> None:
        """Refuse a mean that the distribution cannot have."""
        if self.distribution == "negative binomial" and not self.mean > 1:
            raise ValueError(
                f"'mean' of a negative binomial number must be more than 1, not {self.mean:g}"
            )

    @property
    def gamma(self) -> float:
        """Parameter γ of the negative binomial distribution, by bisection on the mean."""
        low, high = 1e-12, 1.0
        while high - low > 1e-15 * high and (middle := math.sqrt(low * high)) not in (low, high):
            low, high = (middle, high) if _mean(self.shape, middle) > self.mean else (low, middle)
        # The smaller γ has the larger bound.
        return low

    def probabilities(self, most: int) -> Reals:
        """Return the probability of 0, 1, … `most` runs, shape (`most` + 1,)."""
        runs = np.arange(most + 1, dtype=np.float64)
        if self.distribution == "fixed":
            fixed: Reals = (runs == self.mean).astype(np.float64)
            return fixed
        if self.distribution == "poisson":
            from scipy.special import gammaln

            found: Reals = np.exp(runs * math.log(self.mean) - self.mean - gammaln(runs + 1))
            return found
        eta, gamma = self.shape, self.gamma
        ratios = (runs[1:-1] + eta) / (runs[1:-1] + 1) * (1 - gamma)
        # The first one is P[K = 1], and P[K = k + 1] / P[K = k] follows from the definition.
        whole = -math.log(gamma) if eta == 0 else math.expm1(-eta * math.log(gamma)) / eta
        return np.concatenate([[0.0], (1 - gamma) / whole * np.cumprod([1.0, *ratios])])

    def cap(self, tail: float) -> int:
        """Return the least number that is exceeded with a probability of at most `tail`.

        Raises:
            PrivacyError: It is larger than `MAX_CANDIDATES`.
        """
        if self.distribution == "fixed":
            return round(self.mean)
        # Summed from the end, so that a small tail is no difference of large numbers.
        tails = np.cumsum(self.probabilities(2 * MAX_CANDIDATES)[::-1])[::-1]
        most = int(np.argmax(tails <= tail)) - 1
        if most > MAX_CANDIDATES or tails[-1] > tail:
            raise PrivacyError(
                f"a {self.distribution} number of candidates with mean {self.mean:g} exceeds "
                f"{MAX_CANDIDATES:,} too often to be counted; lower the mean, or use 'poisson'."
            )
        return max(most, 1)

    def draw(self, uniform: float, most: int) -> int:
        """Return the number at the quantile `uniform`, `most` at most.

        Args:
            uniform: A secret number in [0, 1).
            most: The cap.
        """
        if self.distribution == "fixed":
            return round(self.mean)
        reached = np.cumsum(self.probabilities(most)) > uniform
        return int(np.argmax(reached)) if reached.any() else most

    def selected_curve(self, curve: Reals) -> Reals | None:
        """Return the Rényi divergence of the best run's release, at each of `ORDERS`.

        Let Q have the divergences ε(λ), and let A run Q independently K times and release the best
        output alone, by a total order.  For K of D(η, γ), every λ̂ > 1 gives (Papernot and Steinke
        2022, Theorem 2)

            ε'(λ) = ε(λ) + (1 + η) (1 - 1/λ̂) ε(λ̂) + (1 + η) log(1/γ) / λ̂ + log E[K] / (λ - 1).

        For a Poisson K of mean m, if Q is also (ε̂, δ̂)-private with e^ε̂ ≤ 1 + 1/(λ - 1)
        (Theorem 6),

            ε'(λ) = ε(λ) + m δ̂ + log m / (λ - 1).

        Args:
            curve: Divergence of one run, with the random draw of its settings, at each of `ORDERS`.

        Guarantees:
            The result bounds the divergence if the number and all other outputs stay secret.

        Returns:
            The divergences, or None for a fixed number, to which no such theorem applies.
        """
        if self.distribution == "fixed":
            return None
        orders = np.array(ORDERS)
        growth = max(0.0, math.log(self.mean)) / (orders - 1)
        if self.distribution == "poisson":
            found: Reals = curve + self.mean * _deltas(curve, np.log1p(1 / (orders - 1))) + growth
        else:
            extra = (1 - 1 / orders) * curve - math.log(self.gamma) / orders
            found = curve + (1 + self.shape) * float(np.min(extra)) + growth
        # A divergence never falls with its order.
        least: Reals = np.minimum.accumulate(found[::-1])[::-1]
        return least


def _mean(eta: float, gamma: float) -> float:
    """Return the mean of D(η, γ)."""
    if gamma == 1:
        return 1.0
    if eta == 0:
        return (1 / gamma - 1) / -math.log(gamma)
    return eta * (1 - gamma) / gamma / -math.expm1(eta * math.log(gamma))


def _deltas(curve: Reals, epsilons: Reals) -> Reals:
    """Return δ at each of `epsilons` of a Rényi curve (Canonne et al. 2020, Proposition 12)."""
    orders = np.array(ORDERS)
    logs = (orders - 1) * (curve - epsilons[:, None] + np.log1p(-1 / orders)) - np.log(orders)
    found: Reals = np.exp(np.minimum(0.0, logs.min(axis=1)))
    return found
