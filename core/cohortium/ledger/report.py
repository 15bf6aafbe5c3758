"""Totals of a ledger, by run and together, for people and programs."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
from attrs import frozen

from cohortium.errors import LedgerError
from cohortium.ledger.account import DELTA
from cohortium.ledger.cost import Budget, PrivacyScope
from cohortium.privacy.accounting import GaussianMechanism
from cohortium.privacy.guarantee import rounded_up
from cohortium.text import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.ledger.cost import AttemptCost
    from cohortium.ledger.ledger import Ledger, RunCharges


SEVERAL = 2


@frozen(kw_only=True)
class RunEntry:
    """Attempts of one run at one cost, with their ε.

    ε is infinity if the attempts have no bound.
    """

    charges: RunCharges
    epsilon: float


@frozen(kw_only=True)
class LedgerReport:
    """Spending of some data.

    Attributes:
        data: The hospital's name for the data.
        scope: Unit and adversary of ε: the budget's, or else the strongest that hold for all runs.
        delta: δ at which ε is reported.
        epsilon: ε of everything together, as a list that was fixed in advance, or infinity if a
            part has no bound.
        runs: Entries by run, the oldest first.
        budget: The most that may be spent, if it is known.
        adaptive_epsilon: ε at the budget's δ of several runs that were chosen one after another, by
            which the budget is held. None without a budget, or for one run.
    """

    data: str
    scope: PrivacyScope
    delta: float
    epsilon: float
    runs: tuple[RunEntry, ...]
    budget: Budget | None = None
    adaptive_epsilon: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain values, with null for an ε without a bound."""
        return {
            "data": self.data,
            "epsilon": _finite(self.epsilon),
            "adaptive_epsilon": None
            if self.adaptive_epsilon is None
            else _finite(self.adaptive_epsilon),
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
        if self.adaptive_epsilon is not None:
            limit += f"; {format_epsilon(self.adaptive_epsilon)} as runs chosen one after another"
        return f"{self.data}: {spent}{limit}" if self.runs else f"{self.data}: ε = 0{limit}"


def build_reports(
    ledger: Ledger, *, budgets: Mapping[str, Budget] | None = None, delta: float | None = None
) -> list[LedgerReport]:
    """Return a report for each data name in `ledger` or `budgets`.

    Args:
        ledger: The ledger.
        budgets: Budgets by data name.
        delta: δ at which ε is reported. The default is the budget's.

    Raises:
        LedgerError: The ledger cannot be used.
    """
    budgets = budgets or {}
    with ledger.read_transaction() as book:
        kept = {name: book.runs(name) for name in sorted({*book.names(), *budgets})}
    known: dict[tuple[PrivacyScope, float, frozenset[tuple[AttemptCost, int]]], float] = {}

    def epsilon(scope: PrivacyScope, at: float, costs: Counter[AttemptCost]) -> float:
        # Simulated sites have equal spending, and computing a bound takes a second.
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
            adaptive_epsilon=None
            if budget is None or len({run.session for run in runs}) < SEVERAL
            else budget.scope.adaptive_epsilon(costs, budget),
        )

    return [statement(name, runs) for name, runs in kept.items()]


def describe_cost(cost: AttemptCost) -> str:
    """Return the mechanism and conditions of a cost, for people."""
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
    """Return the report of `data`, or all reports if it is None.

    Raises:
        LedgerError: No report of `data` exists.
    """
    chosen = [statement for statement in found if data in (None, statement.data)]
    if data is not None and not chosen:
        names = (statement.data for statement in found)
        raise LedgerError(f"the ledger has nothing of '{data}'; {did_you_mean(data, names)}")
    return chosen


def format_epsilon(epsilon: float) -> str:
    """Return ε to three digits, rounded up, or "no bound"."""
    return rounded_up(epsilon) if math.isfinite(epsilon) else "no bound"


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None
