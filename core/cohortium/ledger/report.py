"""What a ledger comes to: each run, and all of them together, for people and for programs."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
from attrs import frozen

from cohortium.errors import LedgerError
from cohortium.ledger.cost import Budget, PrivacyScope
from cohortium.privacy.accounting import GaussianMechanism
from cohortium.privacy.guarantee import rounded_up
from cohortium.text import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.ledger.cost import AttemptCost
    from cohortium.ledger.ledger import Ledger, RunCharges

DELTA = 1e-5
"""δ at which ε is given where no budget says another."""


@frozen(kw_only=True)
class RunEntry:
    """One run's attempts at one price, and their ε; infinity where they have no bound."""

    charges: RunCharges
    epsilon: float


@frozen(kw_only=True)
class LedgerReport:
    """What was spent of some data.

    Attributes:
        data: What the hospital calls them.
        scope: What ε is said of: the budget's, or else the strongest that hold for all runs.
        delta: δ at which ε is given.
        epsilon: Of everything together; infinity where something has no bound.
        runs: By run, the oldest first.
        budget: What may be spent, where that is known.
    """

    data: str
    scope: PrivacyScope
    delta: float
    epsilon: float
    runs: tuple[RunEntry, ...]
    budget: Budget | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values; null stands for an ε without bound."""
        return {
            "data": self.data,
            "epsilon": _finite(self.epsilon),
            "delta": self.delta,
            **attrs.asdict(self.scope),
            "budget": None if self.budget is None else attrs.asdict(self.budget),
            "runs": [
                {
                    "run": line.charges.session.hex(),
                    "attempts": line.charges.attempts,
                    "rounds": line.charges.rounds,
                    "first": line.charges.first,
                    "last": line.charges.last,
                    "epsilon": _finite(line.epsilon),
                    **msgspec.to_builtins(line.charges.cost),
                }
                for line in self.runs
            ],
        }

    def __str__(self) -> str:
        limit = "" if self.budget is None else f", of a budget of {self.budget}"
        spent = f"ε = {format_epsilon(self.epsilon)} at δ = {self.delta:g} for {self.scope}"
        return f"{self.data}: {spent}{limit}" if self.runs else f"{self.data}: ε = 0{limit}"


def build_reports(
    ledger: Ledger, *, budgets: Mapping[str, Budget] | None = None, delta: float | None = None
) -> list[LedgerReport]:
    """What `ledger` comes to, for each data identity in it or with a budget.

    Args:
        ledger: The ledger.
        budgets: What may be spent, by data identity.
        delta: δ at which ε is given; by default the budget's.

    Raises:
        LedgerError: The ledger cannot be used.
    """
    budgets = budgets or {}
    with ledger.read_transaction() as book:
        kept = {name: book.runs(name) for name in sorted({*book.names(), *budgets})}
    known: dict[tuple[PrivacyScope, float, frozenset[tuple[AttemptCost, int]]], float] = {}

    def epsilon(scope: PrivacyScope, at: float, costs: Counter[AttemptCost]) -> float:
        # Simulated sites have spent alike, and a bound takes a second.
        key = (scope, at, frozenset(costs.items()))
        if key not in known:
            known[key] = scope.epsilon(costs, at)
        return known[key]

    def statement(name: str, runs: list[RunCharges]) -> LedgerReport:
        budget = budgets.get(name)
        costs: Counter[AttemptCost] = Counter()
        for run in runs:
            costs[run.cost] += run.attempts
        scope = PrivacyScope.of(costs) if budget is None else budget.scope
        at = delta or (DELTA if budget is None else budget.delta)
        return LedgerReport(
            data=name,
            scope=scope,
            delta=at,
            epsilon=epsilon(scope, at, costs),
            runs=tuple(
                RunEntry(charges=run, epsilon=epsilon(scope, at, Counter({run.cost: run.attempts})))
                for run in runs
            ),
            budget=budget,
        )

    return [statement(name, runs) for name, runs in kept.items()]


def describe_cost(cost: AttemptCost) -> str:
    """The mechanism of a price, with what qualifies it, for people."""
    mechanism = cost.mechanism
    if mechanism is None:
        return "no privacy"
    if isinstance(mechanism, GaussianMechanism):
        words = f"Gaussian σ = {mechanism.noise_multiplier:.4g}"
        if mechanism.sampling_rate < 1:
            words += f", q = {mechanism.sampling_rate:.4g}"
        if mechanism.num_releases > 1:
            words += f", {mechanism.num_releases:,} times"
    else:
        words = mechanism.name
    scope = f"one {cost.unit} ({cost.adjacency}) against {cost.against}"
    return f"{words}; {scope}{'; SIMULATION' if cost.simulation else ''}"


def select_dataset(found: list[LedgerReport], data: str | None) -> list[LedgerReport]:
    """The statement of `data`, or all if it is None.

    Raises:
        LedgerError: There is none.
    """
    chosen = [statement for statement in found if data in (None, statement.data)]
    if data is not None and not chosen:
        names = (statement.data for statement in found)
        raise LedgerError(f"the ledger has nothing of '{data}'; {did_you_mean(data, names)}")
    return chosen


def format_epsilon(epsilon: float) -> str:
    """ε to three digits, rounded up; "no bound" where there is none."""
    return rounded_up(epsilon) if math.isfinite(epsilon) else "no bound"


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None
