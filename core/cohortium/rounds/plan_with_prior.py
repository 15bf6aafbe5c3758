"""A privacy plan whose guarantee covers releases before the run, too."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import attrs
from attrs import frozen

from cohortium.errors import PrivacyError
from cohortium.ledger.cost import AttemptCost, run_costs
from cohortium.privacy import accounting
from cohortium.rounds.wrapped_plan import WrappedPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cohortium.privacy.guarantee import Guarantee
    from cohortium.roles.sessions import PrivacyPlan, SitePrivatizer
    from cohortium.roles.values import FederationSpec
    from cohortium.study.measurement import PriorRelease

ASSUMPTION = "the releases before this run are those that the study's [prior] declares"


def _unchanged(privatizer: SitePrivatizer) -> SitePrivatizer:
    """Return a site's privatizer as it is.  It has a name, so that plans can be pickled."""
    return privatizer


@frozen
class PlanWithPrior(WrappedPlan):
    """Plan whose guarantee composes a run with the releases before it.

    Ledgers have charged those releases already, so the cost of an attempt stays that of the plan.

    Attributes:
        prior: The releases before the run.
        rounds: Rounds of the run.
        retries: Further attempts over the whole run.
    """

    prior: PriorRelease
    rounds: int
    retries: int

    @property
    def guarantee(self) -> Guarantee | None:
        """Guarantee of the whole run and of the releases before it."""
        costs = run_costs(self.plan, self.rounds, self.retries)
        return self._composed(self.plan.guarantee, costs)

    def guarantee_after(self, rounds: Sequence[int]) -> Guarantee | None:
        """Return the guarantee of the releases before the run and of attempts at `rounds`."""
        guarantee, state = self.plan.guarantee_after(rounds), self.plan.initial_state
        mechanisms = (self.plan.at_round(each, state).mechanism for each in rounds)
        return self._composed(guarantee, Counter(AttemptCost.of(m, guarantee) for m in mechanisms))

    def _composed(
        self, guarantee: Guarantee | None, costs: Counter[AttemptCost]
    ) -> Guarantee | None:
        """Return `guarantee` for the attempts at `costs` and the releases before the run."""
        if guarantee is None:
            return None
        spends = [(c.mechanism, n) for c, n in costs.items() if c.mechanism is not None]
        spends.append((self.prior.mechanism, self.prior.releases))
        spent, strict = accounting.compose(spends, guarantee.delta, 1e-5)
        return attrs.evolve(
            guarantee,
            epsilon=spent.epsilon,
            epsilon_at_1e_5=strict.epsilon,
            accountant=spent.accountant,
            bounds=spent.bounds,
            assumptions=(*guarantee.assumptions, ASSUMPTION),
        )


def with_prior(
    plan: PrivacyPlan, prior: PriorRelease | None, federation_spec: FederationSpec
) -> PrivacyPlan:
    """Return `plan`, with a guarantee that covers `prior`, too.

    Args:
        plan: The plan of the run.
        prior: The releases before it, or None.
        federation_spec: The federation, as declared.

    Raises:
        PrivacyError: The guarantees of both are not of one kind.
    """
    guarantee = plan.guarantee
    if prior is None or guarantee is None:
        return plan
    theirs = (prior.unit, prior.adjacency, prior.against)
    ours = (guarantee.unit, guarantee.adjacency, guarantee.against)
    if theirs != ours:
        raise PrivacyError(
            f"[prior] protects one {theirs[0]} ({theirs[1]}) against {theirs[2]}, and the study "
            f"one {ours[0]} ({ours[1]}) against {ours[2]}; release the statistics with the "
            "privatizer of the study."
        )
    return PlanWithPrior(plan, _unchanged, prior, federation_spec.rounds, federation_spec.retries)
