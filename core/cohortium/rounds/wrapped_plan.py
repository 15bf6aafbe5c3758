"""A privacy plan with wrapped privatizers.

Dry runs and audits replace or record values in this way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from cohortium.catalog.part_results import planned_round, require_protocol
from cohortium.roles.sessions import SitePrivatizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from cohortium.crypto.randomness import Randomness
    from cohortium.privacy.accounting import Mechanism
    from cohortium.privacy.guarantee import Guarantee
    from cohortium.ring.ring import Ring, RingSum
    from cohortium.roles.sessions import PrivacyPlan, RoundPlan
    from cohortium.roles.values import ExampleIndices, PlanState


@frozen
class WrappedPlan:
    """Plan that wraps its sites' privatizers, and otherwise equals the plan inside.

    Attributes:
        plan: The plan inside.
        wrap: Returns the wrapper of a site's privatizer.
    """

    plan: PrivacyPlan
    wrap: Callable[[SitePrivatizer], SitePrivatizer]

    @property
    def wrapped_part(self) -> PrivacyPlan:
        """The plan inside, which an error names."""
        return self.plan

    @property
    def guarantee(self) -> Guarantee | None:
        """Guarantee of the plan inside."""
        return self.plan.guarantee

    @property
    def ring(self) -> Ring:
        """Ring of the plan inside."""
        return self.plan.ring

    @property
    def length(self) -> int:
        """Length of the plan inside."""
        return self.plan.length

    @property
    def initial_state(self) -> PlanState:
        """State in which the plan inside begins."""
        return self.plan.initial_state

    def guarantee_after(self, rounds: Sequence[int]) -> Guarantee | None:
        """Return the guarantee of the plan inside after attempts at `rounds`."""
        return self.plan.guarantee_after(rounds)

    def at_round(self, round: int, state: PlanState) -> RoundPlan:  # noqa: A002
        """Return the round of the plan inside, wrapped."""
        return WrappedRound(planned_round(self.plan, round, state), self.wrap)


@frozen
class WrappedRound:
    """Plan of one round that wraps its sites' privatizers.

    Attributes:
        plan: The plan inside.
        wrap: Returns the wrapper of a site's privatizer.
    """

    plan: RoundPlan
    wrap: Callable[[SitePrivatizer], SitePrivatizer]

    @property
    def wrapped_part(self) -> RoundPlan:
        """The plan inside, which an error names."""
        return self.plan

    @property
    def mechanism(self) -> Mechanism | None:
        """Mechanism of the plan inside."""
        return self.plan.mechanism

    def for_site(
        self, secret: Randomness, patients: ExampleIndices | None = None
    ) -> SitePrivatizer:
        """Return the privatizer of the plan inside, wrapped."""
        privatizer = self.plan.for_site(secret, patients)
        require_protocol(self.plan, "for_site", privatizer, SitePrivatizer)
        return self.wrap(privatizer)

    def decode(self, total: RingSum) -> Tensor:
        """Decode `total` with the plan inside."""
        return self.plan.decode(total)

    def next_state(self, total: RingSum) -> PlanState:
        """Return the next state of the plan inside."""
        return self.plan.next_state(total)
