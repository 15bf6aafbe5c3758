"""The numbers of a Gaussian run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import field, frozen

from cohortium.plugin import (
    FederationSpec,
    FixedPoint,
    Guarantee,
    PrivacyError,
    Workload,
    accounting,
)
from cohortium_gaussian._site import GaussianSite

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from cohortium.plugin import Randomness, Ring, RingSum
    from cohortium_gaussian import Gaussian

STEPS_PER_DEVIATION = 64
"""Releases are rounded to this fraction of the standard deviation of a site's own noise.

The rounding adds a part in 50,000 to the variance of that noise.
"""

WRAP_BITS = 40
"""A wrap of the sum, over the run, is less likely than 2 to minus this."""


@frozen
class GaussianPlan:
    """Public numbers of a Gaussian run.  See `PrivacyPlan`."""

    terms: Gaussian
    workload: Workload = field(kw_only=True)
    federation_spec: FederationSpec = field(kw_only=True)
    parameters: int = field(kw_only=True)
    mechanism: accounting.GaussianMechanism = field(kw_only=True)
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
        return self.guarantee_after(self.federation_spec.attempts)

    @property
    def ring(self) -> Ring:
        """Ring that the noised sum fits into."""
        return self.code.ring

    @property
    def length(self) -> int:
        """Length of the vector alone: all sites have the same declared weight."""
        return self.parameters

    @property
    def clips_gradients(self) -> bool:
        """Whether gradients are clipped, and not the update."""
        return self.terms.unit != "site"

    @property
    def is_shared(self) -> bool:
        """Whether a site adds only its share of the noise."""
        return self.terms.noise == "distributed"

    @property
    def honest(self) -> int:
        """Number of sites whose shares make up the noise."""
        return self.federation_spec.min_honest_contributors() if self.is_shared else 1

    @property
    def expected_batch(self) -> float:
        """Declared number of units that a batch's gradient sum is divided by."""
        return (
            self.workload.sampling_rate
            * self.federation_spec.num_units(self.terms.unit)
            / self.federation_spec.sites
        )

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
    def deviation(self) -> float:
        """Standard deviation of a site's noise on each value.

        The noise is added to a clipped sum or update.
        """
        doubled = 2 if self.terms.adjacency == "replace-one" else 1
        whole = self.mechanism.noise_multiplier * doubled * self.terms.clip_norm
        return whole / math.sqrt(self.honest)

    def guarantee_after(self, attempts: int) -> Guarantee:
        """Return the guarantee that holds after `attempts` attempts."""
        terms, federation_spec = self.terms, self.federation_spec
        spent, strict = accounting.compose([(self.mechanism, attempts)], terms.delta, 1e-5)
        return Guarantee(
            epsilon=spent.epsilon,
            delta=terms.delta,
            epsilon_at_1e_5=strict.epsilon,
            unit=terms.unit,
            adjacency=terms.adjacency,
            against="coordinator" if self.is_shared else "everyone",
            colluding=federation_spec.max_colluding if self.is_shared else 0,
            honest=self.honest,
            accountant=spent.accountant,
            bounds=spent.bounds,
            noise_multiplier=self.mechanism.noise_multiplier,
            assumptions=self._assumptions(),
            simulation=federation_spec.insecure_seeded_secrets,
        )

    def _assumptions(self) -> tuple[str, ...]:
        key = (
            "the study's public seed"
            if self.federation_spec.insecure_seeded_secrets
            else "the operating system"
        )
        shared = (
            "the aggregator shows sums over min_contributors or more sites, and nothing else",
            "all but the colluding sites in a sum have added their share of the noise",
        )
        return (
            "real-valued Gaussian noise, approximated in double precision",
            f"noise from AES-256-CTR keyed by {key}",
            f"the declared number of training {self.terms.unit}s is public",
            "the network treats the examples of a batch apart",
            "refusals, and how long a reply takes, are not covered",
            *(shared if self.is_shared else ()),
        )

    def for_site(
        self, secret: Randomness, patients: NDArray[np.int64] | None = None
    ) -> GaussianSite:
        """Return one attempt at one site, with its own batches and noise."""
        return GaussianSite(self, secret, patients)

    def decode(self, total: RingSum) -> Tensor:
        """Return the mean over the contributors."""
        import torch

        return torch.from_numpy(self.code.mean(total.words, len(total.contributors)))

    def _narrowest(self) -> FixedPoint:
        """Return the smallest ring for the sum of all sites' releases."""
        federation_spec, terms, size = (
            self.federation_spec,
            self.terms,
            self.federation_spec.cohort_size,
        )
        if self.clips_gradients and self.workload.output == "update":
            return FixedPoint.fitting(
                size * terms.max_abs_value, step=terms.quantization_step, terms=size
            )
        if self.clips_gradients:
            deviation = self.deviation / self.expected_batch
            signal = size * self.largest_sum / self.expected_batch
        else:
            deviation, signal = self.deviation, size * terms.clip_norm
        draws = 2.0 * self.parameters * federation_spec.attempts
        tail = math.sqrt(2 * (math.log(draws) + WRAP_BITS * math.log(2)))
        largest = signal + tail * deviation * math.sqrt(size)
        return FixedPoint.fitting(largest, step=deviation / STEPS_PER_DEVIATION, terms=size)
