"""Canaries: examples whose gradient is a large multiple of one coordinate's unit vector."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import attrs
import numpy as np
from attrs import field, frozen

from cohortium import parameters
from cohortium.data.examples import Examples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from cohortium.data.splits import Splits
    from cohortium.ring.ring import RingVector
    from cohortium.roles.protocols import Dataset
    from cohortium.roles.sessions import SitePrivatizer
    from cohortium.roles.values import ExampleIndices

    Reals = NDArray[np.float64]

HUGE = 1e6
"""Size of a canary's gradient, before it is clipped."""


@frozen
class CanaryDataset:
    """Data set with additional blank examples at its end, one per canary.

    Attributes:
        dataset: The study's own.
        canaries: Number of canaries.
    """

    dataset: Dataset
    canaries: int

    def load(self) -> Splits:
        """Return the study's data, with the canaries."""
        splits = self.dataset.load()
        return attrs.evolve(splits, train=self._with_canaries(splits.train))

    def _with_canaries(self, train: Examples) -> Examples:
        many = self.canaries
        alike = np.arange(many) % len(train)  # labels and clients that the partitioner knows
        blank = np.zeros((many, *train.images.shape[1:]), dtype=train.images.dtype)
        clients, patients = train.clients, train.patients
        return Examples(
            np.concatenate([train.images, blank]),
            np.concatenate([train.labels, train.labels[alike]]),
            None if clients is None else np.concatenate([clients, clients[alike]]),
            None
            if patients is None
            else np.concatenate([patients, patients.max() + 1 + np.arange(many)]),
            None if train.groups is None else np.concatenate([train.groups, train.groups[alike]]),
        )


@frozen(eq=False)
class CanaryPrivatizer:
    """Site's privatizer in which canaries' losses replace some examples' losses.

    Attributes:
        privatizer: The study's own.
        gradients: Factor of the loss, by position at the site. It is `HUGE` for a present canary,
            0 for an absent canary, NaN for an example of the study. Shape (N,).
        coordinates: Index of a canary's parameter in the network, by position. Shape (N,).
    """

    privatizer: SitePrivatizer
    gradients: Reals
    coordinates: ExampleIndices = field(repr=False)

    def batches(self, examples: int) -> Iterator[ExampleIndices]:
        """Yield the study's own batches."""
        return self.privatizer.batches(examples)

    def set_private_gradient(
        self, net: nn.Module, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices
    ) -> None:
        """Set the study's own gradient, of losses that include the canaries'."""
        import torch

        def planted(index: ExampleIndices) -> Tensor:
            own, scale = losses(index), torch.from_numpy(self.gradients[index])
            is_own = scale.isnan().to(own.device)
            if bool(is_own.all()):
                return own
            numbers = torch.cat([p.reshape(-1) for p in parameters.trainable(net)])
            canaries = numbers[torch.from_numpy(self.coordinates[index]).to(own.device)]
            factor = scale.nan_to_num(0.0).to(own)
            return torch.where(is_own, own, factor * canaries)

        with warnings.catch_warnings():
            # A canary's loss depends on the weights alone, so examples are taken one by one.
            warnings.filterwarnings("ignore", message=".*one by one")
            self.privatizer.set_private_gradient(net, planted, batch)

    def release(self, vector: Tensor, weight: float) -> RingVector:
        """Return the study's own release."""
        return self.privatizer.release(vector, weight)
