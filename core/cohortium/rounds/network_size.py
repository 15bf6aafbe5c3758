"""How large a study's network is, and what its training takes, before anything of it is made.

Torch's `meta` device has tensors with a shape and without content: a network of any size is built,
and used, in no memory and hardly any time.
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
"""Weights, the weights before, a gradient, clipped sums, noise, and the masked vector."""

BYTES_AN_ACTIVATION = 16
"""A value of a layer, its gradient, and copies that layers make."""

PROBE_IMAGES = 4
"""Made-up images on which a network is tried before a run."""


def count_parameters(model: Model, spec: DataSpec) -> int | None:
    """P of the network that `model` would build, or None where it cannot be built without content.

    A user's own network may do what no tensor without content can do.
    """
    import torch

    try:
        with torch.device("meta"):
            return parameters.length(model.build(spec, 0))
    except Exception:  # noqa: BLE001 - a network of anyone's; what is wrong with it is told later
        return None


def estimate_memory(model: Model, spec: DataSpec, *, copies: int) -> int:
    """About the fewest bytes with which a site can train: for a batch of `PROBE_IMAGES` examples.

    Args:
        model: What is trained.
        spec: Of the images.
        copies: Of each example of a batch.
    """
    values = _activations(model, spec) or math.prod(spec.shape)
    parameters = count_parameters(model, spec) or 0
    return BYTES_A_PARAMETER * parameters + BYTES_AN_ACTIVATION * values * PROBE_IMAGES * copies


def _activations(model: Model, spec: DataSpec) -> int | None:
    """Values that the layers of the network make of one image, the image among them."""
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
