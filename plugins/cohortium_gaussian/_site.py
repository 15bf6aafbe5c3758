"""A site's batches, noise and releases in a Gaussian run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen

from cohortium.plugin import (
    RefusalCode,
    RefusalError,
    RingVector,
    clipped_sum,
    mean_gradient,
    parameters,
    sample_batches,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from cohortium.plugin import ExampleIndices, KeyStream, Randomness
    from cohortium_gaussian._clip import AdaptiveClip
    from cohortium_gaussian._plan import GaussianPlan
    from cohortium_gaussian._round import GaussianRound


@frozen
class GaussianSite:
    """One site's part of one attempt.  See `SitePrivatizer`."""

    round_plan: GaussianRound
    secret: Randomness = field(repr=False)
    patients: ExampleIndices | None = field(repr=False)
    _noise: KeyStream = field(init=False, repr=False)
    # The weighted count of the batch, once the batch is clipped.
    _counts: list[float] = field(factory=list, init=False, repr=False)

    @_noise.default
    def _make_noise(self) -> KeyStream:
        return self.secret.stream("noise")

    @property
    def plan(self) -> GaussianPlan:
        """Numbers of the run."""
        return self.round_plan.plan

    def batches(self, examples: int) -> Iterator[ExampleIndices]:
        """Yield Poisson samples of examples or patients, or shuffled batches.

        Shuffled batches have the declared size.
        """
        stream, unit = self.secret.stream("batches"), self.plan.terms.unit
        return sample_batches(self.plan.workload, unit, examples, self.patients, stream)

    def set_private_gradient(
        self, net: nn.Module, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices
    ) -> None:
        """Set each `.grad` to the clipped sum over the declared batch size.

        The sum carries noise here unless sites share the noise.  It is in units of `gradient_unit`.
        If updates are clipped instead, the gradient is the mean.
        """
        import torch

        plan, here = self.plan, self.round_plan
        if not plan.clips_gradients:
            mean_gradient(net, losses, batch)
            return
        unclipped = clipped_sum(net, losses, batch, clip=here.clip)
        if plan.adaptive is not None:
            self._counts.append(plan.adaptive.count(unclipped, len(batch) - unclipped))
        trained = parameters.trainable(net)
        # In double precision, so that the noise's own bits are not lost.
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        total = torch.cat([g.flatten() for g in gradients]).cpu().double()
        if plan.workload.output == "gradient":
            total.clamp_(-here.largest_sum, here.largest_sum)
        if not plan.is_shared:
            total += torch.from_numpy(here.deviation * self._noise.normal(len(total)))
        mean = (total / (plan.expected_batch * here.gradient_unit)).float()
        pieces = torch.split(mean, [p.numel() for p in trained])
        for parameter, piece in zip(trained, pieces, strict=True):
            parameter.grad = piece.view_as(parameter).to(parameter)

    def release(self, vector: Tensor, weight: float) -> RingVector:  # noqa: ARG002
        """Encode the vector, after the clipping and noising that are still due."""
        import torch

        plan, here = self.plan, self.round_plan
        values = vector.detach().to("cpu", torch.float64, copy=True).numpy()
        norm = float(np.linalg.norm(values))
        if not math.isfinite(norm):
            raise RefusalError(
                RefusalCode.NON_FINITE, "its update holds NaN or infinity; lower the rate."
            )
        if not plan.clips_gradients:
            values *= min(1.0, here.clip / max(norm, 1e-12))
            values += here.deviation * self._noise.normal(len(values))
        elif plan.is_shared:
            deviation = here.deviation / (plan.expected_batch * here.gradient_unit)
            values += deviation * self._noise.normal(len(values))
        elif (
            plan.workload.output == "update"
            and np.abs(values).max(initial=0) > plan.terms.max_abs_value
        ):
            raise RefusalError(
                RefusalCode.OUT_OF_RANGE,
                f"its noised update exceeds {plan.terms.max_abs_value:g}; raise "
                "privatizer.max_abs_value or lower the learning rate.",
            )
        if plan.adaptive is None:
            return RingVector(plan.ring, plan.code.encode(values))
        words = np.empty(plan.length, dtype=plan.ring.dtype)
        plan.code.encode(values, scale=1 / here.scale, out=words[:-1])
        plan.code.encode(np.array([self._count(plan.adaptive, norm)]), out=words[-1:])
        return RingVector(plan.ring, words)

    def _count(self, adaptive: AdaptiveClip, norm: float) -> float:
        """Return the noised count of units within the clip, per expected unit.

        Args:
            adaptive: Rule of the clip norm.
            norm: Norm of the update, where that is the clipped unit.
        """
        here = self.round_plan
        within = int(norm <= here.clip)
        count = sum(self._counts) if self._counts else adaptive.count(within, 1 - within)
        noise = here.deviation / here.clip * float(self._noise.normal(1)[0])
        return (count + noise) / adaptive.units
