"""Gaussian noise: DP-SGD for single examples, or clipped and noised updates for whole sites."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import field, frozen
from attrs.validators import gt, in_, lt

from cohortium.plugin import Cohort, Offer, PrivacyError, Privatizer, Work, hookimpl

if TYPE_CHECKING:
    from cohortium_gaussian._plan import GaussianPlan

COHORTIUM_API = 1


@frozen(kw_only=True)
class Gaussian:
    """(ε, δ)-differential privacy for the whole run by Gaussian noise, against everyone.

    With `unit = "example"` each step's per-example gradients are clipped and noised (DP-SGD: Abadi
    et al. 2016), and everything that leaves a site is computed from noised gradients.
    With `unit = "site"` a site trains as it likes, and its update is clipped and noised.

    Attributes:
        epsilon: ε of the whole run.
        delta: δ of the whole run; keep it below a tenth of one over the number of units.
        clip: C, the largest ℓ₂ norm of a unit's contribution.
        unit: What is protected, "example" or "site".
        adjacency: "zero-out", or "replace-one", which doubles the sensitivity; the latter with
            Poisson samples of the data is refused.
        bound: The largest value of a noised update that can be sent.
        step: Noised updates are rounded to multiples of it.

    Guarantees:
        The noise is calibrated before the first step, to all rounds, local steps and retries.
    """

    epsilon: float = field(default=6.0, validator=[gt(0), lt(1e6)])
    delta: float = field(default=1.9e-4, validator=[gt(0), lt(1)])
    clip: float = field(default=1.0, validator=gt(0))
    unit: Literal["example", "site"] = field(default="example", validator=in_(("example", "site")))
    adjacency: Literal["zero-out", "replace-one"] = field(
        default="zero-out", validator=in_(("zero-out", "replace-one"))
    )
    bound: float = field(default=64.0, validator=gt(0))
    step: float = field(default=2.0**-17, validator=gt(0))

    def plan(self, work: Work, cohort: Cohort, parameters: int) -> GaussianPlan:
        """Calibrate the noise; see `Privatizer.plan`."""
        from cohortium_gaussian._accounting import PoissonSampled, Unsampled, calibrate
        from cohortium_gaussian._plan import GaussianPlan

        accounting: PoissonSampled | Unsampled
        if self.unit == "site":
            accounting = Unsampled()
        elif work.sampling_rate == 1:
            accounting = Unsampled(work.steps)
        elif self.adjacency == "replace-one":
            raise PrivacyError(
                "no proven bound is implemented for adjacency 'replace-one' with sampled batches; "
                "use 'zero-out', or a sampling rate of 1."
            )
        else:
            accounting = PoissonSampled(work.sampling_rate, work.steps)
        noise = calibrate(
            accounting, epsilon=self.epsilon, delta=self.delta, attempts=cohort.attempts
        )
        return GaussianPlan(
            self,
            work=work,
            cohort=cohort,
            parameters=parameters,
            accounting=accounting,
            noise=noise,
        )


@hookimpl
def cohortium_privatizers() -> list[Offer[Privatizer]]:
    """Offer `gaussian`."""
    return [Offer("gaussian", Gaussian, "DP-SGD per example, or clipped and noised site updates.")]
