"""What a run promises about privacy: a value with every qualification that makes it true."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Context
from typing import Literal

from attrs import Attribute, field, frozen
from attrs.validators import ge, gt, in_, lt

MIN_EPSILON = 1e-9
"""The smallest ε that can be asked for."""

MIN_DELTA = 1e-100
"""The smallest δ, but for 0, that anything is said at."""

ROUNDING_UP = Context(prec=3, rounding=ROUND_CEILING)

Unit = Literal["example", "patient", "site"]
"""Whose presence is hidden: one image, all images of one person, or everything a site holds."""

Adjacency = Literal["zero-out", "replace-one"]
"""What neighbouring data differ in: one unit's contribution set to zero, or put in place of it
another."""

ProtectedAgainst = Literal["everyone", "coordinator"]
"""Who may look: anyone, at all that leaves a site; or only parties that see sums over sites."""


def rounded_up(number: float) -> str:
    """`number` to three digits, rounded up: a printed bound must hold as it stands."""
    return f"{float(ROUNDING_UP.create_decimal(repr(number))):.3g}"


def _possible(_guarantee: object, _attribute: Attribute[float], delta: float) -> None:
    """Refuse a δ that is neither 0 nor one that anything is said at."""
    if delta != 0 and not delta >= MIN_DELTA:
        raise ValueError(f"'delta' must be 0, or {MIN_DELTA:g} or more, not {delta:g}")


@frozen(kw_only=True)
class Guarantee:
    """(ε, δ)-differential privacy of a whole run, with its terms.

    Guarantees:
        For every pair of neighbouring data sets (`unit`, `adjacency`) and every set S of what the
        parties named by `against` may see in the *whole* run (all rounds, all local steps, all
        attempts that were charged), P[S] ≤ e^ε · P'[S] + δ (Dwork et al. 2006).
        It is the largest over the sites.

    Attributes:
        epsilon: ε at `delta`.
        delta: δ, the chance that the bound fails.
        epsilon_at_1e_5: The same mechanism's ε at δ = 1e-5, for comparison across studies.
        unit: What is protected.
        adjacency: What neighbouring means.
        against: From whom.
        colluding: How many sites may pool what they know with the adversary.
        honest: The fewest honest survivors for which the noise suffices.
        accountant: The method that bounds ε: "prv", "rdp", "analytic gaussian".
        bounds: What each method gives at `delta`, the least of which is quoted.
        noise_multiplier: Standard deviation of the noise over the sensitivity.
        assumptions: What else has to be true, one sentence each.
        simulation: The noise came from a public seed, so nothing was protected.
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
        """What a careful reader should be told, where `units` units are protected."""
        customary = 0.1 / units
        if self.delta <= customary:
            return ()
        sentence = (
            f"δ = {self.delta:.3g} is large for {units:,} {self.unit}s; it is customary to keep it "
            f"below a tenth of one over their number, {customary:.2g}."
        )
        return (sentence,)

    def __str__(self) -> str:
        """The guarantee in one line."""
        label = "SIMULATION, not private: " if self.simulation else ""
        return (
            f"{label}ε = {rounded_up(self.epsilon)} at δ = {rounded_up(self.delta)} "
            f"({rounded_up(self.epsilon_at_1e_5)} at 1e-5) for one {self.unit} ({self.adjacency}) "
            f"against {'everyone' if self.against == 'everyone' else 'the coordinator'}, whole run"
        )
