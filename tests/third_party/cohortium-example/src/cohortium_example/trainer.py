"""A trainer: local steps of one size, along the sign of the gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge, gt, le

from cohortium.plugin import (
    Augmentation,
    AugmentedLoss,
    LocalResult,
    Workload,
    attach_schedule,
    make_optimizer,
    parameters,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from cohortium.plugin import FederationSpec, LocalTask, SitePrivatizer


@frozen(kw_only=True)
class SignSGD:
    """signSGD (Bernstein et al. 2018) at the sites, plain averaging at the server.

    Attributes:
        steps: Batches a round.
        sampling_rate: Chance of each example to be in a batch.
        step_size: How far each weight moves in a step.
    """

    steps: int = field(default=4, validator=ge(1))
    sampling_rate: float = field(default=0.5, validator=[gt(0), le(1)])
    step_size: float = field(default=0.01, validator=gt(0))

    def workload(self, federation_spec: FederationSpec) -> Workload:
        """Poisson batches, alike at every site."""
        return Workload(output="update", steps=self.steps, sampling_rate=self.sampling_rate)

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        """The data is seen by `losses` alone, and `losses` by the privatizer alone."""
        import torch

        before = parameters.flatten(task.net)
        losses = AugmentedLoss(augmentation=Augmentation()).losses(task)
        for batch in privatizer.batches(len(task.labels)):
            privatizer.set_private_gradient(task.net, losses, batch)
            with torch.no_grad():
                for parameter in parameters.trainable(task.net):
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad.sign(), alpha=self.step_size)
        update = parameters.flatten(task.net) - before
        return LocalResult(vector=update, weight=float(len(task.labels)))

    def make_server_optimizer(
        self, parameters: Iterable[nn.Parameter], rounds: int
    ) -> tuple[Optimizer, LRScheduler]:
        """Move by the mean update."""
        optimizer = make_optimizer("sgd", parameters, learning_rate=1.0, options={})
        return attach_schedule(optimizer, "constant", rounds)

    def personalize(self, net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
        """Every site uses the global network."""
        return net
