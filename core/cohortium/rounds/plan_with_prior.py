"""A privacy plan whose guarantee covers releases before the run, too."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import attrs
from attrs import frozen

from cohortium.errors import PrivacyError
from cohortium.ledger.cost import AttemptCost, run_costs
from cohortium.privacy import accounting
from cohortium.privacy.membership import membership_bounds
from cohortium.rounds.wrapped_plan import WrappedPlan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from cohortium.privacy.accounting import Mechanism
    from cohortium.privacy.guarantee import Guarantee
    from cohortium.privacy.membership import MembershipBound
    from cohortium.roles.sessions import PrivacyPlan, SitePrivatizer
    from cohortium.roles.values import FederationSpec
    from cohortium.rounds.run_config import RunConfig
    from cohortium.study.study import Study

ASSUMPTION = "the releases before this run are those that the study's [prior] declares"

SEARCH_ASSUMPTION = "the search for the settings before this run is the one that [search] declares"


def _unchanged(privatizer: SitePrivatizer) -> SitePrivatizer:
    """Return a site's privatizer as it is.  It has a name, so that plans can be pickled."""
    return privatizer


@frozen(kw_only=True)
class EarlierReleases:
    """Releases of the same data before a run.

    Attributes:
        table: Table of the study that declares them.
        terms: Their unit, adjacency and adversary.
        spends: Their mechanisms, with their numbers.
        assumption: Condition of a guarantee that counts them.
        advice: What to do if their terms differ from those of the run.
    """

    table: str
    terms: tuple[str, str, str]
    spends: tuple[tuple[Mechanism, int], ...]
    assumption: str
    advice: str


@frozen
class PlanWithPrior(WrappedPlan):
    """Plan whose guarantee composes a run with the releases before it.

    Ledgers have charged those releases already, so the cost of an attempt stays that of the plan.

    Attributes:
        earlier: The releases before the run.
        rounds: Rounds of the run.
        retries: Further attempts over the whole run.
    """

    earlier: tuple[EarlierReleases, ...]
    rounds: int
    retries: int

    @property
    def guarantee(self) -> Guarantee | None:
        """Guarantee of the whole run and of the releases before it."""
        return self._composed(self.plan.guarantee, self._costs)

    @property
    def _costs(self) -> Counter[AttemptCost]:
        return run_costs(self.plan, self.rounds, self.retries)

    def _with_earlier(self, costs: Counter[AttemptCost]) -> list[tuple[Mechanism, int]]:
        return [*mechanisms_of(costs), *earlier_spends(self)]

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
        spends = self._with_earlier(costs)
        spent, strict = accounting.compose(spends, guarantee.delta, 1e-5)
        return attrs.evolve(
            guarantee,
            epsilon=spent.epsilon,
            epsilon_at_1e_5=strict.epsilon,
            accountant=spent.accountant,
            bounds=spent.bounds,
            assumptions=(*guarantee.assumptions, *(each.assumption for each in self.earlier)),
        )


def mechanisms_of(costs: Mapping[AttemptCost, int]) -> list[tuple[Mechanism, int]]:
    """Return the mechanisms of some attempts, with their numbers."""
    return [(cost.mechanism, n) for cost, n in costs.items() if cost.mechanism is not None]


def attack_bounds(run_config: RunConfig) -> tuple[MembershipBound, ...]:
    """Return the bounds on membership attacks on a run, with the releases before it.

    There are none without a guarantee, or if the noise came from a public seed.
    """
    earlier = earlier_spends(run_config.plan)
    return attack_bounds_of(run_config.plan.guarantee, run_config.costs(), earlier)


def attack_bounds_of(
    guarantee: Guarantee | None,
    costs: Mapping[AttemptCost, int],
    earlier: Iterable[tuple[Mechanism, int]],
) -> tuple[MembershipBound, ...]:
    """Return the bounds on membership attacks on a run with these costs, as `attack_bounds` does.

    Args:
        guarantee: The guarantee of the run, or None.
        costs: The costs of its attempts.
        earlier: Mechanisms of the releases before it, with their numbers.
    """
    if guarantee is None or guarantee.simulation:
        return ()
    return membership_bounds([*mechanisms_of(costs), *earlier])


def earlier_spends(plan: PrivacyPlan) -> tuple[tuple[Mechanism, int], ...]:
    """Return the mechanisms of the releases before a run that its guarantee counts."""
    known = plan.earlier if isinstance(plan, PlanWithPrior) else ()
    return tuple(each for releases in known for each in releases.spends)


def with_prior(plan: PrivacyPlan, study: Study, federation_spec: FederationSpec) -> PrivacyPlan:
    """Return `plan`, with a guarantee that covers the releases before the run, too.

    Args:
        plan: The plan of the run.
        study: The study of the run, with its `prior` and its `search`.
        federation_spec: The federation, as declared.

    Raises:
        PrivacyError: The guarantees of both are not of one kind.
    """
    guarantee, earlier = plan.guarantee, tuple(earlier_releases(study))
    if not earlier or guarantee is None:
        return plan
    ours = (guarantee.unit, guarantee.adjacency, guarantee.against)
    for releases in earlier:
        theirs = releases.terms
        if theirs != ours:
            raise PrivacyError(
                f"[{releases.table}] protects one {theirs[0]} ({theirs[1]}) against {theirs[2]}, "
                f"and the study one {ours[0]} ({ours[1]}) against {ours[2]}; {releases.advice}."
            )
    return PlanWithPrior(plan, _unchanged, earlier, federation_spec.rounds, federation_spec.retries)


def earlier_releases(study: Study) -> Iterator[EarlierReleases]:
    """Yield the releases of a study's data before its run, as the study declares them."""
    prior, search = study.prior, study.search
    if prior is not None:
        yield EarlierReleases(
            table="prior",
            terms=(prior.unit, prior.adjacency, prior.against),
            spends=((prior.mechanism, prior.releases),),
            assumption=ASSUMPTION,
            advice="release the statistics with the privatizer of the study",
        )
    if search is None:
        return
    cost = search.training if study.measurement is None else search.evaluation
    if cost is not None and cost.releases:
        yield EarlierReleases(
            table="search",
            terms=(cost.unit, cost.adjacency, cost.against),
            spends=tuple(cost.spends),
            assumption=SEARCH_ASSUMPTION,
            advice="search with the unit, adjacency and noise of the study",
        )
