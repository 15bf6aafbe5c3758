"""The numbers of a Skellam run, and a site's part of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen

from cohortium.plugin import (
    FederationSpec,
    FixedPoint,
    Guarantee,
    PrivacyError,
    RefusalCode,
    RefusalError,
    RingVector,
    Workload,
    accounting,
    clipped_sum,
    parameters,
    sample_batches,
)
from cohortium_skellam import _draw, _renyi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from cohortium.plugin import ExampleIndices, PlanState, Randomness, Ring, RingSum
    from cohortium_skellam import Skellam

WRAP_BITS = 40
"""A wrap of the sum, over the run, is less likely than 2 to minus this."""


@frozen(kw_only=True)
class IntegerGrid:
    """The grid of whole numbers in which sums are taken.

    Attributes:
        grid: Spacing of the grid, in units of gradients.
        variance: Variance of the noise that a sum needs, on each value, in units of the grid
            squared.
        mechanism: Mechanism of one attempt.
        noise: Standard deviation of that noise over C, for comparison with Gaussian noise.
    """

    grid: float
    variance: float
    mechanism: accounting.RenyiBoundedMechanism
    noise: float

    def share(self, honest: int) -> float:
        """Return the variance of one of `honest` shares."""
        return self.variance / honest


def calibrated(
    terms: Skellam, workload: Workload, federation_spec: FederationSpec, parameters: int
) -> IntegerGrid:
    """Return the coarsest grid that the terms allow, with its least noise.

    Raises:
        PrivacyError: The target cannot be met.
    """
    grid = terms.rounding_slack * terms.clip_norm / math.sqrt(parameters)
    while True:
        # Rounding moves every value of either sum by at most half a step.
        l2 = terms.clip_norm / grid + math.sqrt(parameters)
        l1 = min(math.sqrt(parameters) * terms.clip_norm / grid + parameters, l2**2)

        def attempt(
            noise: float, unit: float = terms.clip_norm / grid, l1: float = l1, l2: float = l2
        ) -> accounting.RenyiBoundedMechanism:
            return _renyi.mechanism(workload.sampling_rate, (noise * unit) ** 2, l1, l2)

        noise = accounting.calibrate_noise_multiplier(
            attempt, epsilon=terms.epsilon, delta=terms.delta, attempts=federation_spec.attempts
        )
        variance = (noise * terms.clip_norm / grid) ** 2
        integer_grid = IntegerGrid(
            grid=grid, variance=variance, mechanism=attempt(noise), noise=noise
        )
        if integer_grid.share(honest(terms, federation_spec)) >= 2 * _draw.MIN_MEAN:
            return integer_grid
        grid /= 2


def honest(terms: Skellam, federation_spec: FederationSpec) -> int:
    """Return the number of sites whose shares make up the noise."""
    return federation_spec.min_honest_contributors() if terms.noise == "distributed" else 1


@frozen
class SkellamPlan:
    """Public numbers of a Skellam run.  See `PrivacyPlan`."""

    terms: Skellam
    workload: Workload = field(kw_only=True)
    federation_spec: FederationSpec = field(kw_only=True)
    parameters: int = field(kw_only=True)
    integer_grid: IntegerGrid = field(kw_only=True)
    code: FixedPoint = field(init=False)
    guarantee: Guarantee = field(init=False)

    @code.default
    def _make_code(self) -> FixedPoint:
        federation_spec, integer_grid = self.federation_spec, self.integer_grid
        signal = self.largest_sum * federation_spec.cohort_size
        deviation = math.sqrt(self.share * federation_spec.cohort_size) * integer_grid.grid
        draws = 2.0 * self.parameters * federation_spec.attempts
        # Bernstein's bound for Poisson variables: the tail is normal, except for a term that is
        # linear in its logarithm.
        tail = math.log(draws) + WRAP_BITS * math.log(2)
        largest = signal + deviation * math.sqrt(2 * tail) + tail * integer_grid.grid
        try:
            return FixedPoint.fitting(
                largest, step=integer_grid.grid, terms=federation_spec.cohort_size
            )
        except ValueError as error:
            raise PrivacyError(f"privatizer 'skellam': {error}") from error

    @guarantee.default
    def _make_guarantee(self) -> Guarantee:
        return self.guarantee_after(range(self.federation_spec.attempts))

    @property
    def largest_sum(self) -> float:
        """Limit on each value of one site's clipped sum.

        It keeps sums in the ring.

        It corresponds to one batch with all of a site's declared units, at their mean number or at
        `Workload.max_site_share`.  Each unit has its whole gradient in that value.  For one unit, a
        sum that is cut off at a bound moves no further than it did before.  So the noise covers it
        as well.
        """
        whole = self.terms.clip_norm * self.federation_spec.num_units(self.terms.unit)
        share = self.workload.max_site_share
        return whole / self.federation_spec.cohort_size if share is None else whole * share

    @property
    def share(self) -> float:
        """Variance of a site's noise on each value, in grid units squared."""
        return self.integer_grid.share(honest(self.terms, self.federation_spec))

    @property
    def mechanism(self) -> accounting.RenyiBoundedMechanism:
        """Mechanism of one attempt."""
        return self.integer_grid.mechanism

    @property
    def ring(self) -> Ring:
        """Ring that the noised sum fits into."""
        return self.code.ring

    @property
    def length(self) -> int:
        """Length of the vector alone: all sites have the same declared weight."""
        return self.parameters

    @property
    def expected_batch(self) -> float:
        """Declared number of units that a batch's gradient sum is divided by."""
        return (
            self.workload.sampling_rate
            * self.federation_spec.num_units(self.terms.unit)
            / self.federation_spec.sites
        )

    @property
    def initial_state(self) -> PlanState:
        """No state, because nothing changes."""
        return ()

    def at_round(self, round: int, state: PlanState) -> SkellamPlan:  # noqa: A002, ARG002
        """Return this plan, because all rounds are alike."""
        return self

    def guarantee_after(self, rounds: Sequence[int]) -> Guarantee:
        """Return the guarantee that holds after attempts at `rounds`."""
        terms, federation_spec = self.terms, self.federation_spec
        spent, strict = accounting.compose([(self.mechanism, len(rounds))], terms.delta, 1e-5)
        key = (
            "the study's public seed"
            if federation_spec.insecure_seeded_secrets
            else "the operating system"
        )
        is_shared = terms.noise == "distributed"
        shared = (
            "the aggregator shows sums over min_contributors or more sites, and nothing else",
            "all but the colluding sites in a sum have added their share of the noise",
        )
        return Guarantee(
            epsilon=spent.epsilon,
            delta=terms.delta,
            epsilon_at_1e_5=strict.epsilon,
            unit=terms.unit,
            adjacency="zero-out",
            against="coordinator" if is_shared else "everyone",
            colluding=federation_spec.max_colluding if is_shared else 0,
            honest=honest(terms, federation_spec),
            accountant=spent.accountant,
            bounds=spent.bounds,
            noise_multiplier=self.integer_grid.noise,
            assumptions=(
                "gradients are summed in single precision, and Skellam variables drawn in double",
                f"noise from AES-256-CTR keyed by {key}",
                f"the declared number of training {terms.unit}s is public",
                "the network treats the examples of a batch apart",
                "refusals, and how long a reply takes, are not covered",
                *(shared if is_shared else ()),
            ),
            simulation=federation_spec.insecure_seeded_secrets,
        )

    def for_site(self, secret: Randomness, patients: ExampleIndices | None = None) -> SkellamSite:
        """Return one attempt at one site, with its own batch and noise."""
        return SkellamSite(self, secret, patients)

    def decode(self, total: RingSum) -> Tensor:
        """Return the mean over the contributors."""
        import torch

        divisor = len(total.contributors) * self.expected_batch
        return torch.from_numpy(self.code.mean(total.words, divisor))

    def next_state(self, total: RingSum) -> PlanState:  # noqa: ARG002
        """Return (), because nothing changes."""
        return ()


