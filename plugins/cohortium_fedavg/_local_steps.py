"""Local steps at a site: the part that all trainers of this package share."""

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
    Schedule,
    SitePrivatizer,
    Workload,
    check_optimizer,
    local_workload,
    make_optimizer,
    parameters,
    reject_statistics_rounds,
    schedule_factor,
    valid_options,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn


@frozen(eq=False)
class Drift:
    """A term of each local gradient that depends on weights alone: offset + pull·(w - w_global).

    Attributes:
        offset: Shape (P,), or None for zeros.
        pull: Strength of the pull towards the global weights.
    """

    offset: Tensor | None = None
    pull: float = 0.0

    def add_to_gradients(self, net: nn.Module, before: Tensor) -> None:
        """Add the term to each `.grad`, after the privatizer has set it.

        Args:
            net: The network.
            before: The global weights, shape (P,).
        """
        position = 0
        for parameter in parameters.trainable(net):
            part = slice(position, position + parameter.numel())
            position = part.stop
            if parameter.grad is None:
                continue
            if self.pull:
                anchor = before[part].view_as(parameter)
                parameter.grad.add_(parameter.detach() - anchor, alpha=self.pull)
            if self.offset is not None:
                parameter.grad.add_(self.offset[part].view_as(parameter))


@frozen(kw_only=True)
class LocalSteps:
    """Steps of an optimizer at each site, from the global weights.

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
    flips: bool = False
    rotations: bool = False
    augmentation_multiplicity: int = field(default=1, validator=[ge(1), le(MAX_COPIES)])
    class_weights: tuple[float, ...] = field(default=(), validator=CLASS_WEIGHTS)
    mixup_alpha: float = field(default=0.0, validator=MIXUP_ALPHA)

    def workload(self, federation_spec: FederationSpec) -> Workload:
        """Declare Poisson steps for private runs, otherwise shuffled passes or steps.

        Raises:
            StudyError: The optimizer does not exist, or refuses an option.
        """
        check_optimizer(self.optimizer, self.optimizer_options)
        return local_workload(
            federation_spec,
            epochs=self.local_epochs,
            steps=self.local_steps,
            batch_size=self.batch_size,
            has_mixed_examples=self.mixup_alpha > 0,
        )

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        """Return the update of local steps, weighted by the site's examples."""
        update, _ = self._take_steps(task, privatizer)
        return LocalResult(vector=update, weight=float(len(task.labels)))

    def personalize(self, net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:  # noqa: ARG002
        """Return the global network, which every site uses."""
        return net

    def _take_steps(self, task: LocalTask, privatizer: SitePrivatizer) -> tuple[Tensor, int]:
        """Train `task.net`, and return its update, shape (P,), and the number of steps."""
        reject_statistics_rounds(parameters.trainable(task.net), type(self).__name__.lower())
        before = parameters.flatten(task.net)
        optimizer = make_optimizer(
            self.optimizer,
            parameters.trainable(task.net),
            learning_rate=self._rate(task.round, task.rounds),
            options=self.optimizer_options,
        )
        losses, drift, steps = self._objective.losses(task), self._drift(task), 0
        for batch in privatizer.batches(len(task.labels)):
            privatizer.set_private_gradient(task.net, losses, batch)
            drift.add_to_gradients(task.net, before)
            optimizer.step()
            steps += 1
        return parameters.flatten(task.net).sub_(before), steps

    def _drift(self, task: LocalTask) -> Drift:  # noqa: ARG002
        """Return the term that every local gradient gets.  Here there is none."""
        return Drift()

    def _rate(self, round: int, rounds: int) -> float:  # noqa: A002
        """Return the sites' learning rate in a round."""
        return self.learning_rate * schedule_factor(self.schedule, round, rounds)

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
