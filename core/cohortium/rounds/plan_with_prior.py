"""A privacy plan whose guarantee covers releases before the run, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from attrs import frozen

from cohortium.errors import PrivacyError
from cohortium.privacy import accounting
from cohortium.rounds.wrapped_plan import WrappedPlan

if TYPE_CHECKING:
    from cohortium.privacy.guarantee import Guarantee
    from cohortium.roles.sessions import PrivacyPlan, SitePrivatizer
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
        attempts: Attempts of the run.
    """

    prior: PriorRelease
    attempts: int

    @property
    def guarantee(self) -> Guarantee | None:
        """Guarantee of the whole run and of the releases before it."""
        return self.guarantee_after(self.attempts)

    def guarantee_after(self, attempts: int) -> Guarantee | None:
        """Return the guarantee of the releases before the run and of its first `attempts`."""
        guarantee, mechanism = self.plan.guarantee_after(attempts), self.plan.mechanism
        if guarantee is None or mechanism is None:
            return guarantee
        spends = [(mechanism, attempts), (self.prior.mechanism, self.prior.releases)]
        spent, strict = accounting.compose(spends, guarantee.delta, 1e-5)
        return attrs.evolve(
            guarantee,
            epsilon=spent.epsilon,
            epsilon_at_1e_5=strict.epsilon,
            accountant=spent.accountant,
            bounds=spent.bounds,
            assumptions=(*guarantee.assumptions, ASSUMPTION),
        )


def with_prior(plan: PrivacyPlan, prior: PriorRelease | None, attempts: int) -> PrivacyPlan:
    """Return `plan`, with a guarantee that covers `prior`, too.

    Args:
        plan: The plan of the run.
        prior: The releases before it, or None.
        attempts: Attempts of the run.

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
    return PlanWithPrior(plan, _unchanged, prior, attempts)