@frozen
class SkellamSite:
    """One site's part of one attempt.  See `SitePrivatizer`."""

    plan: SkellamPlan
    secret: Randomness = field(repr=False)
    patients: ExampleIndices | None = field(repr=False)

    def batches(self, examples: int) -> Iterator[ExampleIndices]:
        """Yield one Poisson sample of examples or patients."""
        stream, unit = self.secret.stream("batches"), self.plan.terms.unit
        return sample_batches(self.plan.workload, unit, examples, self.patients, stream)

    def set_private_gradient(
        self, net: nn.Module, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices
    ) -> None:
        """Set each `.grad` to the clipped sum over the declared batch size.

        The noise is added by `release`.
        """
        import torch

        clipped_sum(net, losses, batch, clip=self.plan.terms.clip_norm)
        for parameter in parameters.trainable(net):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad /= self.plan.expected_batch

    def release(self, vector: Tensor, weight: float) -> RingVector:  # noqa: ARG002
        """Round the sum to the grid, and add this site's noise.

        The noise is added in the ring.  It is the site's share, or all of it.
        """
        import torch

        plan = self.plan
        values = vector.detach().to("cpu", torch.float64, copy=True).numpy()
        if not np.isfinite(values).all():
            raise RefusalError(RefusalCode.NON_FINITE, "its gradient holds NaN or infinity.")
        values *= plan.expected_batch
        np.clip(values, -plan.largest_sum, plan.largest_sum, out=values)
        words = plan.code.encode(values)
        noise = _draw.skellam(len(values), plan.share, self.secret.stream("noise"))
        words += plan.ring.encode_signed(noise)
        return RingVector(plan.ring, words)
