"""What an attempt costs a site, and what costs come to: as values, wherever they are kept.

Costs are mechanisms, with the terms on which they hold.  What they come to together is worked out
for the terms that are asked for, and has no bound where they do not hold on these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from attrs import field, frozen
from attrs.validators import ge, gt, in_, lt

from cohortium.privacy import accounting
from cohortium.privacy.guarantee import MIN_DELTA, Adjacency, ProtectedAgainst, Unit
from cohortium.privacy.mechanisms import NOISES, Mechanism, RenyiBoundedMechanism

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.roles.sessions import PrivacyPlan

UNITS: tuple[Unit, ...] = ("example", "patient", "site")
"""From the weakest protection to the strongest: all that one unit holds, the next holds too."""

ADVERSARY_ORDER: tuple[ProtectedAgainst, ...] = ("coordinator", "everyone")
"""Likewise: whoever is everyone includes those that see sums alone."""


class AttemptCost(msgspec.Struct, frozen=True, kw_only=True):
    """What one attempt costs a site, with the terms on which that holds.

    Attributes:
        mechanism: What is released; None where it promises nothing.
        unit: What the mechanism hides.
        adjacency: What neighbouring data differ in.
        against: From whom.
        colluding: How many sites may pool what they know with the adversary.
        simulation: The noise came from a public seed, so nothing was protected.
    """

    mechanism: Mechanism | None = None
    unit: Unit = "example"
    adjacency: Adjacency = "zero-out"
    against: ProtectedAgainst = "coordinator"
    colluding: int = 0
    simulation: bool = False

    @classmethod
    def from_plan(cls, plan: PrivacyPlan) -> AttemptCost:
        """The price of one attempt under `plan`."""
        scope = plan.guarantee
        if scope is None or plan.mechanism is None:
            return cls()
        return cls(
            mechanism=plan.mechanism,
            unit=scope.unit,
            adjacency=scope.adjacency,
            against=scope.against,
            colluding=scope.colluding,
            simulation=scope.simulation,
        )


@frozen(kw_only=True)
class PrivacyScope:
    """What an ε is said of.

    Attributes:
        unit: What is protected.
        against: From whom.
    """

    unit: Unit = field(validator=in_(UNITS))
    against: ProtectedAgainst = field(validator=in_(ADVERSARY_ORDER))

    @classmethod
    def of(cls, costs: Mapping[AttemptCost, int]) -> PrivacyScope:
        """The strongest terms that hold for all of `costs`."""
        return cls(
            unit=min((p.unit for p in costs), key=UNITS.index, default="site"),
            against=min((p.against for p in costs), key=ADVERSARY_ORDER.index, default="everyone"),
        )

    def effective_mechanism(self, cost: AttemptCost) -> Mechanism | None:
        """The mechanism of `cost` as it counts on these terms; None if it has no bound on them.

        Neighbours are those of the ledger: one unit is there, or counts as zero.

        *Replace-one* mechanisms count as they are.  Their noise is measured by a sensitivity that
        is twice as large, and a unit that is set to zero is one that is replaced.  And whoever
        takes one image out of a hospital replaces the hospital's contribution by another.

        *Zero-out of a larger unit* is not zero-out of a part of it: with one image less a
        hospital's contribution is not gone, but another.  It moves by up to twice its bound, so
        that the noise counts as half.  Sampling, the same on either side, is not credited:
        mixtures with equal weights are no further apart than what is mixed.
        """
        mechanism = cost.mechanism
        if mechanism is None or self.incompatibility(cost):
            return None
        if cost.unit == self.unit or cost.adjacency == "replace-one":
            return mechanism
        return _halved(mechanism)

    def incompatibility(self, cost: AttemptCost) -> str:
        """Why `cost` has no bound on these terms, as the end of a sentence; empty if it has."""
        if cost.mechanism is None:
            return "releases without any privacy have no bound"
        if cost.simulation:
            return "noise from a public seed protects nothing"
        if UNITS.index(cost.unit) < UNITS.index(self.unit):
            return f"hiding one {cost.unit} does not hide one {self.unit}"
        if ADVERSARY_ORDER.index(cost.against) < ADVERSARY_ORDER.index(self.against):
            return "what holds against the coordinator does not hold against everyone"
        inside = cost.unit != self.unit and cost.adjacency != "replace-one"
        if inside and _halved(cost.mechanism) is None:
            return f"what is known of one {cost.unit} gives no bound for one {self.unit}"
        return ""

    def mechanisms(self, costs: Mapping[AttemptCost, int]) -> list[tuple[Mechanism, int]] | None:
        """All of `costs` as they count, for `accounting`; None if one of them has no bound."""
        counted = [(self.effective_mechanism(cost), times) for cost, times in costs.items()]
        found = [(mechanism, times) for mechanism, times in counted if mechanism is not None]
        return found if len(found) == len(counted) else None

    def epsilon(self, costs: Mapping[AttemptCost, int], delta: float) -> float:
        """ε at `delta` of all of `costs` together; infinity where there is no bound."""
        mechanisms = self.mechanisms(costs)
        if mechanisms is None:
            return float("inf")
        (spent,) = accounting.compose(mechanisms, delta)
        return spent.epsilon

    def __str__(self) -> str:
        whom = "everyone" if self.against == "everyone" else "the coordinator"
        return f"one {self.unit} against {whom}"


def _halved(mechanism: Mechanism) -> Mechanism | None:
    """With half the noise, and no sampling; None if nothing is known of that."""
    least, _ = NOISES
    if isinstance(mechanism, RenyiBoundedMechanism) or mechanism.noise_multiplier < 2 * least:
        return None
    half = mechanism.noise_multiplier / 2
    return msgspec.structs.replace(mechanism, noise_multiplier=half, sampling_rate=1.0)


@frozen(kw_only=True)
class Budget:
    """The most that may be spent of some data, over all runs there will ever be.

    Attributes:
        epsilon: ε.
        delta: δ at which it is meant.
        scope: What it is said of.
    """

    epsilon: float = field(validator=gt(0))
    delta: float = field(validator=[gt(0.0), ge(MIN_DELTA), lt(1.0)])
    scope: PrivacyScope

    def holds(self, costs: Mapping[AttemptCost, int]) -> bool:
        """Whether all of `costs` together stay within."""
        mechanisms = self.scope.mechanisms(costs)
        return mechanisms is not None and accounting.within_budget(
            mechanisms, epsilon=self.epsilon, delta=self.delta
        )

    def __str__(self) -> str:
        return f"ε = {self.epsilon:g} at δ = {self.delta:g} for {self.scope}"
