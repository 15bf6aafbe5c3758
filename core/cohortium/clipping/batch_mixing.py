"""Refusal of networks that mix the examples of a batch.

The clip does not depend on this refusal (`clipped_sum.clipped_sum`): under privacy each example
runs by itself.  Such a network would be trained differently from its later use, so a refusal is
better.
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
"""Sizes of batches for the comparison with single examples."""

TOLERANCE = 1e-2
"""Largest difference, relative to the largest output."""


def find_batch_mixing_layers(net: nn.Module) -> list[str]:
    """Return the layers that mix the examples of a batch in training.

    Each is given as "name (kind)".

    A layer may stay in evaluation mode when `net` is set to train.  It normalises by constants and
    is not among them.

    Args:
        net: The network, whose mode stays unchanged.
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
    """Refuse `net` if a layer mixes the examples of a batch.

    Raises:
        PrivacyError: It has such a layer.  The sentence names the first one and the remedy.
    """
    layers = find_batch_mixing_layers(net)
    if layers:
        raise PrivacyError(
            f"the model mixes the examples of a batch in {layers[0]}, which example-level privacy "
            "cannot allow; use GroupNorm instead, or the privatizer's unit 'site'."
        )


def require_per_example_gradients(net: nn.Module, inputs: Tensor) -> None:
    """Refuse a network that mixes examples or cannot take a private step.

    Args:
        net: The network, which stays unchanged except for its gradients.
        inputs: A few different preprocessed inputs, shape (B, …).

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
                outputs = net(inputs[index]).flatten(1)
                return functional.cross_entropy(outputs, labels[index], reduction="none")

            def statistics_loss(batch: ExampleIndices) -> Tensor:
                index = torch.from_numpy(batch)
                own = (labels[index],) if getattr(net, "needs_labels", False) is True else ()
                found: Tensor = net.statistics_loss(inputs[index], *own)  # type: ignore[operator]
                return found

            has_statistics = hasattr(net, "statistics_loss")
            for phase in (losses, statistics_loss) if has_statistics else (losses,):
                clipped_sum(net, phase, np.arange(len(inputs)), clip=1.0)
    finally:
        for layer, mode in modes:
            layer.training = mode
        for buffer, before in state:
            buffer.copy_(before)


def _batches(inputs: Tensor) -> Iterator[Tensor]:
    """Yield batches of several sizes, of inputs and of weaker ones."""
    import torch

    pool = torch.cat([inputs, inputs * 0.5, inputs * 0.25])
    for size in BATCHES:
        yield pool[torch.arange(size) % len(pool)]


def _require_apart(net: nn.Module, rows: Tensor) -> None:
    """Refuse a network whose outputs differ between a batch and single examples.

    A network that draws random numbers is not compared.
    """
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
