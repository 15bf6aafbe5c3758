"""What stands in for the costly parts of a round while it is rehearsed.

A network that is built already, a file that only weighs what it is given, gradients of zeros, and
an aggregation of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import define, frozen

from cohortium import parameters
from cohortium.errors import RefusalError
from cohortium.ring.ring import RingSum
from cohortium.roles.values import StageRequests
from cohortium.storage.trainer_state import TrainerState, encode_trainer_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from cohortium.crypto.randomness import Randomness
    from cohortium.data.examples import DataSpec
    from cohortium.privacy.accounting import Mechanism
    from cohortium.privacy.guarantee import Guarantee
    from cohortium.ring.ring import Ring, RingVector, Words
    from cohortium.roles.protocols import Model
    from cohortium.roles.sessions import PrivacyPlan, SitePrivatizer
    from cohortium.roles.values import (
        AggregationConfig,
        AggregationGuarantee,
        ExampleIndices,
        FederationSpec,
        SiteContext,
        SiteId,
        SiteRequest,
    )


@frozen
class PrebuiltModel:
    """A model whose network is there already."""

    model: Model
    net: nn.Module

    def preprocess(self, images: Tensor) -> Tensor:
        """As the model does."""
        return self.model.preprocess(images)

    def build(self, spec: DataSpec, seed: int) -> nn.Module:  # noqa: ARG002
        """The network that is there."""
        return self.net


@define(eq=False)
class StateSizeRecorder:
    """Takes what a trainer would keep at a site, and keeps its size."""

    bytes: int = 0

    def read(self) -> TrainerState:
        """Nothing is there yet."""
        return TrainerState()

    def write(self, kept: TrainerState) -> None:
        """Weigh it."""
        self.bytes = max(self.bytes, len(encode_trainer_state(b"", kept)))

    def require_room(self, size: int) -> None:
        """There is room for all."""


@frozen
class ZeroGradientPlan:
    """A plan whose sites set gradients of zeros, with one batch: types count, and values do not.

    Attributes:
        plan: The run's.
        max_examples: Examples of the batch.
    """

    plan: PrivacyPlan
    max_examples: int

    @property
    def guarantee(self) -> Guarantee | None:
        """The run's."""
        return self.plan.guarantee

    @property
    def mechanism(self) -> Mechanism | None:
        """The run's."""
        return self.plan.mechanism

    @property
    def ring(self) -> Ring:
        """The run's."""
        return self.plan.ring

    @property
    def length(self) -> int:
        """The run's."""
        return self.plan.length

    def guarantee_after(self, attempts: int) -> Guarantee | None:
        """As in the run."""
        return self.plan.guarantee_after(attempts)

    def decode(self, total: RingSum) -> Tensor:
        """As in the run."""
        return self.plan.decode(total)

    def for_site(
        self, secret: Randomness, patients: ExampleIndices | None = None
    ) -> SitePrivatizer:
        """A site's privacy, hushed."""
        return ZeroGradientPrivatizer(self.plan.for_site(secret, patients), self.max_examples)


@frozen
class ZeroGradientPrivatizer:
    """A site's privacy that does all that it would, and then takes the values off."""

    privatizer: SitePrivatizer
    max_examples: int

    def batches(self, examples: int) -> Iterator[ExampleIndices]:
        """One batch, of everybody up to `max_examples`: a sample at a small rate would be empty."""
        next(iter(self.privatizer.batches(examples)), None)
        yield np.arange(min(examples, self.max_examples))

    def set_private_gradient(
        self, net: nn.Module, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices
    ) -> None:
        """The privatizer's gradient, and zeros in its place."""
        self.privatizer.set_private_gradient(net, losses, batch)
        for parameter in parameters.trainable(net):
            if parameter.grad is not None:
                parameter.grad.zero_()

    def release(self, vector: Tensor, weight: float) -> RingVector:
        """The privatizer's release; of zeros where it refuses the values."""
        try:
            return self.privatizer.release(vector, weight)
        except RefusalError:
            return self.privatizer.release(vector.new_zeros(vector.shape), weight)


@frozen
class SingleSiteAggregator:
    """An aggregation of one site: what it releases is the sum."""

    secret: AggregationGuarantee | None

    def confidentiality(self, cohort: FederationSpec) -> AggregationGuarantee | None:  # noqa: ARG002
        """What the run's aggregator says."""
        return self.secret

    def coordinator_session(
        self,
        setting: AggregationConfig,
        secret: Randomness,  # noqa: ARG002
    ) -> _SingleSiteSession:
        """The coordinator's session."""
        return _SingleSiteSession(setting)

    def site_session(self, setting: AggregationConfig, member: SiteContext) -> _SingleSiteSession:  # noqa: ARG002
        """The site's session."""
        return _SingleSiteSession(setting)


@define(eq=False)
class _SingleSiteSession:
    """Either side of it: packs a release, or unpacks it."""

    setting: AggregationConfig
    _words: Words | None = None
    _is_asked: bool = False

    def begin_attempt(self, round: int, attempt: int, sites: Sequence[SiteId]) -> None:  # noqa: A002, ARG002
        """Begin anew."""
        self._words, self._is_asked = None, False

    def next_requests(self) -> StageRequests:
        """Ask the site once."""
        self._is_asked, was_asked = True, self._is_asked
        return StageRequests() if was_asked else StageRequests(per_site={0: b""})

    def receive(self, site: SiteId, reply: bytes) -> None:  # noqa: ARG002
        """Take in what it releases."""
        self._words = self.setting.ring.unpack(reply, self.setting.length)

    def sum(self) -> RingSum:
        """The same."""
        assert self._words is not None
        return RingSum(self.setting.ring, self._words, (0,))

    def handle(self, request: SiteRequest, release: Callable[[], RingVector]) -> bytes:  # noqa: ARG002
        """What the site releases."""
        return self.setting.ring.pack(release().words)
