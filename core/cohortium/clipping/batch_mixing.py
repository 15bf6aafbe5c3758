"""Refusal of networks in which the examples of a batch see one another.

The clip holds without it (`clipped_sum.clipped_sum`): under privacy each example runs by itself.
Such a network would then learn something else than it is used for, and is better refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.clipping.clipped_sum import clipped_sum
from cohortium.errors import PrivacyError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from cohortium.roles.values import ExampleIndices

BATCHES = (5, 8)
"""Sizes of batches in which an example's output is compared with its own alone."""

TOLERANCE = 1e-2
"""How far it may be, relative to the largest output."""


def find_batch_mixing_layers(net: nn.Module) -> list[str]:
    """Layers that let the examples of a batch see one another in training, as "name (kind)".

    A layer that stays in evaluation mode when `net` is told to train normalises by constants: it
    is not among them.

    Args:
        net: Left in the mode that it has.
    """
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.instancenorm import _InstanceNorm

    def mixes(layer: nn.Module) -> bool:
        if isinstance(layer, _InstanceNorm):
            return layer.track_running_stats and layer.training
        if isinstance(layer, _BatchNorm):
            return layer.training or not layer.track_running_stats
        return False

    modes = [(layer, layer.training) for layer in net.modules()]
    net.train()
    found = [
        f"{name or 'the network itself'} ({type(layer).__name__})"
        for name, layer in net.named_modules()
        if mixes(layer)
    ]
    for layer, mode in modes:
        layer.training = mode
    return found


def require_no_batch_mixing(net: nn.Module) -> None:
    """Refuse `net` if it has a layer in which the examples of a batch see one another.

    Raises:
        PrivacyError: It has such a layer; the sentence names the first and the remedy.
    """
    layers = find_batch_mixing_layers(net)
    if layers:
        raise PrivacyError(
            f"the model mixes the examples of a batch in {layers[0]}, which example-level privacy "
            "cannot allow; use GroupNorm instead, or the privatizer's unit 'site'."
        )


def require_per_example_gradients(net: nn.Module, inputs: Tensor) -> None:
    """Refuse a network whose examples see one another, or that cannot take a private step.

    Args:
        net: Left as it was, but for its gradients.
        inputs: A few different prepared inputs, shape (B, …).

    Raises:
        PrivacyError: It is such a network.
    """
    import numpy as np
    import torch
    from torch.nn import functional

    state = [(buffer, buffer.clone()) for buffer in net.buffers()]
    modes = [(layer, layer.training) for layer in net.modules()]
    net.train()
    try:
        with torch.random.fork_rng(devices=[]):
            for rows in _batches(inputs):
                _require_apart(net, rows)
            labels = torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)

            def losses(batch: ExampleIndices) -> Tensor:
                index = torch.from_numpy(batch)
                return functional.cross_entropy(net(inputs[index]), labels[index], reduction="none")

            def prelude(batch: ExampleIndices) -> Tensor:
                found: Tensor = net.prelude(inputs[torch.from_numpy(batch)])  # type: ignore[operator]
                return found

            for phase in (losses, prelude) if hasattr(net, "prelude") else (losses,):
                clipped_sum(net, phase, np.arange(len(inputs)), clip=1.0)
    finally:
        for layer, mode in modes:
            layer.training = mode
        for buffer, before in state:
            buffer.copy_(before)


def _batches(inputs: Tensor) -> Iterator[Tensor]:
    """Batches of several sizes, of inputs and of weaker ones."""
    import torch

    pool = torch.cat([inputs, inputs * 0.5, inputs * 0.25])
    for size in BATCHES:
        yield pool[torch.arange(size) % len(pool)]


def _require_apart(net: nn.Module, rows: Tensor) -> None:
    """Refuse other outputs in a batch than alone, unless the network draws random numbers."""
    import torch

    before = torch.random.get_rng_state()
    with torch.no_grad():
        together = net(rows)
        if not torch.equal(before, torch.random.get_rng_state()):
            return
        apart = torch.cat([net(rows[i : i + 1]) for i in range(len(rows))])
    gap = (together - apart).abs().max()
    if not bool(gap <= TOLERANCE * apart.abs().max().clamp(min=1e-3)):
        raise PrivacyError(
            f"the examples of a batch see one another in the network {type(net).__name__}, which "
            "example-level privacy cannot allow; change it, or use the privatizer's unit 'site'."
        )
