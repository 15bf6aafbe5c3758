"""Local steps at a site: the part that all trainers of this package share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

from cohortium.plugin import (
    AugmentedTraining,
    FederationSpec,
    LocalResult,
    LocalTask,
    LocalTraining,
    SitePrivatizer,
    Workload,
    parameters,
    reject_statistics_rounds,
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

    offset: Tensor | None = field(default=None, repr=False)
    pull: float = 0.0

    def add_to_gradients(self, net: nn.Module, before: Tensor) -> None:
        """Add the term to each `.grad`, after the privatizer has set it.

        Args:
            net: The network.
            before: The global weights, shape (P,).
        """
        if self.offset is None and not self.pull:
            return
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
class LocalSteps(AugmentedTraining, LocalTraining):
    """Steps of an optimizer at each site, from the global weights."""

    def workload(self, federation_spec: FederationSpec) -> Workload:
        """Declare Poisson steps for private runs, otherwise shuffled passes or steps.

        Raises:
            StudyError: The optimizer does not exist, or refuses an option.
        """
        # `super()` has no class here: attrs replaces the class of a body.
        found = LocalTraining.workload(self, federation_spec)
        return evolve(found, has_mixed_examples=self.has_mixed_examples)

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        """Return the update of local steps, weighted by the site's examples."""
        update, _ = self._take_steps(task, privatizer)
        return LocalResult(vector=update, weight=float(len(task.labels)))

    def personalize(self, net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:  # noqa: ARG002
        """Return the global network, which every site uses."""
        return net

    def _take_steps(self, task: LocalTask, privatizer: SitePrivatizer) -> tuple[Tensor, int]:
        """Train `task.net`, and return its update, shape (P,), and the number of steps."""
        # A walk over the network takes as long as a layer of a small one, so there is one of each.
        trained = parameters.trainable(task.net)
        pieces = [*trained, *parameters.statistics(task.net)]
        reject_statistics_rounds(trained, type(self).__name__.lower())
        before = parameters.join(pieces)
        optimizer = self.make_local_optimizer(trained, task)
        losses, drift, steps = self.augmented_loss.losses(task), self._drift(task), 0
        for batch in privatizer.batches(len(task.labels)):
            privatizer.set_private_gradient(task.net, losses, batch)
            drift.add_to_gradients(task.net, before)
            optimizer.step()
            steps += 1
        return parameters.join(pieces).sub_(before), steps

    def _drift(self, task: LocalTask) -> Drift:  # noqa: ARG002
        """Return the term that every local gradient gets.  Here there is none."""
        return Drift()
