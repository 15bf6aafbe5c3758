"""A site's prepared images, on which networks are trained and measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen

from cohortium.learning.evaluation import batch_length

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from cohortium.data.examples import DataSpec


@frozen(eq=False)
class SiteImages:
    """A site's images, prepared: inputs of shape (N, …), and their labels."""

    inputs: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    spec: DataSpec

    def losses(self, net: nn.Module, index: Tensor) -> Tensor:
        """Return the loss of each image at `index`, shape (B,)."""
        return self.spec.task.losses(net(self.inputs[index]), self.labels[index], None)

    def guess_loss(self) -> float:
        """Return the mean loss of the images for outputs of zero."""
        import torch

        total = 0.0
        for labels in torch.split(self.labels, batch_length(self.inputs)):
            zeros = torch.zeros(len(labels), *self.spec.output_shape, device=labels.device)
            total += float(self.spec.task.losses(zeros, labels, None).double().sum())
        return total / len(self.labels)

    def measure(
        self, net: nn.Module, positions: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the loss and the score of each image at `positions`, shape (M,)."""
        import torch

        losses, scores, task = [], [], self.spec.task
        training = net.training
        net.eval()
        with torch.no_grad():
            for batch in np.array_split(positions, -(-len(positions) // batch_length(self.inputs))):
                index = torch.from_numpy(batch).to(self.labels.device)
                outputs, labels = net(self.inputs[index]), self.labels[index]
                losses.append(task.losses(outputs, labels, None).double().cpu().numpy())
                values = task.predict(outputs).cpu().numpy()
                scores.append(task.example_scores(values, labels.cpu().numpy()))
        net.train(training)
        return np.concatenate(losses), np.concatenate(scores)
