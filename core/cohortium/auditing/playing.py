"""A study's own rounds in this process, with every message and every release looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs
from attrs import define, field, frozen

from cohortium import parameters
from cohortium.errors import TooFewSitesError
from cohortium.rounds.coordinator import Coordinator
from cohortium.rounds.round_runner import select_cohort

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

    from cohortium.crypto.randomness import Randomness
    from cohortium.data.examples import Examples
    from cohortium.privacy.accounting import Mechanism
    from cohortium.privacy.guarantee import Guarantee
    from cohortium.ring.ring import Ring, RingSum, RingVector
    from cohortium.roles.sessions import PrivacyPlan, SitePrivatizer
    from cohortium.roles.values import ExampleIndices, SiteId
    from cohortium.rounds.run_config import RunConfig
    from cohortium.rounds.site import Site
    from cohortium.runs.prepare import PreparedStudy


@frozen
class InstrumentedPlan:
    """A plan whose sites' privacy is wrapped; else the plan as it is."""

    plan: PrivacyPlan
    wrap: Callable[[SitePrivatizer], SitePrivatizer]

    @property
    def guarantee(self) -> Guarantee | None:
        """The plan's."""
        return self.plan.guarantee

    @property
    def mechanism(self) -> Mechanism | None:
        """The plan's."""
        return self.plan.mechanism

    @property
    def ring(self) -> Ring:
        """The plan's."""
        return self.plan.ring

    @property
    def length(self) -> int:
        """The plan's."""
        return self.plan.length

    def guarantee_after(self, attempts: int) -> Guarantee | None:
        """The plan's."""
        return self.plan.guarantee_after(attempts)

    def for_site(
        self, secret: Randomness, patients: ExampleIndices | None = None
    ) -> SitePrivatizer:
        """The plan's, wrapped."""
        return self.wrap(self.plan.for_site(secret, patients))

    def decode(self, total: RingSum) -> Tensor:
        """The plan's."""
        return self.plan.decode(total)


@define(eq=False)
class Recording:
    """A site's privacy that notes what passes through, or plays back what was noted.

    Attributes:
        batches: As they were drawn.
        gradients: As they were set, each parameter's.
        releases: As they left.
    """

    batches: list[ExampleIndices] = field(factory=list)
    gradients: list[list[Tensor | None]] = field(factory=list)
    releases: list[RingVector] = field(factory=list)

    def record(self, privatizer: SitePrivatizer) -> SitePrivatizer:
        """`privatizer`, noted."""
        return _RecordingPrivatizer(privatizer, self)

    def clear(self) -> None:
        """Forget what was noted."""
        self.batches.clear()
        self.gradients.clear()
        self.releases.clear()


@frozen(eq=False)
class _RecordingPrivatizer:
    privatizer: SitePrivatizer
    tape: Recording

    def batches(self, examples: int) -> Iterator[ExampleIndices]:
        for batch in self.privatizer.batches(examples):
            self.tape.batches.append(batch)
            yield batch

    def set_private_gradient(
        self, net: nn.Module, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices
    ) -> None:
        self.privatizer.set_private_gradient(net, losses, batch)
        grads = [p.grad for p in parameters.trainable(net)]
        self.tape.gradients.append([None if g is None else g.clone() for g in grads])

    def release(self, vector: Tensor, weight: float) -> RingVector:
        released = self.privatizer.release(vector, weight)
        self.tape.releases.append(released)
        return released


@frozen(eq=False)
class ReplayPrivatizer:
    """A site's privacy that puts what was noted in another world in place of what it covers.

    Where gradients are clipped, all that is sent follows from them, and they are replaced; where
    the update is, the release.  The site's own data are used for all else.
    """

    privatizer: SitePrivatizer
    tape: Recording
    replaces: Literal["gradients", "releases"]

    def batches(self, examples: int) -> Iterator[ExampleIndices]:
        """The site's own."""
        return self.privatizer.batches(examples)

    def set_private_gradient(
        self, net: nn.Module, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices
    ) -> None:
        """The noted one, after the site's own has been computed."""
        self.privatizer.set_private_gradient(net, losses, batch)
        if self.replaces == "gradients" and self.tape.gradients:
            noted = self.tape.gradients.pop(0)
            for parameter, gradient in zip(parameters.trainable(net), noted, strict=True):
                parameter.grad = gradient

    def release(self, vector: Tensor, weight: float) -> RingVector:
        """The noted one, or the site's own."""
        released = self.privatizer.release(vector, weight)
        if self.replaces == "releases" and self.tape.releases:
            return self.tape.releases.pop(0)
        return released


@frozen
class CapturedMessage:
    """One message, and where it stood.

    Attributes:
        round: From 0.
        stage: Exchanges before it in the round.
        site: Whose it is; None for the part that all are sent.
        kind: Who speaks.
        data: Its bytes.
    """

    round: int
    stage: int
    site: SiteId | None
    kind: Literal["request", "reply"]
    data: bytes = field(repr=False)


@define(eq=False, kw_only=True)
class InProcessRun:
    """A coordinator and its sites, joined by function calls.

    Attributes:
        setting: What every party knows.
        sites: Each ready to answer.
        messages: Every message.
        failure: Why the rounds came to an end before their time, if they did.
    """

    setting: RunConfig
    sites: Mapping[SiteId, Site]
    messages: list[CapturedMessage] = field(factory=list)
    failure: str | None = None

    @classmethod
    def of(
        cls,
        prepared: PreparedStudy,
        setting: RunConfig,
        partition: Mapping[SiteId, Examples],
        wrap: Mapping[SiteId, Callable[[SitePrivatizer], SitePrivatizer]],
    ) -> InProcessRun:
        """The sites of a study with these examples, each site's privacy wrapped by its own."""
        sites: dict[SiteId, Site] = {}
        for number, examples in partition.items():
            own = attrs.evolve(setting, plan=InstrumentedPlan(setting.plan, wrap[number]))
            recipe = attrs.evolve(prepared.site_factory(number), setting=own, examples=examples)
            sites[number] = recipe.create(share_model_with=next(iter(sites.values()), None))
        return cls(setting=setting, sites=sites)

    def run_rounds(self, number: int) -> Iterator[tuple[nn.Module, tuple[SiteId, ...]]]:
        """Play `number` rounds; yields the network at the end of each, and who contributed.

        They end early, with `failure` set, where too few sites answer.
        """
        coordinator = Coordinator(self.setting)
        for at in range(number):
            coordinator.begin_attempt(at, at, select_cohort(self.setting, at, at))
            self._run_stages(coordinator, at)
            try:
                outcome = coordinator.finish_attempt()
            except TooFewSitesError as error:
                self.failure = str(error)
                return
            yield coordinator.net, outcome.contributors

    def _run_stages(self, coordinator: Coordinator, at: int) -> None:
        stage = 0
        while requests := coordinator.next_requests():
            self.messages.append(CapturedMessage(at, stage, None, "request", requests.broadcast))
            for site, own in requests.per_site.items():
                reply = self.sites[site].answer(requests.broadcast, own)
                self.messages += [
                    CapturedMessage(at, stage, site, "request", own),
                    CapturedMessage(at, stage, site, "reply", reply),
                ]
                coordinator.receive(site, reply)
            stage += 1
