"""Memory of clipped sums: a step frees its tensors at once."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from cohortium.clipping.clipped_sum import clipped_sum

if TYPE_CHECKING:
    from cohortium.roles.values import ExampleIndices


def _tensors() -> int:
    return sum(issubclass(type(value), torch.Tensor) for value in gc.get_objects())


def test_clipped_sum_keeps_no_tensor() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6) % 3
    outputs: list[weakref.ref[torch.Tensor]] = []

    def losses(batch: ExampleIndices) -> torch.Tensor:
        output = net(images[torch.from_numpy(batch)])
        outputs.append(weakref.ref(output))
        return functional.cross_entropy(output, labels[torch.from_numpy(batch)], reduction="none")

    clipped_sum(net, losses, np.arange(6), clip=1.0)
    net.zero_grad(set_to_none=True)
    gc.collect()
    gc.disable()  # so that only what is freed at once is free
    try:
        before = _tensors()
        for _ in range(3):
            clipped_sum(net, losses, np.arange(6), clip=1.0)
        net.zero_grad(set_to_none=True)
        assert _tensors() == before
        assert not any(output() is not None for output in outputs)
    finally:
        gc.enable()
