"""Stand-ins for the costly parts of a round in a dry run.

They are a prebuilt network, a store that only measures the size of its input, gradients of zeros,
and an aggregation of one site.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import define, field, frozen

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
    from cohortium.ring.ring import RingVector, Words
    from cohortium.roles.protocols import Model
    from cohortium.roles.sessions import SitePrivatizer
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
    """A model whose network is built already."""

    model: Model
    net: nn.Module

    def preprocess(self, images: Tensor) -> Tensor:
        """Preprocess the images as the model does."""
        return self.model.preprocess(images)

    def build(self, spec: DataSpec, seed: int) -> nn.Module:  # noqa: ARG002
        """Return the network that is built already."""
        return self.net


@define(eq=False)
class StateSizeRecorder:
    """A store that measures a trainer's state instead of writing it."""

    bytes: int = 0
    kept: TrainerState = field(factory=TrainerState)

    def read(self) -> TrainerState:
        """Return the empty state, as nothing is stored."""
        return TrainerState()

    def write(self, kept: TrainerState) -> None:
        """Record the size of the state."""
        self.kept = kept
        self.bytes = max(self.bytes, len(encode_trainer_state(b"", kept)))

    def require_room(self, size: int) -> None:
        """Accept any size."""


@frozen
class ZeroGradientPrivatizer:
    """A site's privatizer that sets gradients of zeros, with one batch.

    It checks types, and not values.

    Attributes:
        privatizer: The privatizer of the run's plan.
        max_examples: Largest number of examples in the batch.
    """

    privatizer: SitePrivatizer
    max_examples: int

    @property
    def wrapped_part(self) -> SitePrivatizer:
        """The privatizer inside, which an error names."""
        return self.privatizer

    def batches(self, examples: int) -> Iterator[ExampleIndices]:
        """Yield one batch of all examples, up to `max_examples`.

        A sample at a small rate would be empty.
        """
        next(iter(self.privatizer.batches(examples)), None)
        yield np.arange(min(examples, self.max_examples))

    def set_private_gradient(
        self, net: nn.Module, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices
    ) -> None:
        """Compute the privatizer's gradient, and replace it by zeros."""
        self.privatizer.set_private_gradient(net, losses, batch)
        for parameter in parameters.trainable(net):
            if parameter.grad is not None:
                parameter.grad.zero_()

    def release(self, vector: Tensor, weight: float) -> RingVector:
        """Return the privatizer's release, of zeros if it refuses the values."""
        try:
            return self.privatizer.release(vector, weight)
        except RefusalError:
            return self.privatizer.release(vector.new_zeros(vector.shape), weight)


@frozen
class SingleSiteAggregator:
    """An aggregation of one site, whose release is the sum."""

    secret: AggregationGuarantee | None

    def confidentiality(self, federation_spec: FederationSpec) -> AggregationGuarantee | None:  # noqa: ARG002
        """Return the guarantee of the run's aggregator."""
        return self.secret

    def coordinator_session(
        self,
        config: AggregationConfig,
        secret: Randomness,  # noqa: ARG002
    ) -> _SingleSiteSession:
        """Return the coordinator's session."""
        return _SingleSiteSession(config)

    def site_session(
        self,
        config: AggregationConfig,
        site_context: SiteContext,  # noqa: ARG002
    ) -> _SingleSiteSession:
        """Return the site's session."""
        return _SingleSiteSession(config)


@define(eq=False)
class _SingleSiteSession:
    """Session of either side: packs a release, or unpacks it."""

    config: AggregationConfig
    _words: Words | None = field(default=None, repr=False)
    _is_asked: bool = False

    def begin_attempt(self, round: int, attempt: int, sites: Sequence[SiteId]) -> None:  # noqa: A002, ARG002
        """Reset the session."""
        self._words, self._is_asked = None, False

    def next_requests(self) -> StageRequests:
        """Ask the site once."""
        self._is_asked, was_asked = True, self._is_asked
        return StageRequests() if was_asked else StageRequests(per_site={0: b""})

    def receive(self, site: SiteId, reply: bytes) -> None:  # noqa: ARG002
        """Unpack the site's release."""
        self._words = self.config.ring.unpack(reply, self.config.length)

    def sum(self) -> RingSum:
        """Return the site's release."""
        assert self._words is not None
        return RingSum(self.config.ring, self._words, (0,))

    def handle(self, request: SiteRequest, release: Callable[[], RingVector]) -> bytes:  # noqa: ARG002
        """Return the packed release of the site."""
        return self.config.ring.pack(release().words)
