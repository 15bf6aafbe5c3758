"""Federated SGD (McMahan et al. 2017): one gradient and step a round.

The server takes the step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import Factory, field, frozen
from attrs.validators import ge, le

from cohortium.plugin import (
    RATE,
    AugmentedTraining,
    FederationSpec,
    LocalResult,
    LocalTask,
    Offer,
    Schedule,
    SitePrivatizer,
    StudyError,
    Trainer,
    Workload,
    attach_schedule,
    attach_statistics_rounds,
    attach_weight_averaging,
    check_optimizer,
    default_momentum,
    hookimpl,
    make_optimizer,
    parameters,
    require_label_rounds,
    statistics_losses,
    valid_options,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

COHORTIUM_API = 1


@frozen(kw_only=True, slots=False)
class _BatchGradient:
    """A round's batch, and the server's optimizer for its gradient.

    It is a base, so that its parameters come first in a study file.

    Attributes:
        sampling_rate: Probability of each example to be in a round's batch.
        optimizer: Optimizer at the server, any of `torch.optim`.
        learning_rate: Learning rate of that optimizer.
        optimizer_options: Further arguments of that optimizer.  By default momentum 0.9, if the
            optimizer has a momentum (`sgd`, `rmsprop`, `muon`).
        schedule: Schedule of the learning rate, over the rounds.
    """

    sampling_rate: float = field(default=0.4, validator=[ge(1e-9), le(1)])
    optimizer: str = "sgd"
    learning_rate: float = field(default=0.06, validator=RATE)
    optimizer_options: dict[str, float | bool] = field(
        default=Factory(lambda self: default_momentum(self.optimizer, 0.9), takes_self=True),
        validator=valid_options,
    )
    schedule: Schedule = "linear"


@frozen(kw_only=True)
class FedSGD(AugmentedTraining, _BatchGradient):
    """Sites send the gradient of one Poisson batch.  The server keeps momentum.

    Attributes:
        average_last_fraction: Share of the rounds, the last ones, whose weights are averaged in the
            end.
        statistics_rounds: Rounds at the start in which the model learns from statistics of the
            images, if it can (`descriptor` with `private_whitening`, or `moments`).  They cost as
            much privacy as the others.  All rounds may be such rounds if the statistics have the
            labels in them (`moments`).
    """

    average_last_fraction: float = field(default=0.0, validator=[ge(0), le(1)])
    statistics_rounds: int = field(default=0, validator=[ge(0), le(1_000_000)])

    def workload(self, federation_spec: FederationSpec) -> Workload:  # noqa: ARG002
        """Declare one batch a round.

        Raises:
            StudyError: The optimizer does not exist, or refuses an option.
        """
        check_optimizer(self.optimizer, self.optimizer_options)
        return Workload(
            output="gradient",
            steps=1,
            sampling_rate=self.sampling_rate,
            has_mixed_examples=self.has_mixed_examples,
        )

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        """Return the gradient of the round's batch, weighted by its examples."""
        require_label_rounds(task, self.statistics_rounds)
        before = parameters.flatten(task.net)
        losses = (
            statistics_losses(task)
            if task.round < self.statistics_rounds
            else self.augmented_loss.losses(task)
        )
        (batch,) = privatizer.batches(len(task.labels))
        privatizer.set_private_gradient(task.net, losses, batch)
        gradient = parameters.flatten_gradients(task.net, before=before)
        return LocalResult(vector=gradient, weight=float(len(batch)))

    def make_server_optimizer(
        self, parameters: Iterable[nn.Parameter], rounds: int
    ) -> tuple[Optimizer, LRScheduler]:
        """Build the server optimizer, whose schedule begins after the statistics rounds.

        Raises:
            StudyError: There are more statistics rounds than rounds.
        """
        if self.statistics_rounds > rounds:
            raise StudyError(
                f"trainer.statistics_rounds = {self.statistics_rounds} is more than the {rounds} "
                "rounds of the run."
            )
        optimizer = make_optimizer(
            self.optimizer,
            parameters,
            learning_rate=self.learning_rate,
            options=self.optimizer_options,
        )
        optimizer, course = attach_schedule(
            optimizer, self.schedule, rounds, after=self.statistics_rounds
        )
        attach_statistics_rounds(optimizer, course, self.statistics_rounds)
        attach_weight_averaging(optimizer, rounds=rounds, share=self.average_last_fraction)
        return optimizer, course

    def personalize(self, net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:  # noqa: ARG002
        """Return the global network, which every site uses."""
        return net


@hookimpl
def cohortium_trainers() -> list[Offer[Trainer]]:
    """Offer `fedsgd`."""
    return [Offer("fedsgd", FedSGD, "One gradient a round; the server takes the step.")]
