"""Samples of an adversary's number in two worlds, and their tests.

Sets of outcomes are half-lines. The first quarter of the samples selects where each begins. The
other samples test the claim, so the selection costs nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from cohortium.auditing.bounds import Counts, epsilon_bound, p_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Reals = NDArray[np.float64]

THRESHOLDS = 400
"""Half-lines that are tried on the first quarter."""


@frozen(kw_only=True)
class Claim:
    """(ε, δ) for a number of attempts, with its origin.

    Attributes:
        attempts: Number of attempts.
        epsilon: ε.
        delta: δ.
        says: "guarantee", or "mechanism" for a point of the curve that its mechanism composes to.
    """

    attempts: int
    epsilon: float
    delta: float
    says: str


@frozen(kw_only=True)
class ClaimTest:
    """A claim, with its test on the samples.

    Attributes:
        claim: The tested claim.
        p: An upper bound on the chance of the observation, if the claim is true.
        alpha: The level. A claim whose `p` is at most `alpha` is refuted.
    """

    claim: Claim
    p: float
    alpha: float

    @property
    def is_refuted(self) -> bool:
        """Whether the claim is false."""
        return self.p <= self.alpha


@frozen(eq=False)
class HypothesisSamples:
    """Samples of the adversary's number, shape (n,), in both worlds.

    `absent` is the world without the unit, `present` the one with it.
    """

    absent: Reals
    present: Reals

    def summed(self, attempts: int) -> HypothesisSamples:
        """Return the sums of the numbers over groups of `attempts` attempts."""
        size = len(self.absent) // attempts
        cut = size * attempts
        return HypothesisSamples(
            self.absent[:cut].reshape(size, attempts).sum(axis=1),
            self.present[:cut].reshape(size, attempts).sum(axis=1),
        )

    @property
    def tested(self) -> int:
        """Number of samples of each world that test claims."""
        return len(self.absent) - len(self.absent) // 4

    def test(self, claims: Sequence[Claim], alpha: float) -> list[ClaimTest]:
        """Test each claim, with all of them together at confidence 1 - `alpha`.

        The test tries both ways to distinguish the worlds: "there" for large numbers, and "not
        there" for small numbers.
        """
        each = alpha / (2 * max(1, len(claims)))
        return [
            ClaimTest(
                claim=claim,
                p=min(
                    p_value(counts, epsilon=claim.epsilon, delta=claim.delta)
                    for counts in self._counts(claim)
                ),
                alpha=each,
            )
            for claim in claims
        ]

    def bound(self, claim: Claim, alpha: float) -> float:
        """Return the largest refuted ε at the δ of `claim`.

        The confidence is 1 - `alpha`.
        """
        return max(
            epsilon_bound(counts, delta=claim.delta, alpha=alpha / 2)
            for counts in self._counts(claim)
        )

    def _counts(self, claim: Claim) -> tuple[Counts, Counts]:
        """Count guesses of either kind, beyond the thresholds.

        The counted samples did not choose the thresholds.
        """
        cut = len(self.absent) // 4
        sign = 1.0 if self.present[:cut].mean() >= self.absent[:cut].mean() else -1.0
        absent, present = sign * self.absent, sign * self.present
        return _counts(absent, present, claim, cut), _counts(-present, -absent, claim, cut)


def testable(claims: Sequence[Claim], samples: int, alpha: float) -> list[Claim]:
    """Return the claims that `samples` samples of each world could refute."""
    perfect = Counts(true_positives=samples, false_positives=0, trials=samples)
    return [
        claim
        for claim in claims
        if p_value(perfect, epsilon=claim.epsilon, delta=claim.delta) <= alpha / (2 * len(claims))
    ]


def _counts(low: Reals, high: Reals, claim: Claim, cut: int) -> Counts:
    """Count samples beyond the threshold that the first `cut` samples choose."""
    threshold = _threshold(low[:cut], high[:cut], claim)
    return Counts(
        true_positives=int((high[cut:] > threshold).sum()),
        false_positives=int((low[cut:] > threshold).sum()),
        trials=len(low) - cut,
    )


def _threshold(low: Reals, high: Reals, claim: Claim) -> float:
    """Return the threshold that maximises P[high] - e^ε P[low] - δ.

    The maximum is in units of the standard error.
    """
    pooled = np.unique(np.concatenate([low, high]))
    middles = (pooled[1:] + pooled[:-1]) / 2
    if len(middles) == 0:
        return float(pooled[0])
    middles = middles[:: max(1, len(middles) // THRESHOLDS)]
    size = len(low)
    # Each count is one more than was seen, because a chance of zero also has an error.
    hit = (size - np.searchsorted(np.sort(high), middles, side="right") + 1) / (size + 2)
    alarm = (size - np.searchsorted(np.sort(low), middles, side="right") + 1) / (size + 2)
    factor = math.exp(claim.epsilon)
    error = np.sqrt(hit * (1 - hit) + factor**2 * alarm * (1 - alarm))
    return float(middles[np.argmax((hit - factor * alarm - claim.delta) / error)])
