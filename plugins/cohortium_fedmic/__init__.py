"""FedMIC (arXiv:2407.02261): mutual distillation, and a low-rank update that travels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import and_, ge, gt, le

from cohortium.plugin import (
    RATE,
    Augmentation,
    FederationSpec,
    LocalResult,
    LocalTask,
    Model,
    Multiclass,
    Offer,
    Schedule,
    SitePrivatizer,
    StudyError,
    Trainer,
    Workload,
    attach_schedule,
    check_optimizer,
    hookimpl,
    local_workload,
    make_optimizer,
    parameters,
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
class FedMIC:
    """Each site keeps its own teacher and shares the student it teaches.

    This is dual knowledge distillation with the losses of FedKD (Wu et al. 2022), the nearest
    scheme that is published with formulas: see `_distillation`.  Each matrix of a student's update
    is cut to its largest singular values (`_decomposition`).  Sums of factors are not factors of
    sums.  So a site multiplies the matrices out again before it releases them.  The decomposition
    regularises, and saves no bytes under secure aggregation.

    The teacher stays at the site, with all that it has learned, and is the network that the site
    itself uses (`personalize`).  It has the student's architecture and begins with its weights,
    unless the study names another model for it, such as a larger one.

    Guarantees:
        Teacher, student and the map between their features are trained by one gradient.  The
        privatizer clips and noises it as a whole.  So everything that a teacher learns of an
        example is within the clip.  The decomposition follows that noise.  Under `unit = "site"` it
        precedes clip and noise, which hide all its effects.

    Attributes:
        teacher: The model that every site builds its teacher by.  Its input is the images as the
            student's model prepares them.  None: a copy of the student.
        local_epochs: Passes over a site's own data each round.
        local_steps: Batches each round instead of whole passes. 0 uses `local_epochs`.
        batch_size: Examples in a batch.  See `fedavg`.
        optimizer: Optimizer at the sites, any of `torch.optim`.  It starts afresh every round.
        learning_rate: Learning rate of that optimizer.
        optimizer_options: Further arguments of that optimizer.
        schedule: Schedule of the learning rate, over the rounds.
        energy_first: T of the first round.  Each matrix keeps the fewest singular values whose
            squares make up this share of all squares.
        energy_last: T of the last round.  Between the two it grows evenly.
        server_optimizer: Optimizer that takes the mean update.  SGD at rate 1 is plain averaging.
        server_learning_rate: Learning rate of the server optimizer.
        server_optimizer_options: Further arguments of the server optimizer.
        flips: Whether to augment by mirroring.
        rotations: Whether to augment by quarter turns.
    """

    teacher: Model | None = None
    local_epochs: int = field(default=1, validator=[ge(1), le(10_000)])
    local_steps: int = field(default=0, validator=[ge(0), le(10_000_000)])
    batch_size: int = field(default=32, validator=[ge(1), le(1 << 24)])
    optimizer: str = "sgd"
    learning_rate: float = field(default=0.05, validator=RATE)
    optimizer_options: dict[str, float | bool] = field(factory=dict, validator=valid_options)
    schedule: Schedule = "constant"
    energy_first: float = field(default=0.95, validator=and_(gt(0), le(1)))
    energy_last: float = field(default=0.98, validator=and_(gt(0), le(1)))
    server_optimizer: str = "sgd"
    server_learning_rate: float = field(default=1.0, validator=RATE)
    server_optimizer_options: dict[str, float | bool] = field(factory=dict, validator=valid_options)
    flips: bool = False
    rotations: bool = False

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
        )

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        """Train both networks, and return the student's update, cut to low rank."""
        import torch

        from cohortium_fedmic._decomposition import low_rank_update
        from cohortium_fedmic._distillation import SHAPE, TeacherStudentPair, teacher_of

        if not isinstance(task.spec.task, Multiclass):
            raise StudyError(
                "fedmic distils the probabilities of classes that exclude one another; give its "
                "data the task 'multiclass', or choose another trainer."
            )
        before = parameters.flatten(task.net)
        shape = tuple(task.images.shape[1:])
        pair = TeacherStudentPair.of(
            task.net, task.state, teacher_of(task.net, task.state, self.teacher, shape)
        )
        optimizer = make_optimizer(
            self.optimizer,
            parameters.trainable(pair),
            learning_rate=self.learning_rate
            * schedule_factor(self.schedule, task.round, task.rounds),
            options=self.optimizer_options,
        )
        losses = pair.losses(task, Augmentation(flips=self.flips, rotations=self.rotations))
        for batch in privatizer.batches(len(task.labels)):
            privatizer.set_private_gradient(pair, losses, batch)
            optimizer.step()
        update = parameters.flatten(task.net).sub_(before)
        share = task.round / max(1, task.rounds - 1)
        energy = self.energy_first + share * (self.energy_last - self.energy_first)
        return LocalResult(
            vector=low_rank_update(update, task.net, energy=energy),
            weight=float(len(task.labels)),
            state={**pair.state(), SHAPE: torch.tensor(shape)},
        )

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
        return attach_schedule(optimizer, "constant", rounds)

    def personalize(self, net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
        """Return the site's own teacher, or the global network without one."""
        from cohortium_fedmic._distillation import SHAPE, teacher_of

        return teacher_of(net, state, self.teacher, state[SHAPE].tolist()) if state else net


@hookimpl
def cohortium_trainers() -> list[Offer[Trainer]]:
    """Offer `fedmic`."""
    return [Offer("fedmic", FedMIC, "Personal teachers, a shared student, low-rank updates.")]
