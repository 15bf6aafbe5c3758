"""No privacy: sites release exact weighted updates.

They are in fixed point, so that they can be summed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import define, field, frozen
from attrs.validators import ge, le

from cohortium.plugin import (
    FederationSpec,
    FixedPoint,
    Offer,
    PrivacyError,
    Privatizer,
    RefusalCode,
    RefusalError,
    RingVector,
    RunError,
    Workload,
    hookimpl,
    mean_gradient,
    shuffled_batches,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from cohortium.plugin import ExampleIndices, KeyStream, PlanState, Randomness, Ring, RingSum

COHORTIUM_API = 1


@frozen
class NoPrivacy:
    """Releases of the update, weighted by its examples, without any guarantee.

    Attributes:
        max_abs_value: The largest value of an update that can be sent.  A larger one is an error.
        quantization_step: Updates are rounded to multiples of it.
    """

    max_abs_value: float = field(default=64.0, validator=[ge(1e-30), le(1e30)])
    quantization_step: float = field(default=2.0**-17, validator=[ge(1e-30), le(1e30)])

    def plan(
        self, workload: Workload, federation_spec: FederationSpec, parameters: int
    ) -> UnprivatePlan:
        """Choose a ring for the weighted sum and the weights' sum.

        The ring's vector has one more element for the sum of the weights.  Weights are in units of
        the declared mean.  So they add up to at most the number of sites, and a weighted sum to at
        most `max_abs_value` times that.  A single weight may be all of it.  So the sum of the
        weights fits even if sites have declared too few examples, and shows that.
        """
        try:
            weights = (
                federation_spec.sites + self.quantization_step * federation_spec.cohort_size
            )  # each weight is rounded, to half a step
            largest = max(weights * self.max_abs_value, weights * federation_spec.cohort_size)
            code = FixedPoint.fitting(
                largest, step=self.quantization_step, terms=federation_spec.cohort_size
            )
        except ValueError as error:
            raise PrivacyError(f"privatizer 'none': {error}") from error
        return UnprivatePlan(code, self.max_abs_value, workload, federation_spec, parameters)


@frozen
class UnprivatePlan:
    """Public numbers of a run without privacy."""

    code: FixedPoint
    bound: float
    workload: Workload
    federation_spec: FederationSpec
    parameters: int
    guarantee: None = None
    mechanism: None = None
    initial_state: PlanState = ()

    @property
    def ring(self) -> Ring:
        """Ring that the weighted sum fits into."""
        return self.code.ring

    @property
    def length(self) -> int:
        """Length of the update and its weight."""
        return self.parameters + 1

    def guarantee_after(self, rounds: Sequence[int]) -> None:
        """Return None, because there is no guarantee."""

    def at_round(self, round: int, state: PlanState) -> UnprivatePlan:  # noqa: A002, ARG002
        """Return this plan, because all rounds are alike."""
        return self

    def for_site(self, secret: Randomness, patients: ExampleIndices | None = None) -> UnprivateSite:  # noqa: ARG002
        """Return a site whose batches come from `secret`, without noise."""
        return UnprivateSite(self, secret.stream("batches"))

    def decode(self, total: RingSum) -> Tensor:
        """Return the weighted mean.

        Raises:
            RunError: The weights add up to more than is declared, so that the sum may have wrapped.
        """
        import torch

        weight = float(self.code.decode(total.words[-1:])[0])
        if (
            not 0
            <= weight
            <= self.federation_spec.sites + self.code.step * self.federation_spec.cohort_size / 2
        ):
            raise RunError(
                f"the sites trained on {weight * self.federation_spec.examples_per_site:,.0f} "
                f"examples, and {self.federation_spec.examples:,} are declared, for which sums are "
                "sized; raise examples under [data]."
            )
        if weight == 0:
            return torch.zeros(self.parameters)
        return torch.from_numpy(self.code.mean(total.words[:-1], weight))

    def next_state(self, total: RingSum) -> PlanState:  # noqa: ARG002
        """Return (), because nothing changes."""
        return ()


@define(eq=False)
class UnprivateSite:
    """One attempt at one site, without privacy."""

    plan: UnprivatePlan
    stream: KeyStream
    _parameters: dict[nn.Module, list[nn.Parameter]] = field(factory=dict, init=False)

    def batches(self, examples: int) -> Iterator[ExampleIndices]:
        """Yield shuffled passes in batches of the declared size.

        Without a declared size, yield Poisson samples.
        """
        return shuffled_batches(self.plan.workload, examples, self.stream)

    def set_private_gradient(
        self,
        net: nn.Module,
        losses: Callable[[ExampleIndices], Tensor],
        batch: ExampleIndices,
    ) -> None:
        """Set the mean gradient, which is zero for an empty batch."""
        if net not in self._parameters:
            self._parameters[net] = list(net.parameters())
        mean_gradient(net, losses, batch, parameters=self._parameters[net])

    def release(self, vector: Tensor, weight: float) -> RingVector:
        """Return the update times its weight, then the weight, in fixed point."""
        import torch

        largest = float(torch.linalg.vector_norm(vector, float("inf"))) if len(vector) else 0.0
        if not np.isfinite(largest):
            raise RefusalError(
                RefusalCode.NON_FINITE,
                "its update holds NaN or infinity; lower the rate, or look for them in the "
                "network's outputs.",
            )
        if largest > self.plan.bound:
            raise RefusalError(
                RefusalCode.OUT_OF_RANGE,
                f"its update exceeds {self.plan.bound:g}; raise privatizer.max_abs_value or lower "
                "the learning rate.",
            )
        federation_spec = self.plan.federation_spec
        if not 0 <= weight <= federation_spec.examples:
            raise RefusalError(
                RefusalCode.EXAMPLES,
                f"it trained on {weight:,.0f} examples, and the study declares "
                f"{federation_spec.examples:,} over all sites together; raise examples under "
                "[data].",
            )
        relative = weight / federation_spec.examples_per_site
        words, code = self.plan.ring.zeros(self.plan.length), self.plan.code
        code.encode(vector.cpu().numpy(), scale=relative, out=words[:-1])
        code.encode(np.array([relative]), out=words[-1:])
        return RingVector(self.plan.ring, words)


@hookimpl
def cohortium_privatizers() -> list[Offer[Privatizer]]:
    """Offer `none`."""
    return [Offer("none", NoPrivacy, "No privacy: exact weighted updates in fixed point.")]
