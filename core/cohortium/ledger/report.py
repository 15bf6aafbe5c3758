"""What a ledger comes to: each run, and all of them together, for people and for programs."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
from attrs import frozen

from cohortium.errors import LedgerError
from cohortium.ledger.cost import Budget, Terms
from cohortium.privacy.accounting import GaussianMechanism
from cohortium.privacy.guarantee import rounded_up
from cohortium.text import near

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.ledger.cost import Price
    from cohortium.ledger.ledger import Ledger, Run

DELTA = 1e-5
"""δ at which ε is given where no budget says another."""


@frozen(kw_only=True)
class Line:
    """One run's attempts at one price, and their ε; infinity where they have no bound."""

    run: Run
    epsilon: float


@frozen(kw_only=True)
class Statement:
    """What was spent of some data.

    Attributes:
        data: What the hospital calls them.
        terms: What ε is said of: the budget's, or else the strongest that hold for all runs.
        delta: δ at which ε is given.
        epsilon: Of everything together; infinity where something has no bound.
        lines: By run, the oldest first.
        budget: What may be spent, where that is known.
    """

    data: str
    terms: Terms
    delta: float
    epsilon: float
    lines: tuple[Line, ...]
    budget: Budget | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values; null stands for an ε without bound."""
        return {
            "data": self.data,
            "epsilon": _finite(self.epsilon),
            "delta": self.delta,
            **attrs.asdict(self.terms),
            "budget": None if self.budget is None else attrs.asdict(self.budget),
            "runs": [
                {
                    "run": line.run.session.hex(),
                    "attempts": line.run.attempts,
                    "rounds": line.run.rounds,
                    "first": line.run.first,
                    "last": line.run.last,
                    "epsilon": _finite(line.epsilon),
                    **msgspec.to_builtins(line.run.price),
                }
                for line in self.lines
            ],
        }

    def __str__(self) -> str:
        limit = "" if self.budget is None else f", of a budget of {self.budget}"
        spent = f"ε = {shown(self.epsilon)} at δ = {self.delta:g} for {self.terms}"
        return f"{self.data}: {spent}{limit}" if self.lines else f"{self.data}: ε = 0{limit}"


def statements(
    ledger: Ledger, *, budgets: Mapping[str, Budget] | None = None, delta: float | None = None
) -> list[Statement]:
    """What `ledger` comes to, for each data identity in it or with a budget.

    Args:
        ledger: The ledger.
        budgets: What may be spent, by data identity.
        delta: δ at which ε is given; by default the budget's.

    Raises:
        LedgerError: The ledger cannot be used.
    """
    budgets = budgets or {}
    with ledger.reading() as book:
        kept = {name: book.runs(name) for name in sorted({*book.names(), *budgets})}
    known: dict[tuple[Terms, float, frozenset[tuple[Price, int]]], float] = {}

    def epsilon(terms: Terms, at: float, prices: Counter[Price]) -> float:
        # Simulated sites have spent alike, and a bound takes a second.
        key = (terms, at, frozenset(prices.items()))
        if key not in known:
            known[key] = terms.epsilon(prices, at)
        return known[key]

    def statement(name: str, runs: list[Run]) -> Statement:
        budget = budgets.get(name)
        prices: Counter[Price] = Counter()
        for run in runs:
            prices[run.price] += run.attempts
        terms = Terms.of(prices) if budget is None else budget.terms
        at = delta or (DELTA if budget is None else budget.delta)
        return Statement(
            data=name,
            terms=terms,
            delta=at,
            epsilon=epsilon(terms, at, prices),
            lines=tuple(
                Line(run=run, epsilon=epsilon(terms, at, Counter({run.price: run.attempts})))
                for run in runs
            ),
            budget=budget,
        )

    return [statement(name, runs) for name, runs in kept.items()]


def described(price: Price) -> str:
    """The mechanism of a price, with what qualifies it, for people."""
    mechanism = price.mechanism
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
    terms = f"one {price.unit} ({price.adjacency}) against {price.against}"
    return f"{words}; {terms}{'; SIMULATION' if price.simulation else ''}"


def select(found: list[Statement], data: str | None) -> list[Statement]:
    """The statement of `data`, or all if it is None.

    Raises:
        LedgerError: There is none.
    """
    chosen = [statement for statement in found if data in (None, statement.data)]
    if data is not None and not chosen:
        names = (statement.data for statement in found)
        raise LedgerError(f"the ledger has nothing of '{data}'; {near(data, names)}")
    return chosen


def shown(epsilon: float) -> str:
    """ε to three digits, rounded up; "no bound" where there is none."""
    return rounded_up(epsilon) if math.isfinite(epsilon) else "no bound"


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None
