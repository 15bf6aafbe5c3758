"""Skellam noise: DP-SGD with integer noise, added where the sum is taken.

The difference of two Poisson variables is a Skellam variable.  Sums of Skellam variables are
Skellam variables.  So the noise of honest sites makes up the noise of their sum exactly, and no
rounding follows.

Agarwal, Kairouz, Liu (2021), "The Skellam Mechanism for Differentially Private Federated Learning".
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
    from cohortium_skellam._plan import SkellamPlan

COHORTIUM_API = 1

_EPSILON = (gt(0.0), ge(accounting.MIN_EPSILON), lt(1e6))
_DELTA = (gt(0.0), ge(accounting.MIN_DELTA), lt(1.0))


@frozen(kw_only=True)
class Skellam:
    """(ε, δ)-differential privacy for the whole run by integer noise.

    It covers one gradient a round (`fedsgd`).  Per-example gradients are clipped and summed
    (DP-SGD: Abadi et al. 2016).  The sum is rounded to a grid, and Skellam noise is added in the
    ring.

    Attributes:
        epsilon: ε of the whole run.
        delta: δ of the whole run.  Keep it below a tenth of one over the number of units.
        clip_norm: C, the largest ℓ₂ norm of an example's gradient.
        unit: Protected unit: "example", or "patient" (all examples of one person, of which each
            batch takes at most one).
        noise: "distributed": sites share the noise of their sum (Kairouz et al. 2021), and the
            guarantee is against the coordinator.  The shares are sized for `min_contributors` less
            `max_colluding` honest sites.  "local": each site adds all of the noise, against
            everyone.  That is not local differential privacy: the unit is hidden among the site's
            others.
        rounding_slack: Part of C by which rounding to the grid may enlarge the ℓ₂ sensitivity.  A
            smaller part takes more bits to send.

    Guarantees:
        The noise is calibrated before the first step, to all rounds and retries, with the
        sensitivities of the rounded sums.
    """

    epsilon: float = field(default=6.0, validator=_EPSILON)
    delta: float = field(default=1.9e-4, validator=_DELTA)
    # Beyond these limits, a decoded sum is outside the range of single precision.
    clip_norm: float = field(default=1.0, validator=[ge(1e-20), le(1e20)])
    unit: Literal["example", "patient"] = field(
        default="example", validator=in_(("example", "patient"))
    )
    noise: Literal["local", "distributed"] = field(
        default="distributed", validator=in_(("local", "distributed"))
    )
    rounding_slack: float = field(default=0.01, validator=[ge(1e-6), lt(1)])

    def plan(
        self, workload: Workload, federation_spec: FederationSpec, parameters: int
    ) -> SkellamPlan:
        """Calibrate the noise.  See `Privatizer.plan`."""
        from cohortium_skellam._plan import SkellamPlan, calibrated

        workload.require_separate_examples(self.unit)
        if self.unit == "patient" and federation_spec.patients is None:
            raise PrivacyError(
                "unit is 'patient', but the data do not say whose each image is; give the data set "
                "a column of patients, or use unit 'example' where everyone has one image."
            )
        if workload.output != "gradient" or workload.steps != 1:
            raise PrivacyError(
                "Skellam noise covers one gradient a round, and the trainer takes "
                f"{workload.steps} steps before it releases anything; use trainer 'fedsgd', or "
                "privatizer 'gaussian'."
            )
        integer_grid = calibrated(self, workload, federation_spec, parameters)
        return SkellamPlan(
            self,
            workload=workload,
            federation_spec=federation_spec,
            parameters=parameters,
            integer_grid=integer_grid,
        )


@hookimpl
def cohortium_privatizers() -> list[Offer[Privatizer]]:
    """Offer `skellam`."""
    return [Offer("skellam", Skellam, "DP-SGD with integer noise that sites share (Skellam).")]
