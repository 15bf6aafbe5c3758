"""Release of a statistic in place of a gradient, by an ordinary attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from cohortium import parameters
from cohortium.catalog.networks import blame_network, require_rows
from cohortium.clipping.module_state import ModuleState
from cohortium.roles.values import LocalResult, Workload
from cohortium.statistics.statistic import MeasuredExamples

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from cohortium.roles.protocols import Model
    from cohortium.roles.sessions import SitePrivatizer
    from cohortium.roles.values import FederationSpec, LocalTask
    from cohortium.statistics.statistic import Statistic


@frozen(kw_only=True)
class MeasuringTrainer:
    """A trainer that leaves the weights as they are, and releases a statistic's sum.

    The rows of the statistic are per-example gradients of a linear layer.  So every privatizer
    clips, sums and noises them as it does gradients.

    Guarantees:
        The network scores each example alone, so a row depends on one example even where the
        network would mix a batch.
        A network that changes its state while it scores is refused.

    Attributes:
        model: The model that is scored.
        statistic: The statistic.
        examples_per_site: Declared mean number of examples at a site.
        is_private: Whether the privatizer sets sums over the declared number, rather than means
            over a site's own examples.
    """

    model: Model
    statistic: Statistic
    examples_per_site: float
    is_private: bool

    def workload(self, federation_spec: FederationSpec) -> Workload:  # noqa: ARG002
        """Declare one sum over all examples, which one site may have alone."""
        return Workload(output="gradient", steps=1, sampling_rate=1.0, max_site_share=1.0)

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        """Return the sum of the site's rows over the declared number of examples."""
        from torch import nn

        rows = self._rows(task)
        cells = nn.Linear(rows.shape[1], 1, bias=False, device=rows.device)
        nn.init.zeros_(cells.weight)
        (batch,) = privatizer.batches(len(task.labels))
        privatizer.set_private_gradient(cells, lambda places: cells(rows[places])[:, 0], batch)
        vector = parameters.flatten_gradients(cells, before=parameters.flatten(cells))
        if not self.is_private:
            vector = vector * (len(batch) / self.examples_per_site)
        # Each site has an equal part in the mean, which makes the mean a sum.
        return LocalResult(vector=vector, weight=self.examples_per_site)

    def _rows(self, task: LocalTask) -> Tensor:
        """Return the row of each example, shape (N, M)."""
        import torch

        net, width = task.net, len(self.statistic.cells)
        rows = torch.zeros(len(task.labels), width, device=task.images.device)
        net.eval()
        state = ModuleState.of(net)
        with torch.no_grad(), blame_network(self.model, net, "cannot be scored"):
            for place in range(len(task.labels)):
                one = slice(place, place + 1)
                inputs = task.images[one]
                outputs = net(inputs.clone())
                require_rows(self.model, outputs, 1, task.spec.output_shape)
                measured = MeasuredExamples(
                    inputs=inputs,
                    predictions=task.spec.task.predict(outputs),
                    labels=task.labels[one],
                    groups={name: group[one] for name, group in task.groups.items()},
                )
                rows[one] = self.statistic.measure(measured)
        state.require_same()
        return rows

    def make_server_optimizer(
        self,
        parameters: Iterable[nn.Parameter],
        rounds: int,  # noqa: ARG002
    ) -> tuple[Optimizer, LRScheduler]:
        """Make an optimizer that never takes a step."""
        from torch.optim import SGD
        from torch.optim.lr_scheduler import ConstantLR

        optimizer = SGD(parameters, lr=0.0)
        return optimizer, ConstantLR(optimizer)

    def personalize(self, net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:  # noqa: ARG002
        """Return the network, which every site scores."""
        return net
