"""FedDyn (Acar et al. 2021): a dynamic regulariser that aligns the sites' optima."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge, gt, le

from cohortium.plugin import (
    FederationSpec,
    LocalResult,
    LocalTask,
    SitePrivatizer,
    StudyError,
    Workload,
    attach_schedule,
)
from cohortium_fedavg._local_steps import Drift, LocalSteps

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

DUAL = "feddyn.gradient"
"""Name of a site's gradient at its last weights in its state."""


@frozen(kw_only=True)
class FedDyn(LocalSteps):
    """Local steps on F_k(w) - λ_k·w + α/2·‖w - w_global‖².

    λ_k estimates the gradient of F_k at the site's last weights, and moves by -α times the update.
    The server adds the mean of all λ_k: it moves by the mean update, and by the sum of all mean
    updates so far.

    Guarantees:
        λ_k is computed from the site's updates, so under example-level privacy from noised
        gradients alone.

    Attributes:
        alpha: α, the strength of the regulariser.
        participation: Share of the sites that are asked in a round: the study's `cohort_size` over
            `sites`.
    """

    alpha: float = field(default=0.1, validator=[ge(1e-6), le(1e6)])
    participation: float = field(default=1.0, validator=[gt(0), le(1)])

    def workload(self, federation_spec: FederationSpec) -> Workload:
        """Declare the local steps.

        Raises:
            StudyError: The study asks another share of the sites.
        """
        share = federation_spec.cohort_size / federation_spec.sites
        if abs(share - self.participation) > 1e-6:  # noqa: PLR2004
            raise StudyError(
                f"the study asks {federation_spec.cohort_size} of {federation_spec.sites} sites in "
                f"a round, and trainer.participation is {self.participation:g}; set it to "
                f"{share:g}."
            )
        return LocalSteps.workload(self, federation_spec)

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        """Return the update of the regularised steps."""
        update, _ = self._take_steps(task, privatizer)
        moved = update * -self.alpha
        return LocalResult(
            vector=update,
            weight=float(len(task.labels)),
            state={DUAL: task.state[DUAL] + moved if task.state else moved},
        )

    def make_server_optimizer(
        self, parameters: Iterable[nn.Parameter], rounds: int
    ) -> tuple[Optimizer, LRScheduler]:
        """Build the server's step: the mean update, and the sum of all mean updates."""
        from cohortium_fedavg._server_optimizers import CumulativeSGD

        optimizer = CumulativeSGD(parameters, share=self.participation)
        return attach_schedule(optimizer, "constant", rounds)

    def _drift(self, task: LocalTask) -> Drift:
        offset = -task.state[DUAL] if task.state else None
        return Drift(offset=offset, pull=self.alpha)
