"""Batches for networks that cannot be trained on one image.

A network with batch normalisation is an example.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np
from attrs import frozen

from cohortium import parameters
from cohortium.catalog import networks
from cohortium.errors import NetworkError
from cohortium.roles.values import LocalTask
from cohortium.rounds.server_state import initial_server_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from cohortium.data.examples import DataSpec
    from cohortium.ring.ring import RingVector
    from cohortium.roles.values import ExampleIndices, Workload
    from cohortium.study.study import Study


def with_min_batch_size(
    federation: Study, net: nn.Module, images: Tensor, workload: Workload, spec: DataSpec
) -> Workload:
    """Return `workload` for a network that cannot be trained on one image.

    The workload is unchanged if the trainer makes copies of one image.

    Raises:
        NetworkError: The workload has batches of one.
    """
    try:
        with networks.restored_after(net):
            _dry_run_trainer(federation, net, images[:1], workload, spec)
    except Exception:  # noqa: BLE001 - copies of the one do not help
        if workload.batch_size == 1:
            raise NetworkError(
                f"{networks.name_of(federation.model)} cannot be trained on a batch of one image, "
                "as batch normalisation cannot, and the trainer's batch_size is 1; raise it."
            ) from None
        return attrs.evolve(workload, fewest=2)
    return workload


@frozen
class _DryRunPrivatizer:
    """Stand-in for a site's privatizer, with one batch and no gradient."""

    def batches(self, examples: int) -> Iterator[ExampleIndices]:
        """Yield one batch of all examples."""
        yield np.arange(examples)

    def set_private_gradient(
        self, net: nn.Module, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices
    ) -> None:
        """Compute the losses, and set gradients of zeros."""
        import torch

        losses(batch)
        for parameter in parameters.trainable(net):
            parameter.grad = torch.zeros_like(parameter)

    def release(self, vector: Tensor, weight: float) -> RingVector:
        """Release nothing."""
        raise NotImplementedError


def _dry_run_trainer(
    federation: Study, net: nn.Module, images: Tensor, workload: Workload, spec: DataSpec
) -> None:
    """Let the trainer run one round on `images`."""
    import torch

    task = LocalTask(
        net=net.train(),
        images=images,
        labels=torch.from_numpy(
            spec.task.sample_labels(spec.size, len(images), np.random.default_rng(0))
        ),
        spec=spec,
        round=0,
        rounds=federation.rounds,
        workload=workload,
        generator=torch.Generator().manual_seed(0),
        state={},
        server_state=initial_server_state(federation.trainer, parameters.length(net)),
    )
    with torch.random.fork_rng(devices=[]):
        federation.trainer.train(task, _DryRunPrivatizer())
