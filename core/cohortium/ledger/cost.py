"""Cost of an attempt, and composition of costs, as values.

Costs are mechanisms, with the conditions under which they hold. Their total ε is computed for a
requested scope. It has no bound if a cost does not hold in that scope.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING

import msgspec
from attrs import define, field, frozen
from attrs.validators import ge, gt, in_, lt

from cohortium.errors import PrivacyError
from cohortium.privacy import accounting
from cohortium.privacy.guarantee import MIN_DELTA, Adjacency, ProtectedAgainst, Unit
from cohortium.privacy.mechanisms import (
    NOISES,
    GaussianMechanism,
    Mechanism,
    RenyiBoundedMechanism,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cohortium.privacy.guarantee import Guarantee
    from cohortium.roles.sessions import PrivacyPlan

UNITS: tuple[Unit, ...] = ("example", "patient", "site")
"""Units from the weakest protection to the strongest.

Each unit contains all data of the previous one.
"""

ADVERSARY_ORDER: tuple[ProtectedAgainst, ...] = ("coordinator", "everyone")
"""Adversaries from the weakest to the strongest.

"everyone" includes the parties that see only sums.
"""


class AttemptCost(msgspec.Struct, frozen=True, kw_only=True):
    """Cost of one attempt to a site, with its conditions.

    Attributes:
        mechanism: Mechanism of the release, or None without a guarantee.
        unit: Unit that the mechanism hides.
        adjacency: Difference between neighbouring data.
        against: Adversary that the guarantee covers.
        colluding: Number of sites that may pool their knowledge with the adversary.
        simulation: Whether the noise came from a public seed, so nothing was protected.
    """

    mechanism: Mechanism | None = None
    unit: Unit = "example"
    adjacency: Adjacency = "zero-out"
    against: ProtectedAgainst = "coordinator"
    colluding: int = 0
    simulation: bool = False

    @classmethod
    def of(cls, mechanism: Mechanism | None, guarantee: Guarantee | None) -> AttemptCost:
        """Return the cost of an attempt that applies `mechanism` under `guarantee`.

        Raises:
            PrivacyError: There is a guarantee, and no mechanism that a ledger could charge.
        """
        if guarantee is None:
            return cls()
        if mechanism is None:
            raise PrivacyError(
                "the privatizer's plan states a guarantee, and a round of it has no mechanism, so "
                "no ledger could count its cost; return the round's mechanism."
            )
        return cls(
            mechanism=mechanism,
            unit=guarantee.unit,
            adjacency=guarantee.adjacency,
            against=guarantee.against,
            colluding=guarantee.colluding,
            simulation=guarantee.simulation,
        )


def run_costs(plan: PrivacyPlan, rounds: int, retries: int) -> Counter[AttemptCost]:
    """Return the costs of all attempts of a run, with every retry at the costliest round.

    Args:
        plan: The plan of the run.
        rounds: Rounds of the run.
        retries: Further attempts over the whole run.
    """
    costs = _costs_by_round(plan, rounds)
    found = Counter(costs)
    found[costs[_costliest(costs, plan.guarantee)]] += retries
    return found


@frozen
class PlannedAttempts:
    """The attempts that the guarantee of a run covers.

    Attributes:
        rounds: Cost of an attempt at each round.
        retries: Further attempts over the whole run.
    """

    rounds: tuple[AttemptCost, ...]
    retries: int
    _by_cost: Counter[AttemptCost] = field(init=False, eq=False, repr=False)

    @_by_cost.default
    def _counted(self) -> Counter[AttemptCost]:
        return Counter(self.rounds)

    @classmethod
    def of(cls, plan: PrivacyPlan, rounds: int, retries: int) -> PlannedAttempts:
        """Return the attempts that the guarantee of `plan` covers."""
        return cls(tuple(_costs_by_round(plan, rounds)), retries)

    def planned_at(self, cost: AttemptCost) -> int:
        """Return the number of rounds with that cost."""
        return self._by_cost[cost]

    def reachable_rounds(self, made: Sequence[int], completed: int) -> int:
        """Return the number of rounds that a run can complete with the attempts that are left.

        Args:
            made: The round of each attempt so far, none after round `completed`.
            completed: Number of completed rounds.
        """
        left, retries = self._by_cost.copy(), self.retries
        for number in chain(made, range(completed, len(self.rounds))):
            cost = self.rounds[number]
            if left[cost]:
                left[cost] -= 1
            elif retries:
                retries -= 1
            else:
                return max(number, completed)
        return len(self.rounds)


@define
class MadeAttempts:
    """The attempts that a site has made, among the planned ones.

    An attempt takes the place of a round with its cost, or else of a retry, which is planned at the
    costliest round. So attempts that are allowed cost no more than the planned ones. Their number
    alone shows that only where all rounds cost the same.

    Attributes:
        planned: The planned attempts.
    """

    planned: PlannedAttempts
    # By number, because a simulation with a public seed repeats an interrupted attempt.
    _costs: dict[int, AttemptCost] = field(factory=dict, init=False)
    _counts: Counter[AttemptCost] = field(factory=Counter, init=False)
    _retries: int = field(default=0, init=False)

    @classmethod
    def of(cls, planned: PlannedAttempts, costs: Mapping[int, AttemptCost]) -> MadeAttempts:
        """Return the attempts with these costs, by number."""
        made = cls(planned)
        for number, cost in costs.items():
            made.add(number, cost)
        return made

    def allows(self, number: int, cost: AttemptCost) -> bool:
        """Return whether an attempt at `cost` is among the planned ones, after those before it."""
        return self._retries + self._further_retries(number, cost) <= self.planned.retries

    def add(self, number: int, cost: AttemptCost) -> None:
        """Count an attempt."""
        self._retries += self._further_retries(number, cost)
        before = self._costs.get(number)
        if before is not None:
            self._counts[before] -= 1
        self._costs[number] = cost
        self._counts[cost] += 1

    def _further_retries(self, number: int, cost: AttemptCost) -> int:
        before = self._costs.get(number)
        if before == cost:
            return 0
        further = int(self._counts[cost] >= self.planned.planned_at(cost))
        if before is not None and self._counts[before] > self.planned.planned_at(before):
            further -= 1
        return further


def costliest_round(plan: PrivacyPlan, rounds: int) -> int:
    """Return the first of the rounds whose attempts cost most."""
    return _costliest(_costs_by_round(plan, rounds), plan.guarantee)


def _costliest(costs: list[AttemptCost], guarantee: Guarantee | None) -> int:
    """Return the first position of the highest cost."""
    if len({*costs}) == 1 or guarantee is None:
        return 0
    delta = guarantee.delta

    def price(cost: AttemptCost) -> float:
        if cost.mechanism is None:
            return math.inf
        (spent,) = accounting.compose([(cost.mechanism, 1)], delta)
        return spent.epsilon

    return costs.index(max({*costs}, key=price))


def _costs_by_round(plan: PrivacyPlan, rounds: int) -> list[AttemptCost]:
    guarantee, state = plan.guarantee, plan.initial_state
    return [
        AttemptCost.of(plan.at_round(number, state).mechanism, guarantee)
        for number in range(rounds)
    ]


@frozen(kw_only=True)
class PrivacyScope:
    """Unit and adversary of an ε.

    Attributes:
        unit: Unit that is protected.
        against: Adversary that the guarantee covers.
    """

    unit: Unit = field(validator=in_(UNITS))
    against: ProtectedAgainst = field(validator=in_(ADVERSARY_ORDER))

    @classmethod
    def of(cls, costs: Mapping[AttemptCost, int]) -> PrivacyScope:
        """Return the strongest scope in which all of `costs` hold."""
        return cls(
            unit=min((p.unit for p in costs), key=UNITS.index, default="site"),
            against=min((p.against for p in costs), key=ADVERSARY_ORDER.index, default="everyone"),
        )

    def effective_mechanism(self, cost: AttemptCost) -> Mechanism | None:
        """Return the mechanism of `cost` in this scope.

        The result is None if the mechanism has no bound in this scope.

        Neighbouring data are those of the ledger: one unit is there, or counts as zero.

        *Replace-one* mechanisms count as they are. Their noise is relative to a sensitivity that is
        twice as large, and setting a unit to zero is one way to replace it. Also, removing one
        image from a hospital replaces the hospital's contribution by another.

        *Zero-out of a larger unit* is not zero-out of a part of it. With one image less, a
        hospital's contribution is not gone, but another. It moves by up to twice its bound, so the
        noise counts as half. Sampling, which is the same on either side, is not credited: mixtures
        with equal weights are no further apart than their components.
        """
        mechanism = cost.mechanism
        if mechanism is None or self.incompatibility(cost):
            return None
        if cost.unit == self.unit or cost.adjacency == "replace-one":
            return mechanism
        return _halved(mechanism)

    def incompatibility(self, cost: AttemptCost) -> str:
        """Return the reason why `cost` has no bound in this scope.

        The reason is the end of a sentence, and empty if there is a bound.
        """
        if cost.mechanism is None:
            return "releases without any privacy have no bound"
        if cost.simulation:
            return "noise from a public seed protects nothing"
        if UNITS.index(cost.unit) < UNITS.index(self.unit):
            return f"hiding one {cost.unit} does not hide one {self.unit}"
        if ADVERSARY_ORDER.index(cost.against) < ADVERSARY_ORDER.index(self.against):
            return "a guarantee against the coordinator does not hold against everyone"
        inside = cost.unit != self.unit and cost.adjacency != "replace-one"
        if inside and _halved(cost.mechanism) is None:
            return f"the knowledge of one {cost.unit} gives no bound for one {self.unit}"
        return ""

    def mechanisms(self, costs: Mapping[AttemptCost, int]) -> list[tuple[Mechanism, int]] | None:
        """Return `costs` as they count for `accounting`, or None.

        The result is None if one cost has no bound.
        """
        counted = [(self.effective_mechanism(cost), times) for cost, times in costs.items()]
        found = [(mechanism, times) for mechanism, times in counted if mechanism is not None]
        return found if len(found) == len(counted) else None

    def epsilon(self, costs: Mapping[AttemptCost, int], delta: float) -> float:
        """Return ε at `delta` of all `costs`, or infinity without a bound."""
        mechanisms = self.mechanisms(costs)
        if mechanisms is None:
            return float("inf")
        (spent,) = accounting.compose(mechanisms, delta)
        return spent.epsilon

    def dominates(self, planned: AttemptCost, cost: AttemptCost) -> bool:
        """Return whether `cost` reveals no more than `planned`, in any composition.

        That is known of Gaussian mechanisms with no less noise, no larger sampling rate and no more
        releases. More noise is noise added afterwards. A divergence of a sample's mixture is convex
        in the rate and zero at zero, so it grows with the rate.
        """
        most, one = self.effective_mechanism(planned), self.effective_mechanism(cost)
        if not isinstance(most, GaussianMechanism) or not isinstance(one, GaussianMechanism):
            return False
        return (
            one.noise_multiplier >= most.noise_multiplier
            and one.sampling_rate <= most.sampling_rate
            and one.num_releases <= most.num_releases
        )

    def adaptive_epsilon(self, costs: Mapping[AttemptCost, int], budget: Budget) -> float:
        """Return ε at the budget's δ of attempts that were chosen one after another.

        It is infinity without a bound. See `accounting.adaptive_epsilon`.
        """
        mechanisms = self.mechanisms(costs)
        if mechanisms is None:
            return float("inf")
        return accounting.adaptive_epsilon(mechanisms, epsilon=budget.epsilon, delta=budget.delta)

    def __str__(self) -> str:
        whom = "everyone" if self.against == "everyone" else "the coordinator"
        return f"one {self.unit} against {whom}"


def _halved(mechanism: Mechanism) -> Mechanism | None:
    """Return the mechanism with half the noise and no sampling.

    The result is None if no bound is known for it.
    """
    least, _ = NOISES
    if isinstance(mechanism, RenyiBoundedMechanism) or mechanism.noise_multiplier < 2 * least:
        return None
    half = mechanism.noise_multiplier / 2
    return msgspec.structs.replace(mechanism, noise_multiplier=half, sampling_rate=1.0)


@frozen(kw_only=True)
class Budget:
    """The most that all runs, present and future, may spend.

    It is a limit for some data.

    Attributes:
        epsilon: ε of the budget.
        delta: δ at which ε holds.
        scope: Unit and adversary of ε.
    """

    epsilon: float = field(validator=gt(0))
    delta: float = field(validator=[gt(0.0), ge(MIN_DELTA), lt(1.0)])
    scope: PrivacyScope

    def holds_adaptively(self, costs: Mapping[AttemptCost, int]) -> bool:
        """Return whether `costs` stay within the budget, however each of them was chosen."""
        return self.scope.adaptive_epsilon(costs, self) <= self.epsilon

    def holds(self, costs: Mapping[AttemptCost, int]) -> bool:
        """Return whether `costs` stay within the budget, if they were fixed before the first."""
        mechanisms = self.scope.mechanisms(costs)
        return mechanisms is not None and accounting.within_budget(
            mechanisms, epsilon=self.epsilon, delta=self.delta
        )

    def __str__(self) -> str:
        return f"ε = {self.epsilon:g} at δ = {self.delta:g} for {self.scope}"
