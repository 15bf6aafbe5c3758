"""The numbers of a Gaussian run."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from attrs import field, frozen

from cohortium.plugin import (
    FederationSpec,
    FixedPoint,
    Guarantee,
    PrivacyError,
    RefusalCode,
    RefusalError,
    Workload,
    accounting,
)
from cohortium_gaussian._clip import AdaptiveClip, count_weight
from cohortium_gaussian._round import GaussianRound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cohortium.plugin import PlanState, Ring
    from cohortium_gaussian import Gaussian

STEPS_PER_DEVIATION = 64
"""Releases are rounded to this fraction of the standard deviation of a site's own noise.

The rounding adds a part in 50,000 to the variance of that noise.
"""

WRAP_BITS = 40
"""A wrap of the sum, over the run, is less likely than 2 to minus this."""


@frozen
class GaussianPlan:
    """Public numbers of a Gaussian run.  See `PrivacyPlan`.

    Attributes:
        terms: The privatizer.
        workload: Declaration of the trainer.
        federation_spec: The federation, as declared.
        parameters: P, the length of the trainer's vector.
        mechanisms: Mechanism of each round, or of all rounds if there is only one.
        adaptive: Rule of the clip norm.  None for a fixed one.
        code: Encoding of releases.
        guarantee: Guarantee of the whole run.
    """

    terms: Gaussian
    workload: Workload = field(kw_only=True)
    federation_spec: FederationSpec = field(kw_only=True)
    parameters: int = field(kw_only=True)
    mechanisms: tuple[accounting.GaussianMechanism, ...] = field(kw_only=True)
    adaptive: AdaptiveClip | None = field(init=False)
    code: FixedPoint = field(init=False)
    guarantee: Guarantee = field(init=False)

    @adaptive.default
    def _make_adaptive(self) -> AdaptiveClip | None:
        terms = self.terms
        if not terms.target_unclipped:
            return None
        units = self.expected_batch if self.clips_gradients else 1.0
        total = units * self.federation_spec.min_contributors
        return AdaptiveClip(
            initial=terms.clip_norm,
            target=terms.target_unclipped,
            rate=terms.clip_learning_rate,
            weight=count_weight(self.least_noise, total),
            move=0.5 if self.clips_gradients else 1.0,
            units=units,
        )

    @code.default
    def _make_code(self) -> FixedPoint:
        try:
            return self._narrowest()
        except ValueError as error:
            raise PrivacyError(f"privatizer 'gaussian': {error}") from error

    @guarantee.default
    def _make_guarantee(self) -> Guarantee:
        spec = self.federation_spec
        costliest = min(range(len(self.mechanisms)), key=self._noise_of)
        return self.guarantee_after([*range(spec.rounds), *[costliest] * spec.retries])

    @property
    def ring(self) -> Ring:
        """Ring that the noised sum fits into."""
        return self.code.ring

    @property
    def length(self) -> int:
        """Length of the vector, and a count with an adaptive clip.

        All sites have the same declared weight. It is not sent.
        """
        return self.parameters + (self.adaptive is not None)

    @property
    def initial_state(self) -> PlanState:
        """The first clip norm, if it is adaptive."""
        return () if self.adaptive is None else (self.adaptive.initial,)

    @property
    def least_noise(self) -> float:
        """Noise multiplier of the round with the least noise."""
        return min(mechanism.noise_multiplier for mechanism in self.mechanisms)

    def _noise_of(self, number: int) -> float:
        return self._mechanism_at(number).noise_multiplier

    def _mechanism_at(self, number: int) -> accounting.GaussianMechanism:
        return self.mechanisms[number if len(self.mechanisms) > 1 else 0]

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

    def largest_sum(self, clip: float) -> float:
        """Return the limit on each value of one site's clipped sum.

        It keeps sums in the ring.

        It corresponds to one batch with all of a site's declared units, at their mean number or at
        `Workload.max_site_share`.  Each unit has its whole gradient in that value.  For one unit, a
        sum that is cut off at a bound moves no further than it did before.  So the noise covers it
        as well.

        Args:
            clip: Clip norm.
        """
        whole = clip * self.federation_spec.num_units(self.terms.unit)
        share = self.workload.max_site_share
        return whole / self.federation_spec.cohort_size if share is None else whole * share

    def deviation(self, noise: float, clip: float) -> float:
        """Return the standard deviation of a site's noise on each value.

        The noise is added to a clipped sum or update.

        Args:
            noise: Noise multiplier.
            clip: Clip norm.
        """
        doubled = 2 if self.terms.adjacency == "replace-one" else 1
        whole = noise * doubled * clip
        if self.adaptive is not None:
            whole *= self.adaptive.sensitivity
        return whole / math.sqrt(self.honest)

    def guarantee_after(self, rounds: Sequence[int]) -> Guarantee:
        """Return the guarantee that holds after attempts at `rounds`."""
        terms, federation_spec = self.terms, self.federation_spec
        spends = Counter(self._mechanism_at(number) for number in rounds)
        spent, strict = accounting.compose(spends.items(), terms.delta, 1e-5)
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
            noise_multiplier=self.least_noise,
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

    def at_round(self, round: int, state: PlanState) -> GaussianRound:  # noqa: A002
        """Return one round, with the clip norm of `state` if it is adaptive.

        Raises:
            RefusalError: The plan has no such state.
        """
        clip = self.terms.clip_norm if self.adaptive is None else self.adaptive.require(state)
        if self.adaptive is None and state:
            raise RefusalError(
                RefusalCode.OUT_OF_RANGE,
                "the study's clip norm is fixed, and the coordinator asks for another.",
            )
        return GaussianRound(self, self._mechanism_at(round), clip)

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
        # Releases are in units of an adaptive clip, and of a fixed one on request.
        in_units = self.adaptive is not None or terms.rescale_to_unit_norm
        clip = 1.0 if in_units else terms.clip_norm
        noises = [mechanism.noise_multiplier for mechanism in self.mechanisms]
        least, most = (self.deviation(noise, clip) for noise in (min(noises), max(noises)))
        signal = size * clip
        if self.clips_gradients:
            least, most = least / self.expected_batch, most / self.expected_batch
            signal = size * self.largest_sum(clip) / self.expected_batch
        draws = 2.0 * self.length * federation_spec.attempts
        tail = math.sqrt(2 * (math.log(draws) + WRAP_BITS * math.log(2)))
        largest = signal + tail * most * math.sqrt(size)
        return FixedPoint.fitting(largest, step=least / STEPS_PER_DEVIATION, terms=size)
