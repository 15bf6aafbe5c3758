"""Costs of a prepared study as a function of its ε."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import attrs
from attrs import define, field, frozen

from cohortium.errors import PrivacyError
from cohortium.ledger.cost import run_costs
from cohortium.privacy import accounting
from cohortium.privacy.guarantee import MIN_EPSILON

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable

    from cohortium.ledger.cost import AttemptCost
    from cohortium.privacy.accounting import Mechanism
    from cohortium.roles.protocols import Privatizer
    from cohortium.roles.values import FederationSpec, Workload
    from cohortium.runs.prepare import PreparedStudy

TOLERANCE = 5e-4
"""Relative width at which the search for an ε stops, on the safe side."""


@frozen(kw_only=True)
class PricedStudy:
    """The part of a prepared study that determines its costs.

    Attributes:
        privatizer: Its privatizer.
        workload: Declaration of its trainer.
        federation_spec: Its federation, as declared.
        length: Length of a release, before the privatizer adds to it.
    """

    privatizer: Privatizer
    workload: Workload
    federation_spec: FederationSpec
    length: int

    @classmethod
    def of(cls, prepared: PreparedStudy) -> PricedStudy:
        """Return the relevant part of a prepared study."""
        statistic = prepared.run_config.statistic
        return cls(
            privatizer=prepared.federation.privatizer,
            workload=prepared.run_config.workload,
            federation_spec=prepared.run_config.federation_spec,
            length=prepared.parameters if statistic is None else len(statistic.cells),
        )


@define(eq=False)
class Pricer:
    """Costs by study and ε, each computed once."""

    _known: dict[str, Counter[AttemptCost]] = field(factory=dict, init=False)

    def costs(self, study: PricedStudy, epsilon: float) -> Counter[AttemptCost]:
        """Return the costs of all attempts of a run of `study` with `epsilon`."""
        priced = attrs.evolve(study, privatizer=with_epsilon(study.privatizer, epsilon))
        key = repr(priced)
        if key not in self._known:
            spec = priced.federation_spec
            plan = priced.privatizer.plan(priced.workload, spec, priced.length)
            self._known[key] = run_costs(plan, spec.rounds, spec.retries)
        return self._known[key].copy()


def has_epsilon(privatizer: Privatizer) -> bool:
    """Return whether the privatizer has a parameter `epsilon`."""
    return "epsilon" in {each.name for each in attrs.fields(type(cast("Any", privatizer)))}


def with_epsilon(privatizer: Privatizer, epsilon: float) -> Privatizer:
    """Return the privatizer with another ε."""
    found: Privatizer = attrs.evolve(cast("Any", privatizer), epsilon=epsilon)
    return found


def spends_of(costs: Counter[AttemptCost]) -> list[tuple[Mechanism, int]]:
    """Return costs as `accounting` takes them."""
    return [(cost.mechanism, n) for cost, n in costs.items() if cost.mechanism is not None and n]


def composed(spends: Iterable[tuple[Mechanism, int]], delta: float) -> float:
    """Return the bound on ε of all `spends`, 0 for none."""
    counts = list(spends)
    if not counts:
        return 0.0
    (spent,) = accounting.compose(counts, delta)
    return spent.epsilon


def largest_epsilon(together: Callable[[float], float], target: float, *, what: str) -> float:
    """Return the largest ε of one run that keeps everything within `target`.

    The result is within 0.1 % of it.

    Args:
        together: ε of everything, by the ε of the run.  It rises.
        target: The limit, which is also the largest ε of the run.
        what: Name of the run in an error.

    Raises:
        PrivacyError: No ε suffices.
    """
    from scipy.optimize import brentq

    known: dict[float, float] = {}

    def excess(log_epsilon: float) -> float:
        if log_epsilon not in known:
            spent = together(math.exp(log_epsilon))
            known[log_epsilon] = math.log(min(max(spent, 1e-12), 1e12) / target)
        return known[log_epsilon]

    high = math.log(target)
    if excess(high) <= 0:
        return math.exp(high)
    low = high
    try:
        while excess(low) > 0:
            high, low = low, low - math.log(2)
            _require_some(low)
        found: float = brentq(excess, low, high, xtol=TOLERANCE)
        while excess(found) > 0:
            found -= TOLERANCE
    except PrivacyError as error:
        reason = str(error).rstrip(".")
        raise PrivacyError(
            f"{what} cannot be paid for: {reason}; search with fewer candidates or rounds, or "
            "another share."
        ) from error
    return math.exp(found)


def _require_some(log_epsilon: float) -> None:
    """Refuse an ε that is too small for any run."""
    if log_epsilon < math.log(MIN_EPSILON):
        raise PrivacyError("it has no ε left")
