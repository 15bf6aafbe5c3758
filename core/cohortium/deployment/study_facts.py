"""Facts about an invited study, which a site's own code derives for its staff."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import msgspec
from attrs import frozen

from cohortium.ledger.account import DELTA
from cohortium.ledger.cost import AttemptCost, Budget, PrivacyScope
from cohortium.privacy.guarantee import Guarantee  # noqa: TC001 - msgspec reads it
from cohortium.privacy.mechanisms import Mechanism  # noqa: TC001 - msgspec reads it
from cohortium.reporting.terms import Terms
from cohortium.roles.values import AggregationGuarantee  # noqa: TC001 - msgspec reads it
from cohortium.rounds.plan_with_prior import attack_bounds_of, earlier_spends

if TYPE_CHECKING:
    from cohortium.ledger.account import Account
    from cohortium.privacy.membership import MembershipBound
    from cohortium.rounds.run_config import RunConfig
    from cohortium.study.study import Study

Number = Annotated[int, msgspec.Meta(ge=0)]


class StudyFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Releases of a run of a study, and their cost.

    Attributes:
        data: Name of the images that are charged.
        use: Their use: "train" or "test".
        terms: The study's terms.
        guarantee: The privatizer's guarantee, or None.
        aggregation: The aggregator's guarantee, or None.
        costs: Costs of all attempts of a run.
        earlier: Mechanisms of the releases before the run that the guarantee counts.
        values: Values of a release.
        size: Bytes of a release.
        is_measurement: Whether the run measures a model instead of training one.
    """

    data: str
    use: str
    terms: Terms
    guarantee: Guarantee | None
    aggregation: AggregationGuarantee | None
    costs: tuple[tuple[AttemptCost, Number], ...]
    earlier: tuple[tuple[Mechanism, Number], ...] = ()
    values: Number
    size: Number
    is_measurement: bool

    @classmethod
    def of(cls, study: Study, run_config: RunConfig, *, data: str, use: str) -> StudyFacts:
        """Return the facts about a study that the site has planned."""
        plan, spec = run_config.plan, run_config.federation_spec
        return cls(
            data=data,
            use=use,
            terms=Terms(
                sites=study.sites,
                rounds=study.rounds,
                seed=study.seed,
                cohort_size=study.cohort_size or 0,
                min_contributors=study.min_contributors,
                retries=study.retries,
                adversary=study.adversary,
                max_colluding=study.max_colluding,
                insecure_seeded_secrets=study.insecure_seeded_secrets,
            ),
            guarantee=plan.guarantee,
            aggregation=run_config.aggregator.confidentiality(spec),
            costs=tuple(run_config.costs().items()),
            earlier=earlier_spends(plan),
            values=plan.length,
            size=plan.ring.bytes_for(plan.length),
            is_measurement=run_config.statistic is not None,
        )

    @property
    def membership(self) -> tuple[MembershipBound, ...]:
        """Bounds on membership attacks, those that the report of a run has."""
        costs = Counter[AttemptCost]()
        for cost, times in self.costs:
            costs[cost] += times
        return attack_bounds_of(self.guarantee, costs, self.earlier)

    @property
    def attempts(self) -> int:
        """Most attempts of a run, and so most releases."""
        return self.terms.rounds + self.terms.retries


@frozen(kw_only=True)
class Spending:
    """Privacy spent of a site's images, before and after runs of a study.

    Attributes:
        now: ε that is spent, or infinity if a part has no bound.
        after: ε after the runs, or infinity.
        delta: δ of both.
        scope: Unit and adversary of both.
        budget: The site's budget, or None.
        is_within: Whether the runs fit the budget.
    """

    now: float
    after: float
    delta: float
    scope: PrivacyScope
    budget: Budget | None
    is_within: bool

    @classmethod
    def of(cls, facts: StudyFacts, account: Account, runs: int = 1) -> Spending:
        """Return the spending before and after `runs` whole runs.

        Raises:
            LedgerError: The ledger cannot be used.
        """
        budget = account.budget
        costs = Counter[AttemptCost]()
        for cost, times in facts.costs:
            costs[cost] += times
        found = account.outlook(costs, runs)
        return cls(
            now=found.before,
            after=found.after,
            delta=DELTA if budget is None else budget.delta,
            scope=found.scope,
            budget=budget,
            is_within=found.is_within,
        )
