"""A clip norm that follows a quantile of the norms (Andrew et al. 2021, Algorithm 1)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import frozen

from cohortium.plugin import RefusalCode, RefusalError

if TYPE_CHECKING:
    from cohortium.plugin import PlanState

RANGE = 1e3
"""The clip norm stays within this factor of the first one."""

MAX_WEIGHT = 1.0
"""Largest weight of the count.

The noise of the gradients grows by a factor of at most 1.12, or 1.42 for updates of sites.
"""

WANTED_DEVIATION = 0.05
"""Standard deviation of a released share, where that costs less than `MAX_WEIGHT`."""


@frozen(kw_only=True)
class AdaptiveClip:
    """The rule by which the clip norm moves.

    With each clipped sum, sites release the number of units whose norm is within the clip.  A unit
    counts ½ if it is and -½ if it is not.  So an example's absence moves the count by ½.  A site
    whose update is zero counts ½, so it moves the count by up to 1.  The count has a **weight** κ,
    and is noised with the gradients as one more coordinate.  A unit moves both by at most
    √(1 + (κ move)²) clip norms, and the noise is sized for that.

    Attributes:
        initial: The first clip norm.
        target: Wanted share of units within the clip.
        rate: η.  The clip norm is multiplied by exp(-η (share - target)) after each round.
        weight: κ.
        move: Largest move of the count by one unit, before its weight: ½ or 1.
        units: Expected number of units in one site's release.

    Guarantees:
        The next clip norm is a function of this one and of the released count.
    """

    initial: float
    target: float
    rate: float
    weight: float
    move: float
    units: float

    @property
    def sensitivity(self) -> float:
        """Largest norm of one unit's part of a release, in clip norms."""
        return math.hypot(1, self.weight * self.move)

    def require(self, state: PlanState) -> float:
        """Return the clip norm of a state.

        Raises:
            RefusalError: It is no state of this rule.
        """
        low, high = self.initial / RANGE, self.initial * RANGE
        if len(state) != 1 or not low <= state[0] <= high:
            raise RefusalError(
                RefusalCode.OUT_OF_RANGE,
                f"the study's clip norm stays between {low:g} and {high:g}, and the coordinator "
                "asks for another.",
            )
        return state[0]

    def count(self, unclipped: int, others: int) -> float:
        """Return the weighted count of a site.

        Args:
            unclipped: Number of units within the clip.
            others: Number of other units in the batch.
        """
        return self.weight * (unclipped - others) / 2

    def following(self, clip: float, mean_count: float) -> float:
        """Return the clip norm after a round.

        Args:
            clip: Clip norm of the round.
            mean_count: Mean over the contributors of the noised counts, per expected unit.
        """
        share = min(1.0, max(0.0, mean_count / self.weight + 0.5))
        moved = clip * math.exp(-self.rate * (share - self.target))
        return min(self.initial * RANGE, max(self.initial / RANGE, moved))


def count_weight(noise: float, units: float) -> float:
    """Return the weight κ with which a released share has the wanted deviation, if it may.

    Args:
        noise: Noise multiplier of the least noised round.
        units: Expected number of units in the sum over the sites.
    """
    return min(MAX_WEIGHT, noise / (WANTED_DEVIATION * units))
