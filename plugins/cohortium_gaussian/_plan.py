"""The numbers of a Gaussian run, and what a site does with them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen

from cohortium.plugin import (
    Cohort,
    FixedPoint,
    Guarantee,
    PrivacyError,
    RefusalError,
    RingVector,
    Work,
    clipped_sum,
    mean_gradient,
    poisson,
    shuffled,
    vector,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from cohortium.plugin import Randomness, Ring, RingSum, Stream
    from cohortium_gaussian import Gaussian
    from cohortium_gaussian._accounting import Accounting

    Index = NDArray[np.int64]

STEPS_PER_DEVIATION = 64
"""Noised values are rounded to this fraction of the noise's standard deviation: the rounding adds
a part in 50,000 to its variance."""

WRAP_BITS = 40
"""A wrap of the sum is less likely than 2 to minus this, over the run."""


@frozen
class GaussianPlan:
    """Public numbers of a Gaussian run; see `PrivacyPlan`."""

    terms: Gaussian
    work: Work = field(kw_only=True)
    cohort: Cohort = field(kw_only=True)
    parameters: int = field(kw_only=True)
    accounting: Accounting = field(kw_only=True)
    noise: float = field(kw_only=True)
    code: FixedPoint = field(init=False)
    guarantee: Guarantee = field(init=False)

    @code.default
    def _make_code(self) -> FixedPoint:
        try:
            return self._narrowest()
        except ValueError as error:
            raise PrivacyError(f"privatizer 'gaussian': {error}") from error

    @guarantee.default
    def _make_guarantee(self) -> Guarantee:
        return self.spent(self.cohort.attempts)

    @property
    def ring(self) -> Ring:
        """Where the noised sum fits."""
        return self.code.ring

    @property
    def length(self) -> int:
        """The vector alone: every site weighs the same, by declaration."""
        return self.parameters

    @property
    def is_example_level(self) -> bool:
        """Whether gradients are clipped and noised, rather than the update."""
        return self.terms.unit == "example"

    @property
    def expected_batch(self) -> float:
        """The declared number of examples that a batch's gradient sum is divided by."""
        return self.work.sampling_rate * self.cohort.examples_per_site

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on each value of a clipped sum, or of an update."""
        doubled = 2 if self.terms.adjacency == "replace-one" else 1
        return self.noise * doubled * self.terms.clip

    def spent(self, attempts: int) -> Guarantee:
        """What `attempts` attempts promise; between a few fixed counts it is rounded up."""
        terms, stride = self.terms, -(-self.cohort.attempts // 16)
        counted = min(self.cohort.attempts, -(-attempts // stride) * stride)
        spent, strict = self.accounting.spent(self.noise, counted, terms.delta, 1e-5)
        key = "the study's public seed" if self.cohort.seeded_noise else "the operating system"
        return Guarantee(
            epsilon=spent.epsilon,
            delta=terms.delta,
            epsilon_at_1e_5=strict.epsilon,
            unit=terms.unit,
            adjacency=terms.adjacency,
            against="everyone",
            accountant=spent.accountant,
            noise_multiplier=self.noise,
            assumptions=(
                "real-valued Gaussian noise, approximated in double precision",
                f"noise from AES-256-CTR keyed by {key}",
                "the declared number of training examples is public",
                "the network treats the examples of a batch apart",
                "refusals, and how long a reply takes, are not covered",
            ),
            simulation=self.cohort.seeded_noise,
        )

    def site(self, secret: Randomness) -> GaussianSite:
        """One attempt at one site, with its own batches and noise."""
        return GaussianSite(self, secret)

    def decode(self, total: RingSum) -> Tensor:
        """The mean over the contributors."""
        import torch

        mean = self.code.decode(total.words) / len(total.contributors)
        return torch.from_numpy(mean.astype(np.float32))

    def _narrowest(self) -> FixedPoint:
        """The least ring for the sum of all sites' releases."""
        cohort, terms = self.cohort, self.terms
        if self.is_example_level and self.work.releases == "update":
            return FixedPoint.holding(cohort.size * terms.bound, step=terms.step, terms=cohort.size)
        if self.is_example_level:
            deviation = self.deviation / self.expected_batch
            # All declared examples in one batch, each gradient at its bound and all parallel.
            signal = terms.clip * cohort.examples / self.expected_batch
        else:
            deviation, signal = self.deviation, cohort.size * terms.clip
        draws = 2.0 * self.parameters * cohort.attempts
        tail = math.sqrt(2 * (math.log(draws) + WRAP_BITS * math.log(2)))
        largest = signal + tail * deviation * math.sqrt(cohort.size)
        return FixedPoint.holding(largest, step=deviation / STEPS_PER_DEVIATION, terms=cohort.size)


@frozen
class GaussianSite:
    """What a site does in one attempt; see `SitePrivacy`."""

    plan: GaussianPlan
    secret: Randomness = field(repr=False)
    _noise: Stream = field(init=False, repr=False)

    @_noise.default
    def _make_noise(self) -> Stream:
        return self.secret.stream("noise")

    def batches(self, examples: int) -> Iterator[Index]:
        """Poisson samples at example level, else shuffled batches of the declared size."""
        draw = poisson if self.plan.is_example_level else shuffled
        return draw(self.plan.work, examples, self.secret.stream("batches"))

    def gradient(self, net: nn.Module, losses: Callable[[Index], Tensor], batch: Index) -> None:
        """The clipped and noised sum over the declared batch size, or the mean gradient."""
        import torch

        plan = self.plan
        if not plan.is_example_level:
            mean_gradient(net, losses, batch)
            return
        clipped_sum(net, losses, batch, clip=plan.terms.clip)
        parameters = vector.trainable(net)
        noise = self._noise.normal(sum(p.numel() for p in parameters))
        noise *= plan.deviation
        position = 0
        with torch.no_grad():
            for parameter in parameters:
                piece = torch.from_numpy(noise[position : position + parameter.numel()])
                # Added in double precision, so that the noise's own bits are not lost first.
                noised = piece.view_as(parameter).to(parameter.device)
                if parameter.grad is not None:
                    noised = noised + parameter.grad.double()
                parameter.grad = (noised / plan.expected_batch).to(parameter.dtype)
                position += parameter.numel()

    def release(self, vector: Tensor, weight: float) -> RingVector:  # noqa: ARG002
        """Encode; at site level, clip and noise first."""
        values = vector.detach().cpu().double().numpy()
        norm = float(np.linalg.norm(values))
        if not math.isfinite(norm):
            raise RefusalError("non-finite", "its update holds NaN or infinity; lower the rate.")
        plan = self.plan
        if not plan.is_example_level:
            values = values * min(1.0, plan.terms.clip / max(norm, 1e-12))
            values += plan.deviation * self._noise.normal(len(values))
        elif plan.work.releases == "update" and np.abs(values).max(initial=0) > plan.terms.bound:
            raise RefusalError(
                "out of range",
                f"its noised update exceeds {plan.terms.bound:g}; raise privatizer.bound or lower "
                "the learning rate.",
            )
        return RingVector(plan.ring, plan.code.encode(values))
