"""FedMIC (arXiv:2407.02261): mutual distillation, and a low-rank update that travels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import and_, gt, le

from cohortium.plugin import (
    Augmentation,
    FederationSpec,
    LocalResult,
    LocalTask,
    LocalTraining,
    Model,
    Multiclass,
    Offer,
    ServerStep,
    SitePrivatizer,
    StudyError,
    Trainer,
    Workload,
    hookimpl,
    parameters,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

COHORTIUM_API = 1


@frozen(kw_only=True, slots=False)
class _Teacher:
    """The teacher of a site.  It is a base, so that it comes first in a study file.

    Attributes:
        teacher: The model that every site builds its teacher by.  Its input is the images as the
            student's model prepares them.  None: a copy of the student.
    """

    teacher: Model | None = None


@frozen(kw_only=True, slots=False)
class _LowRank:
    """The share of an update's energy that its decomposition keeps.

    It is a base, so that it comes between its neighbours in a study file.

    Attributes:
        energy_first: T of the first round.  Each matrix keeps the fewest singular values whose
            squares make up this share of all squares.
        energy_last: T of the last round.  Between the two it grows evenly.
    """

    energy_first: float = field(default=0.95, validator=and_(gt(0), le(1)))
    energy_last: float = field(default=0.98, validator=and_(gt(0), le(1)))

    def energy_in(self, round: int, rounds: int) -> float:  # noqa: A002
        """Return T of a round."""
        share = round / max(1, rounds - 1)
        return self.energy_first + share * (self.energy_last - self.energy_first)


@frozen(kw_only=True)
class FedMIC(ServerStep, _LowRank, LocalTraining, _Teacher):
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
        flips: Whether to augment by mirroring.
        rotations: Whether to augment by quarter turns.
    """

    flips: bool = False
    rotations: bool = False

    def workload(self, federation_spec: FederationSpec) -> Workload:
        """Declare Poisson steps for private runs, otherwise shuffled passes or steps.

        Raises:
            StudyError: An optimizer does not exist, or refuses an option.
        """
        found = LocalTraining.workload(self, federation_spec)
        self.check_server_optimizer()
        return found

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
        optimizer = self.make_local_optimizer(parameters.trainable(pair), task)
        losses = pair.losses(task, Augmentation(flips=self.flips, rotations=self.rotations))
        for batch in privatizer.batches(len(task.labels)):
            privatizer.set_private_gradient(pair, losses, batch)
            optimizer.step()
        update = parameters.flatten(task.net).sub_(before)
        energy = self.energy_in(task.round, task.rounds)
        return LocalResult(
            vector=low_rank_update(update, task.net, energy=energy),
            weight=float(len(task.labels)),
            state={**pair.state(), SHAPE: torch.tensor(shape)},
        )

    def personalize(self, net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
        """Return the site's own teacher, or the global network without one."""
        from cohortium_fedmic._distillation import SHAPE, teacher_of

        return teacher_of(net, state, self.teacher, state[SHAPE].tolist()) if state else net


@hookimpl
def cohortium_trainers() -> list[Offer[Trainer]]:
    """Offer `fedmic`."""
    return [Offer("fedmic", FedMIC, "Personal teachers, a shared student, low-rank updates.")]
