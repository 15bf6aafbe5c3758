"""Size of a study's network and its memory, before it is built.

Torch's `meta` device has tensors with a shape and without content. On it, a network of any size can
be built and used in no memory and hardly any time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cohortium import parameters

if TYPE_CHECKING:
    from torch import Tensor

    from cohortium.data.examples import DataSpec
    from cohortium.roles.protocols import Model

BYTES_A_PARAMETER = 32
"""Weights, previous weights, a gradient, clipped sums, noise and the masked vector."""

BYTES_AN_ACTIVATION = 16
"""A value of a layer, its gradient, and copies that layers make."""

PROBE_IMAGES = 4
"""Number of made-up images on which a network is tried."""


def count_parameters(model: Model, spec: DataSpec) -> int | None:
    """Return the number of parameters of the network that `model` would build.

    The result is None if the network cannot be built without content. A user's own network may use
    operations that a tensor without content does not support.
    """
    import torch

    try:
        with torch.device("meta"):
            return parameters.length(model.build(spec, 0))
    except Exception:  # noqa: BLE001 - a user's network, whose fault a later check reports
        return None


def estimate_memory(model: Model, spec: DataSpec, *, copies: int) -> int:
    """Estimate the fewest bytes with which a site can train.

    The estimate is for a batch of `PROBE_IMAGES` examples.

    Args:
        model: The model that is trained.
        spec: Public facts about the images.
        copies: Copies of each example of a batch.
    """
    values = _activations(model, spec) or math.prod(spec.shape)
    parameters = count_parameters(model, spec) or 0
    return BYTES_A_PARAMETER * parameters + BYTES_AN_ACTIVATION * values * PROBE_IMAGES * copies


def _activations(model: Model, spec: DataSpec) -> int | None:
    """Return the number of values in one image and its activations."""
    import torch

    count = math.prod(spec.shape)

    def add(_layer: Any, _inputs: Any, output: object) -> None:
        nonlocal count
        count += output.numel() if isinstance(output, torch.Tensor) else 0

    try:
        with torch.device("meta"), torch.no_grad():
            net = model.build(spec, 0).eval()
            for layer in net.modules():
                if not [*layer.children()]:
                    layer.register_forward_hook(add)
            blank: Tensor = torch.zeros(1, *spec.shape)
            net(model.preprocess(blank))
    except Exception:  # noqa: BLE001 - as above
        return None
    return count
