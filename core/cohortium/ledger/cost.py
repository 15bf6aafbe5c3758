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
from cohortium.privacy.guarantee import LEAST_DELTA, Adjacency, ProtectedAgainst, Unit
from cohortium.privacy.mechanisms import NOISES, Mechanism, RenyiBoundedMechanism

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.roles.sessions import PrivacyPlan

UNITS: tuple[Unit, ...] = ("example", "patient", "site")
"""From the weakest protection to the strongest: all that one unit holds, the next holds too."""

PARTIES: tuple[ProtectedAgainst, ...] = ("coordinator", "everyone")
"""Likewise: whoever is everyone includes those that see sums alone."""


class Price(msgspec.Struct, frozen=True, kw_only=True):
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
    def of(cls, plan: PrivacyPlan) -> Price:
        """The price of one attempt under `plan`."""
        terms = plan.guarantee
        if terms is None or plan.mechanism is None:
            return cls()
        return cls(
            mechanism=plan.mechanism,
            unit=terms.unit,
            adjacency=terms.adjacency,
            against=terms.against,
            colluding=terms.colluding,
            simulation=terms.simulation,
        )


@frozen(kw_only=True)
class Terms:
    """What an ε is said of.

    Attributes:
        unit: What is protected.
        against: From whom.
    """

    unit: Unit = field(validator=in_(UNITS))
    against: ProtectedAgainst = field(validator=in_(PARTIES))

    @classmethod
    def of(cls, prices: Mapping[Price, int]) -> Terms:
        """The strongest terms that hold for all of `prices`."""
        return cls(
            unit=min((p.unit for p in prices), key=UNITS.index, default="site"),
            against=min((p.against for p in prices), key=PARTIES.index, default="everyone"),
        )

    def counted(self, price: Price) -> Mechanism | None:
        """The mechanism of `price` as it counts on these terms; None if it has no bound on them.

        Neighbours are those of the ledger: one unit is there, or counts as zero.

        *Replace-one* mechanisms count as they are.  Their noise is measured by a sensitivity that
        is twice as large, and a unit that is set to zero is one that is replaced.  And whoever
        takes one image out of a hospital replaces the hospital's contribution by another.

        *Zero-out of a larger unit* is not zero-out of a part of it: with one image less a
        hospital's contribution is not gone, but another.  It moves by up to twice its bound, so
        that the noise counts as half.  Sampling, the same on either side, is not credited:
        mixtures with equal weights are no further apart than what is mixed.
        """
        mechanism = price.mechanism
        if mechanism is None or self.objection(price):
            return None
        if price.unit == self.unit or price.adjacency == "replace-one":
            return mechanism
        return _halved(mechanism)

    def objection(self, price: Price) -> str:
        """Why `price` has no bound on these terms, as the end of a sentence; empty if it has."""
        if price.mechanism is None:
            return "releases without any privacy have no bound"
        if price.simulation:
            return "noise from a public seed protects nothing"
        if UNITS.index(price.unit) < UNITS.index(self.unit):
            return f"hiding one {price.unit} does not hide one {self.unit}"
        if PARTIES.index(price.against) < PARTIES.index(self.against):
            return "what holds against the coordinator does not hold against everyone"
        inside = price.unit != self.unit and price.adjacency != "replace-one"
        if inside and _halved(price.mechanism) is None:
            return f"what is known of one {price.unit} gives no bound for one {self.unit}"
        return ""

    def mechanisms(self, prices: Mapping[Price, int]) -> list[tuple[Mechanism, int]] | None:
        """All of `prices` as they count, for `accounting`; None if one of them has no bound."""
        counted = [(self.counted(price), times) for price, times in prices.items()]
        found = [(mechanism, times) for mechanism, times in counted if mechanism is not None]
        return found if len(found) == len(counted) else None

    def epsilon(self, prices: Mapping[Price, int], delta: float) -> float:
        """ε at `delta` of all of `prices` together; infinity where there is no bound."""
        mechanisms = self.mechanisms(prices)
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
        terms: What it is said of.
    """

    epsilon: float = field(validator=gt(0))
    delta: float = field(validator=[gt(0.0), ge(LEAST_DELTA), lt(1.0)])
    terms: Terms

    def holds(self, prices: Mapping[Price, int]) -> bool:
        """Whether all of `prices` together stay within."""
        mechanisms = self.terms.mechanisms(prices)
        return mechanisms is not None and accounting.within_budget(
            mechanisms, epsilon=self.epsilon, delta=self.delta
        )

    def __str__(self) -> str:
        return f"ε = {self.epsilon:g} at δ = {self.delta:g} for {self.terms}"
