"""A run's privacy guarantee, with every qualification that makes it true."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Context
from typing import Literal

from attrs import Attribute, field, frozen
from attrs.validators import ge, gt, in_, lt

MIN_EPSILON = 1e-9
"""The smallest ε that a study can request."""

MIN_DELTA = 1e-100
"""The smallest δ, except for 0, of any guarantee."""

ROUNDING_UP = Context(prec=3, rounding=ROUND_CEILING)

Unit = Literal["example", "patient", "site"]
"""Unit whose presence is hidden.

It is one image, all images of one person, or everything that a site has.
"""

Adjacency = Literal["zero-out", "replace-one"]
"""Difference between neighbouring data.

One unit's contribution is set to zero, or another one is put in its place.
"""

ProtectedAgainst = Literal["everyone", "coordinator"]
"""Adversary that a guarantee covers.

"everyone" may see all that leaves a site. "coordinator" names the parties that see only sums over
sites.
"""


def rounded_up(number: float) -> str:
    """Return `number` to three digits, rounded up.

    A printed bound must hold in its printed form.
    """
    return f"{float(ROUNDING_UP.create_decimal(repr(number))):.3g}"


def _possible(_guarantee: object, _attribute: Attribute[float], delta: float) -> None:
    """Refuse a δ that is neither 0 nor at least `MIN_DELTA`."""
    if delta != 0 and not delta >= MIN_DELTA:
        raise ValueError(f"'delta' must be 0, or {MIN_DELTA:g} or more, not {delta:g}")


@frozen(kw_only=True)
class Guarantee:
    """(ε, δ)-differential privacy of a whole run, with its terms.

    Guarantees:
        P[S] ≤ e^ε · P'[S] + δ for every pair of neighbouring data sets and every set S of
        observations (Dwork et al. 2006).
        The fields `unit` and `adjacency` define neighbouring data sets.
        The observations are those of the parties named by `against` in the *whole* run.
        It includes all rounds, all local steps, and all attempts that were charged.
        The guarantee is the largest over the sites.

    Attributes:
        epsilon: ε at `delta`.
        delta: δ, the probability that the bound fails.
        epsilon_at_1e_5: The same mechanism's ε at δ = 1e-5, for comparison across studies.
        unit: Unit that is protected.
        adjacency: Difference between neighbouring data.
        against: Adversary that the guarantee covers.
        colluding: Number of sites that may pool their knowledge with the adversary.
        honest: Smallest number of honest survivors for which the noise suffices.
        accountant: The method that bounds ε: "prv", "rdp", "analytic gaussian".
        bounds: Bound of each method at `delta`, the least of which is `epsilon`.
        noise_multiplier: Standard deviation of the noise over the sensitivity.
        assumptions: Further conditions of the guarantee, one sentence each.
        simulation: Whether the noise came from a public seed, so nothing was protected.
    """

    epsilon: float = field(validator=ge(0))
    delta: float = field(validator=[_possible, lt(1.0)])
    epsilon_at_1e_5: float = field(validator=ge(0))
    unit: Unit = field(validator=in_(("example", "patient", "site")))
    adjacency: Adjacency = field(validator=in_(("zero-out", "replace-one")))
    against: ProtectedAgainst = field(validator=in_(("everyone", "coordinator")))
    colluding: int = field(default=0, validator=ge(0))
    honest: int = field(default=1, validator=ge(1))
    accountant: str
    bounds: Mapping[str, float] = field(factory=dict, hash=False)
    noise_multiplier: float = field(validator=gt(0))
    assumptions: tuple[str, ...] = ()
    simulation: bool = False

    def warnings(self, units: int) -> tuple[str, ...]:
        """Return warnings for a careful reader, if `units` units are protected."""
        customary = 0.1 / units
        if self.delta <= customary:
            return ()
        sentence = (
            f"δ = {self.delta:.3g} is large for {units:,} {self.unit}s; it is customary to keep it "
            f"below a tenth of one over their number, {customary:.2g}."
        )
        return (sentence,)

    def __str__(self) -> str:
        """Return the guarantee in one line."""
        label = "SIMULATION, not private: " if self.simulation else ""
        return (
            f"{label}ε = {rounded_up(self.epsilon)} at δ = {rounded_up(self.delta)} "
            f"({rounded_up(self.epsilon_at_1e_5)} at 1e-5) for one {self.unit} ({self.adjacency}) "
            f"against {'everyone' if self.against == 'everyone' else 'the coordinator'}, whole run"
        )
