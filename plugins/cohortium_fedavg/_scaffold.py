"""SCAFFOLD (Karimireddy et al. 2020): control variates against the drift of sites."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from cohortium.plugin import (
    FederationSpec,
    LocalResult,
    LocalTask,
    ReleasedMean,
    SitePrivatizer,
    StudyError,
    Workload,
    parameters,
)
from cohortium_fedavg._averaging import FedAvg
from cohortium_fedavg._local_steps import Drift

if TYPE_CHECKING:
    from torch import Tensor

CONTROL = "scaffold.control"
"""Name of a site's control variate in its state."""


@frozen(kw_only=True)
class Scaffold(FedAvg):
    """`FedAvg` whose local gradients are corrected by control variates.

    A site's control variate c_k is its own mean gradient of the round before, and c the mean over
    all sites.  Each local gradient gets c - c_k, so that sites with unlike data take steps in a
    common direction.

    With `local_steps` every site takes the same number of steps.  Then c follows from the mean
    update, and a site releases nothing more than under `fedavg`.  With `local_epochs` the numbers
    of steps differ, and a site releases the change of its control variate as well.

    Guarantees:
        c_k is computed from the site's update, so under example-level privacy from noised
        gradients alone.  With `unit = "site"`, clip and noise cover all numbers of the release.
    """

    def workload(self, federation_spec: FederationSpec) -> Workload:
        """Declare the local steps.

        Raises:
            StudyError: The local optimizer is not plain SGD, from whose update alone a mean
                gradient can be computed.
        """
        if self.optimizer.lower() != "sgd" or any(self.optimizer_options.values()):
            raise StudyError(
                "scaffold computes a site's mean gradient from its update, and only plain SGD "
                "allows that; set trainer.optimizer to 'sgd', without optimizer_options, or use "
                "trainer 'fedavg'."
            )
        return FedAvg.workload(self, federation_spec)

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        """Return the update of corrected steps, and the change of the control variate."""
        import torch

        update, steps = self._take_steps(task, privatizer)
        trained = sum(p.numel() for p in parameters.trainable(task.net))
        change = torch.zeros_like(update)
        rate = self.rate_in(task.round, task.rounds)
        if steps:
            # The new c_k is c_k - c - update / (steps · rate).
            change[:trained] = update[:trained] / (-steps * rate)
            if task.server_state is not None:
                change[:trained] -= task.server_state.to(update)[:trained]
        control = self._control(task, update) + change
        return LocalResult(
            vector=update,
            weight=float(len(task.labels)),
            state={CONTROL: control},
            # In the scale of the update, as one clip covers both.
            extra=None if self.local_steps else change * (task.workload.steps * rate),
        )

    def extra_length(self, parameters: int) -> int:
        """Return P with `local_epochs`, and 0 with `local_steps`."""
        return 0 if self.local_steps else parameters

    def initial_server_state(self, parameters: int) -> Tensor:
        """Return c = 0, shape (P,)."""
        import torch

        return torch.zeros(parameters)

    def next_server_state(self, server_state: Tensor, mean: ReleasedMean) -> Tensor:
        """Return c, moved by the mean change over all sites."""
        scale = mean.steps * self.rate_in(mean.round, mean.rounds)
        change = mean.vector / -scale - server_state if self.local_steps else mean.extra / scale
        return server_state + mean.share * change

    def _drift(self, task: LocalTask) -> Drift:
        if task.server_state is None:
            return Drift()
        offset = task.server_state.to(task.images.device)
        return Drift(offset=offset - task.state[CONTROL] if task.state else offset)

    @staticmethod
    def _control(task: LocalTask, like: Tensor) -> Tensor:
        import torch

        return task.state[CONTROL] if task.state else torch.zeros_like(like)
