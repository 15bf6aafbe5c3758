"""FedMIC (arXiv:2407.02261): two networks teach each other, and a low-rank update travels."""

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
    Offer,
    Schedule,
    SitePrivatizer,
    Trainer,
    Workload,
    attach_schedule,
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
    """Each site keeps a teacher of its own, and shares the student that is taught by it.

    Dual knowledge distillation, with the losses of FedKD (Wu et al. 2022), the nearest scheme
    that is published with formulas: see `_distillation`.  Of a student's update each matrix is cut
    to its largest singular values (`_decomposition`).  Sums of factors are not factors of sums, so
    a site puts the matrices together again before it releases them: the decomposition regularises,
    and saves no bytes under secure aggregation.

    The teacher stays at the site with what it has learned, and is what the site uses itself
    (`personal`).  It has the student's architecture and begins with its weights, unless the study
    names another for it, such as a larger one.

    Guarantees:
        Teacher, student and the map between their features are trained by one gradient, which
        the privatizer clips and noises as a whole: all that a teacher knows of an example is
        within the clip.  The decomposition follows that noise; under `unit = "site"` it goes
        before clip and noise, which hide whatever it does.

    Attributes:
        teacher: The model that teachers are built by, each alike; it takes what the student's
            model makes of an image.  None: a copy of the student.
        local_epochs: Passes over a site's own data each round.
        local_steps: Batches each round instead of whole passes; 0 goes by `local_epochs`.
        batch_size: Examples in a batch; see `fedavg`.
        optimizer: At the sites, any of `torch.optim`; it starts afresh every round.
        learning_rate: Of that.
        optimizer_options: Further arguments of that.
        schedule: Of the learning rate, over the rounds.
        energy_first: T of the first round: each matrix keeps the fewest singular values whose
            squares make up this share of all squares.
        energy_last: T of the last round; between them it grows evenly.
        server_optimizer: Takes the mean update; SGD at rate 1 is plain averaging.
        server_learning_rate: Of that.
        server_optimizer_options: Further arguments of that.
        flips: Augment by mirroring.
        rotations: Augment by quarter turns.
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

    def workload(self, cohort: FederationSpec) -> Workload:
        """Poisson steps for private runs, shuffled passes or steps for others."""
        return local_workload(
            cohort, epochs=self.local_epochs, steps=self.local_steps, batch_size=self.batch_size
        )

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        """Local steps of both networks; the student's update, cut to its largest parts."""
        import torch

        from cohortium_fedmic._decomposition import low_rank_update
        from cohortium_fedmic._distillation import SHAPE, TeacherStudentPair, teacher_of

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
        """The server optimizer, at a constant rate."""
        optimizer = make_optimizer(
            self.server_optimizer,
            parameters,
            learning_rate=self.server_learning_rate,
            options=self.server_optimizer_options,
        )
        return attach_schedule(optimizer, "constant", rounds)

    def personalize(self, net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
        """The site's own teacher, or the global network where it has none yet."""
        from cohortium_fedmic._distillation import SHAPE, teacher_of

        return teacher_of(net, state, self.teacher, state[SHAPE].tolist()) if state else net


@hookimpl
def cohortium_trainers() -> list[Offer[Trainer]]:
    """Offer `fedmic`."""
    return [Offer("fedmic", FedMIC, "Personal teachers, a shared student, low-rank updates.")]
