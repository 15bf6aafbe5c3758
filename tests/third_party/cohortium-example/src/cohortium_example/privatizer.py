"""A privatizer that promises nothing: updates are rounded to a grid, and that is all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen
from attrs.validators import gt

from cohortium.plugin import (
    FixedPoint,
    RefusalError,
    RingVector,
    mean_gradient,
    shuffled_batches,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from cohortium.plugin import (
        FederationSpec,
        KeyStream,
        PlanState,
        Randomness,
        Ring,
        RingSum,
        Workload,
    )

    ExampleIndices = NDArray[np.int64]


@frozen
class Rounding:
    """Every site counts the same, whatever its size; rounding hides nothing.

    Attributes:
        step: Updates are rounded to multiples of it.
        bound: The largest value that can be sent.
    """

    step: float = field(default=2.0**-16, validator=gt(0))
    bound: float = field(default=8.0, validator=gt(0))

    def plan(
        self, workload: Workload, federation_spec: FederationSpec, parameters: int
    ) -> RoundingPlan:
        """A ring in which the sum over all sites fits."""
        code = FixedPoint.fitting(federation_spec.cohort_size * self.bound, step=self.step)
        return RoundingPlan(code, self.bound, workload, parameters)


@frozen
class RoundingPlan:
    """The public numbers of a run."""

    code: FixedPoint
    bound: float
    workload: Workload
    length: int
    guarantee: None = None
    mechanism: None = None
    initial_state: PlanState = ()

    @property
    def ring(self) -> Ring:
        """Where the sum is taken."""
        return self.code.ring

    def guarantee_after(self, rounds: Sequence[int]) -> None:
        """Nothing was promised."""

    def at_round(self, round: int, state: PlanState) -> RoundingPlan:  # noqa: A002
        """The plan itself, as all rounds are alike."""
        return self

    def next_state(self, total: RingSum) -> PlanState:
        """Nothing changes between rounds."""
        return ()

    def for_site(self, secret: Randomness, patients: ExampleIndices | None = None) -> RoundingSite:
        """One attempt at one site."""
        return RoundingSite(self, secret.stream("batches"))

    def decode(self, total: RingSum) -> Tensor:
        """The mean over the contributors."""
        import torch

        mean = self.code.decode(total.words) / len(total.contributors)
        return torch.from_numpy(mean.astype(np.float32))


@frozen
class RoundingSite:
    """What a site does in one attempt."""

    plan: RoundingPlan
    stream: KeyStream

    def batches(self, examples: int) -> Iterator[ExampleIndices]:
        """As the trainer declared."""
        return shuffled_batches(self.plan.workload, examples, self.stream)

    def set_private_gradient(
        self, net: nn.Module, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices
    ) -> None:
        """The mean gradient."""
        mean_gradient(net, losses, batch)

    def release(self, vector: Tensor, weight: float) -> RingVector:
        """Round and encode.

        Raises:
            RefusalError: A value is not finite, or beyond the bound.
        """
        values = vector.cpu().double().numpy()
        if not (np.abs(values) <= self.plan.bound).all():
            raise RefusalError("out-of-range", f"its update is not within {self.plan.bound:g}.")
        return RingVector(self.plan.ring, self.plan.code.encode(values))
