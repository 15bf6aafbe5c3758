"""A study's own rounds in this process, with all messages captured.

Releases are captured too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs
import numpy as np
from attrs import define, field, frozen

from cohortium import parameters
from cohortium.errors import TooFewSitesError
from cohortium.ring.ring import RingVector
from cohortium.rounds.coordinator import Coordinator
from cohortium.rounds.round_runner import select_cohort
from cohortium.rounds.wrapped_plan import WrappedPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

    from cohortium.data.examples import Examples
    from cohortium.roles.sessions import RoundPlan, SitePrivatizer
    from cohortium.roles.values import ExampleIndices, SiteId
    from cohortium.rounds.run_config import RunConfig
    from cohortium.rounds.site import Site
    from cohortium.runs.prepare import PreparedStudy


@define(eq=False)
class Recording:
    """Record of a site's privatizer, for comparison or replay.

    Attributes:
        batches: In the order of their draws.
        gradients: In the order in which they were set, each parameter's.
        releases: In the order in which they left the site.
    """

    batches: list[ExampleIndices] = field(factory=list, repr=False)
    gradients: list[list[Tensor | None]] = field(factory=list, repr=False)
    releases: list[RingVector] = field(factory=list)

    def record(self, privatizer: SitePrivatizer) -> SitePrivatizer:
        """Return `privatizer`, wrapped so that its values are recorded."""
        return _RecordingPrivatizer(privatizer, self)

    def clear(self) -> None:
        """Delete all records."""
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
    """Site's privatizer that replays another world's records of protected values.

    If gradients are clipped, everything that the site sends follows from them, so they are
    replaced. If the update is clipped, the release is replaced. The site's own data are used for
    all else.
    """

    privatizer: SitePrivatizer
    tape: Recording
    replaces: Literal["gradients", "releases"]

    def batches(self, examples: int) -> Iterator[ExampleIndices]:
        """Yield the site's own batches."""
        return self.privatizer.batches(examples)

    def set_private_gradient(
        self, net: nn.Module, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices
    ) -> None:
        """Compute the site's own gradient, then replace it with the recorded one."""
        self.privatizer.set_private_gradient(net, losses, batch)
        if self.replaces == "gradients" and self.tape.gradients:
            noted = self.tape.gradients.pop(0)
            for parameter, gradient in zip(parameters.trainable(net), noted, strict=True):
                parameter.grad = gradient

    def release(self, vector: Tensor, weight: float) -> RingVector:
        """Return the recorded release, or the site's own."""
        released = self.privatizer.release(vector, weight)
        if not self.tape.releases:
            return released
        noted = self.tape.releases.pop(0)
        if self.replaces == "releases":
            return noted
        # The privatizer's own numbers, such as a count, follow the trainer's vector.
        own = len(vector)
        words = np.concatenate([released.words[:own], noted.words[own:]])
        return RingVector(released.ring, words)


@frozen
class CapturedMessage:
    """One message, and its place in the run.

    Attributes:
        round: From 0.
        stage: Number of earlier exchanges in the round.
        site: Site that sends or receives it. None for the part that all sites receive.
        kind: Whether the coordinator requests or a site replies.
        data: Its bytes.
    """

    round: int
    stage: int
    site: SiteId | None
    kind: Literal["request", "reply"]
    data: bytes = field(repr=False)


@define(eq=False, kw_only=True)
class InProcessRun:
    """A coordinator and its sites, connected by function calls.

    Attributes:
        run_config: Settings that every party knows.
        sites: Each ready to answer.
        messages: Every message.
        failure: Reason for an early end of the rounds, if they ended early.
    """

    run_config: RunConfig
    sites: Mapping[SiteId, Site]
    messages: list[CapturedMessage] = field(factory=list)
    failure: str | None = None

    @classmethod
    def of(
        cls,
        prepared: PreparedStudy,
        run_config: RunConfig,
        partition: Mapping[SiteId, Examples],
        wrap: Mapping[SiteId, Callable[[SitePrivatizer], SitePrivatizer]],
    ) -> InProcessRun:
        """Build the sites of a study with these examples and wrapped privatizers."""
        sites: dict[SiteId, Site] = {}
        for number, examples in partition.items():
            own = attrs.evolve(run_config, plan=WrappedPlan(run_config.plan, wrap[number]))
            recipe = attrs.evolve(prepared.site_factory(number), run_config=own, examples=examples)
            sites[number] = recipe.create(share_model_with=next(iter(sites.values()), None))
        return cls(run_config=run_config, sites=sites)

    def run_rounds(self, number: int) -> Iterator[tuple[nn.Module, tuple[SiteId, ...], RoundPlan]]:
        """Run `number` rounds, and yield each round's network, contributors and privacy plan.

        They end early, with `failure` set, if too few sites answer.
        """
        coordinator = Coordinator(self.run_config)
        for at in range(number):
            coordinator.begin_attempt(at, at, select_cohort(self.run_config, at, at))
            self._run_stages(coordinator, at)
            try:
                outcome = coordinator.finish_attempt()
            except TooFewSitesError as error:
                self.failure = str(error)
                return
            yield coordinator.net, outcome.contributors, coordinator.round_plan

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
