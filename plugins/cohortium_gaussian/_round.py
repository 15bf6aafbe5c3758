"""The numbers of one round of a Gaussian run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import frozen

from cohortium_gaussian._site import GaussianSite

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from cohortium.plugin import PlanState, Randomness, RingSum, accounting
    from cohortium_gaussian._plan import GaussianPlan


@frozen
class GaussianRound:
    """Public numbers of one round.  See `RoundPlan`.

    With an adaptive clip, a release is in units of the round's clip norm.  So one ring serves every
    clip norm.

    Attributes:
        plan: Numbers of the run.
        mechanism: Mechanism of an attempt at the round.
        clip: C of the round.
    """

    plan: GaussianPlan
    mechanism: accounting.GaussianMechanism
    clip: float

    @property
    def gradient_unit(self) -> float:
        """Real value of 1 in a gradient that the trainer receives."""
        return self.clip if self.plan.terms.rescale_to_unit_norm else 1.0

    @property
    def scale(self) -> float:
        """Value of 1 in a release, in units of the vector that the trainer gives."""
        return 1.0 if self.plan.adaptive is None else self.clip / self.gradient_unit

    @property
    def deviation(self) -> float:
        """Standard deviation of a site's noise on each value of a clipped sum or update."""
        return self.plan.deviation(self.mechanism.noise_multiplier, self.clip)

    @property
    def largest_sum(self) -> float:
        """Limit on each value of one site's clipped sum.  See `GaussianPlan.largest_sum`."""
        return self.plan.largest_sum(self.clip)

    def for_site(
        self, secret: Randomness, patients: NDArray[np.int64] | None = None
    ) -> GaussianSite:
        """Return one attempt at one site, with its own batches and noise."""
        return GaussianSite(self, secret, patients)

    def decode(self, total: RingSum) -> Tensor:
        """Return the mean over the contributors."""
        import torch

        plan, count = self.plan, len(total.contributors)
        if plan.adaptive is None:
            return torch.from_numpy(plan.code.mean(total.words, count))
        return torch.from_numpy(plan.code.mean(total.words[:-1], count / self.scale))

    def next_state(self, total: RingSum) -> PlanState:
        """Return the next clip norm, if it is adaptive."""
        adaptive = self.plan.adaptive
        if adaptive is None:
            return ()
        mean = float(self.plan.code.decode(total.words[-1:])[0]) / len(total.contributors)
        moved = adaptive.following(self.clip, mean)
        assert math.isfinite(moved)
        return (moved,)
