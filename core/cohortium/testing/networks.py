"""Networks of a model under test: their task, their outputs and losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cohortium.catalog.networks import build_network
from cohortium.testing import samples
from cohortium.testing.contract import ensure

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from cohortium.data.examples import DataSpec
    from cohortium.roles.protocols import Model
    from cohortium.roles.values import ExampleIndices

SPEC = samples.spec(3, 28, 28)
"""The images of most checks, of MedMNIST's usual shape."""

PIXEL_SPEC = samples.spec(3, 28, 28, task=samples.PIXEL_TASK)
"""The same images for a network that gives outputs for each pixel."""

CLOSE = 1e-4
"""Largest gap of results, over their scale, for another order of additions."""


def suitable_spec(model: Model) -> DataSpec:
    """Return the images of most checks, with the task that the network suits.

    A network that suits neither task has one class for each image.
    """
    return PIXEL_SPEC if not _suits(model, SPEC) and _suits(model, PIXEL_SPEC) else SPEC


def _suits(model: Model, spec: DataSpec) -> bool:
    """Return whether the network gives outputs of the task's shape."""
    import torch

    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            net, inputs = build_with_inputs(model, spec)
            found = net.eval()(inputs)
    except Exception:  # noqa: BLE001 - the checks say which fault a network has
        return False
    return isinstance(found, torch.Tensor) and found.shape == (len(inputs), *spec.output_shape)


def build_with_inputs(model: Model, spec: DataSpec) -> tuple[nn.Module, Tensor]:
    """Return the network from a fixed seed, and four of its inputs."""
    return build_network(model, spec, 7), model.preprocess(samples.images(4, spec))


def outputs_of(net: nn.Module, inputs: Tensor) -> Tensor:
    """Return the network's output, which must be a tensor.

    This check comes before any other check of the output.
    """
    import torch

    found = net(inputs)
    ensure(
        isinstance(found, torch.Tensor),
        f"the network gave a {type(found).__name__}, and not the tensor of its logits; return that "
        "alone.",
    )
    return found  # type: ignore[no-any-return]


def seeded_losses(
    net: nn.Module, inputs: Tensor, spec: DataSpec
) -> Callable[[ExampleIndices], Tensor]:
    """Return a function for each example's loss.

    Dropout is the same at every call.
    """
    import torch

    rng = np.random.default_rng(0)
    labels = torch.from_numpy(spec.task.sample_labels(spec.size, len(inputs), rng))

    def losses(batch: ExampleIndices) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            logits = outputs_of(net, inputs[batch])
        return spec.task.losses(logits, labels[batch])

    return losses


def mixes_examples(net: nn.Module, inputs: Tensor) -> bool:
    """Return whether the first example's logits change with the others."""
    import torch

    others = inputs.clone()
    others[1:] = inputs[1:].flip(0) * 0.5
    found = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for batch in (inputs, others):
            torch.manual_seed(0)  # so that Dropout drops the same values
            found.append(outputs_of(net, batch)[0])
    return largest_gap(found[0], found[1]) > CLOSE


def largest_gap(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, over the scale of the compared values."""
    return float((one - other).abs().max() / (1e-6 + other.abs().max()))
