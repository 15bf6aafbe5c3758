"""Federated averaging (McMahan et al. 2017) and FedProx (Li et al. 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge, le

from cohortium.plugin import (
    CLASS_WEIGHTS,
    MAX_COPIES,
    MIXUP_ALPHA,
    RATE,
    Augmentation,
    AugmentedLoss,
    FederationSpec,
    LocalResult,
    LocalTask,
    Offer,
    Schedule,
    SitePrivatizer,
    Trainer,
    Workload,
    attach_schedule,
    attach_weight_averaging,
    check_optimizer,
    hookimpl,
    local_workload,
    make_optimizer,
    parameters,
    reject_statistics_rounds,
    schedule_factor,
    valid_options,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

COHORTIUM_API = 1


@frozen(kw_only=True)
class FedAvg:
    """Sites train locally.  The server moves by the mean of their updates.

    Attributes:
        local_epochs: Passes over a site's own data each round.
        local_steps: Batches each round instead of whole passes. 0 uses `local_epochs`.
        batch_size: Examples in a batch.  Under example-level privacy batches are Poisson samples.
            Their rate is this number over the *declared* mean size of a site.  Then `local_epochs`
            passes are the number of steps that this makes, the same at every site.
        optimizer: Optimizer at the sites, any of `torch.optim`.  It starts afresh every round.
        learning_rate: Learning rate of that optimizer.
        optimizer_options: Further arguments of that optimizer.
        schedule: Schedule of the sites' learning rate, over the rounds.
        server_optimizer: Optimizer that takes the mean update.  SGD at rate 1 is plain averaging.
        server_learning_rate: Learning rate of the server optimizer.
        server_optimizer_options: Further arguments of the server optimizer.
        average_last_fraction: Share of the rounds, the last ones, whose weights are averaged in the
            end.
        flips: Whether to augment by mirroring.
        rotations: Whether to augment by quarter turns.
        augmentation_multiplicity: Augmented copies of an example in one step.
        class_weights: A declared factor above 0 for each class.  Empty for ones.
        mixup_alpha: α of MixUp, which trains on convex pairs of images.  0 mixes nothing.  Refused
            under privacy of examples or patients.
    """

    local_epochs: int = field(default=1, validator=[ge(1), le(10_000)])
    local_steps: int = field(default=0, validator=[ge(0), le(10_000_000)])
    batch_size: int = field(default=32, validator=[ge(1), le(1 << 24)])
    optimizer: str = "sgd"
    learning_rate: float = field(default=0.05, validator=RATE)
    optimizer_options: dict[str, float | bool] = field(factory=dict, validator=valid_options)
    schedule: Schedule = "constant"
    server_optimizer: str = "sgd"
    server_learning_rate: float = field(default=1.0, validator=RATE)
    server_optimizer_options: dict[str, float | bool] = field(factory=dict, validator=valid_options)
    average_last_fraction: float = field(default=0.0, validator=[ge(0), le(1)])
    flips: bool = False
    rotations: bool = False
    augmentation_multiplicity: int = field(default=1, validator=[ge(1), le(MAX_COPIES)])
    class_weights: tuple[float, ...] = field(default=(), validator=CLASS_WEIGHTS)
    mixup_alpha: float = field(default=0.0, validator=MIXUP_ALPHA)

    def workload(self, federation_spec: FederationSpec) -> Workload:
        """Declare Poisson steps for private runs, otherwise shuffled passes or steps.

        Raises:
            StudyError: An optimizer does not exist, or refuses an option.
        """
        check_optimizer(self.optimizer, self.optimizer_options)
        check_optimizer(
            self.server_optimizer, self.server_optimizer_options, key="server_optimizer_options"
        )
        return local_workload(
            federation_spec,
            epochs=self.local_epochs,
            steps=self.local_steps,
            batch_size=self.batch_size,
            has_mixed_examples=self.mixup_alpha > 0,
        )

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        """Return the update of local steps, weighted by the site's examples."""
        reject_statistics_rounds(parameters.trainable(task.net), "fedavg")
        before = parameters.flatten(task.net)
        optimizer = make_optimizer(
            self.optimizer,
            parameters.trainable(task.net),
            learning_rate=self.learning_rate
            * schedule_factor(self.schedule, task.round, task.rounds),
            options=self.optimizer_options,
        )
        losses = self._objective.losses(task)
        for batch in privatizer.batches(len(task.labels)):
            privatizer.set_private_gradient(task.net, losses, batch)
            self._add_data_free(task.net, before)
            optimizer.step()
        update = parameters.flatten(task.net).sub_(before)
        return LocalResult(vector=update, weight=float(len(task.labels)))

    def make_server_optimizer(
        self, parameters: Iterable[nn.Parameter], rounds: int
    ) -> tuple[Optimizer, LRScheduler]:
        """Build the server optimizer, at a constant rate."""
        optimizer = make_optimizer(
            self.server_optimizer,
            parameters,
            learning_rate=self.server_learning_rate,
            options=self.server_optimizer_options,
            key="server_optimizer_options",
        )
        attach_weight_averaging(optimizer, rounds=rounds, share=self.average_last_fraction)
        return attach_schedule(optimizer, "constant", rounds)

    def personalize(self, net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:  # noqa: ARG002
        """Return the global network, which every site uses."""
        return net

    def _add_data_free(self, net: nn.Module, before: Tensor) -> None:
        """Add a term to the gradients that depends on weights alone.

        Here there is none.
        """

    @property
    def _objective(self) -> AugmentedLoss:
        augmentation = Augmentation(
            flips=self.flips,
            rotations=self.rotations,
            augmentation_multiplicity=self.augmentation_multiplicity,
        )
        return AugmentedLoss(
            augmentation=augmentation,
            class_weights=self.class_weights,
            mixup_alpha=self.mixup_alpha,
        )


@frozen(kw_only=True)
class FedProx(FedAvg):
    """`FedAvg` with a pull μ(w - w_global) towards the global weights.

    Attributes:
        mu: μ, the strength of the pull.  It depends on no data, so it costs no privacy.
    """

    mu: float = field(default=0.01, validator=[ge(0), le(1e6)])

    def _add_data_free(self, net: nn.Module, before: Tensor) -> None:
        """Add the pull to the gradients, after the privatizer has set them."""
        position = 0
        for parameter in parameters.trainable(net):
            anchor = before[position : position + parameter.numel()].view_as(parameter)
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - anchor, alpha=self.mu)
            position += parameter.numel()


@hookimpl
def cohortium_trainers() -> list[Offer[Trainer]]:
    """Offer `fedavg` and `fedprox`."""
    return [
        Offer("fedavg", FedAvg, "Local steps or epochs, then the mean update."),
        Offer("fedprox", FedProx, "FedAvg with a pull towards the global weights."),
    ]
