"""Gaussian noise: DP-SGD for single examples or patients, or noised site updates.

Each site adds all its noise itself, or all share the noise that their sum needs (`noise`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import field, frozen
from attrs.validators import ge, gt, in_, le, lt

from cohortium.plugin import (
    FederationSpec,
    Offer,
    PrivacyError,
    Privatizer,
    Workload,
    accounting,
    hookimpl,
)

if TYPE_CHECKING:
    from cohortium_gaussian._plan import GaussianPlan

COHORTIUM_API = 1

_EPSILON = (gt(0.0), ge(accounting.MIN_EPSILON), lt(1e6))
_DELTA = (gt(0.0), ge(accounting.MIN_DELTA), lt(1.0))

MAX_HONEST = 1000
"""The most shares that may make up the noise: see "Shared noise" in docs/privacy.md."""


@frozen(kw_only=True)
class Gaussian:
    """(ε, δ)-differential privacy for the whole run by Gaussian noise.

    With `unit = "example"` or `"patient"`, each step's per-example gradients are clipped and noised
    (DP-SGD: Abadi et al. 2016).  Everything that leaves a site is computed from noised sums.
    With `unit = "site"`, a site trains without clipping or noise.  Its update is clipped and
    noised.

    Attributes:
        epsilon: ε of the whole run.
        delta: δ of the whole run.  Keep it below a tenth of one over the number of units.
        clip_norm: C, the largest ℓ₂ norm of a unit's contribution.  With `target_unclipped`, that
            of the first round.
        target_unclipped: Share of the units that the clip shall leave as they are, such as 0.5.
            The clip norm then follows that quantile of the norms (Andrew et al. 2021).  Sites
            release one noised number more, which the guarantee covers.  0 keeps the clip norm.
            It needs one gradient a round (`fedsgd`) or `unit = "site"`.
        clip_learning_rate: η, the speed at which the clip norm follows.
        rescale_to_unit_norm: Divide clipped gradients by the clip norm (De et al. 2022).  A step
            then has the same length for any clip norm, so that the learning rate need not change
            with it.
        unit: Protected unit: "example", "patient" (all examples of one person, of which each batch
            takes at most one) or "site".
        adjacency: "zero-out", or "replace-one", which doubles the sensitivity.  "replace-one" with
            Poisson samples of the data is refused.
        noise: "local": each site adds all the noise itself, and the guarantee is against everyone.
            That is not local differential privacy: the unit is hidden among the site's others.
            "distributed": each site adds a share, so that a sum over honest sites carries the noise
            (Kairouz et al. 2021).  The guarantee is against any party that sees sums only.  It
            needs an aggregator that shows no more.  It also needs one gradient a round (`fedsgd`)
            or `unit = "site"`.
        noise_schedule: "constant": all rounds have equal noise.  "optimizer": a round has the less
            noise, the further the server optimizer carries it.  The rounds cost the same ε in
            all.  It needs a linear server optimizer such as SGD with momentum, and a sampling rate
            of 1 or `unit = "site"`.
        max_abs_value: The largest value of a noised update that can be sent.
        quantization_step: Noised updates are rounded to multiples of it.

    Guarantees:
        The noise is calibrated before the first step, to all rounds, local steps and retries.
        Shares are sized for `min_contributors` less `max_colluding` honest sites.  A colluding site
        knows its own share, so there must be at least one honest site.
    """

    epsilon: float = field(default=6.0, validator=_EPSILON)
    delta: float = field(default=1.9e-4, validator=_DELTA)
    # Beyond these limits, noise times clip over a batch is outside the range of single precision.
    clip_norm: float = field(default=1.0, validator=[ge(1e-20), le(1e20)])
    unit: Literal["example", "patient", "site"] = field(
        default="example", validator=in_(("example", "patient", "site"))
    )
    adjacency: Literal["zero-out", "replace-one"] = field(
        default="zero-out", validator=in_(("zero-out", "replace-one"))
    )
    noise: Literal["local", "distributed"] = field(
        default="local", validator=in_(("local", "distributed"))
    )
    target_unclipped: float = field(default=0.0, validator=[ge(0.0), lt(1.0)])
    clip_learning_rate: float = field(default=0.2, validator=[gt(0.0), le(10.0)])
    rescale_to_unit_norm: bool = False
    noise_schedule: Literal["constant", "optimizer"] = field(
        default="constant", validator=in_(("constant", "optimizer"))
    )
    max_abs_value: float = field(default=64.0, validator=[gt(0), le(1e30)])
    quantization_step: float = field(default=2.0**-17, validator=[ge(1e-30), le(1e30)])

    def plan(
        self, workload: Workload, federation_spec: FederationSpec, parameters: int
    ) -> GaussianPlan:
        """Calibrate the noise.  See `Privatizer.plan`."""
        from cohortium_gaussian._plan import GaussianPlan
        from cohortium_gaussian._schedule import noise_by_round

        workload.require_separate_examples(self.unit)
        self._require_covered(workload, federation_spec)
        rate, steps = (1.0, 1) if self.unit == "site" else (workload.sampling_rate, workload.steps)

        def attempt(noise: float) -> accounting.GaussianMechanism:
            return accounting.GaussianMechanism(
                noise_multiplier=noise, sampling_rate=rate, num_releases=steps
            )

        noise = accounting.calibrate_noise_multiplier(
            attempt, epsilon=self.epsilon, delta=self.delta, attempts=federation_spec.attempts
        )
        noises: tuple[float, ...] = (noise,)
        if self.noise_schedule == "optimizer":
            noises = noise_by_round(workload, federation_spec, noise)
        return GaussianPlan(
            self,
            workload=workload,
            federation_spec=federation_spec,
            parameters=parameters,
            mechanisms=tuple(map(attempt, noises)),
        )

    def _require_covered(self, workload: Workload, federation_spec: FederationSpec) -> None:
        """Refuse a run that the guarantee would not cover."""
        if self.unit == "patient" and federation_spec.patients is None:
            raise PrivacyError(
                "unit is 'patient', but the data do not say whose each image is; give the data set "
                "a column of patients, or use unit 'example' where everyone has one image."
            )
        if self.unit == "site" and self.rescale_to_unit_norm:
            raise PrivacyError(
                "rescale_to_unit_norm is for clipped gradients, and unit 'site' clips updates; set "
                "the server optimizer's rate instead."
            )
        sampled = self.unit != "site" and workload.sampling_rate < 1
        if sampled and self.adjacency == "replace-one":
            raise PrivacyError(
                "no proven bound is implemented for adjacency 'replace-one' with sampled batches; "
                "use 'zero-out', or a sampling rate of 1."
            )
        if sampled and self.noise_schedule == "optimizer":
            raise PrivacyError(
                "noise by round is sized for releases without sampling; set trainer.sampling_rate "
                "to 1, or noise_schedule = 'constant'."
            )
        is_one_sum = workload.output == "gradient" and workload.steps == 1
        if self.target_unclipped and self.unit != "site" and not is_one_sum:
            raise PrivacyError(
                f"an adaptive clip counts the gradients of one batch a round, and the trainer "
                f"takes {workload.steps} steps before it releases anything; use trainer 'fedsgd', "
                "or target_unclipped = 0."
            )
        if self.noise == "local":
            return
        if self.unit != "site" and not is_one_sum:
            raise PrivacyError(
                f"noise shared against the coordinator covers one gradient a round, and the "
                f"trainer takes {workload.steps} steps before it releases anything; use trainer "
                "'fedsgd', or noise = 'local'."
            )
        honest = federation_spec.min_honest_contributors()
        if honest > MAX_HONEST:
            raise PrivacyError(
                f"noise would be shared among {honest} honest sites, and the argument for rounded "
                f"shares is made for {MAX_HONEST:,} at most; lower min_contributors, or use "
                "'skellam'."
            )


@hookimpl
def cohortium_privatizers() -> list[Offer[Privatizer]]:
    """Offer `gaussian`."""
    return [Offer("gaussian", Gaussian, "DP-SGD per example, or clipped and noised site updates.")]
