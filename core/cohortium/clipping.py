"""Per-example gradients, clipped and summed: the step on which example-level privacy rests.

Opacus' samplers (Yousefpour et al. 2021) compute the per-example gradients behind this interface.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from cohortium.errors import PrivacyError
from cohortium.vector import trainable

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from cohortium.vocabulary import Index

GRADIENT_FLOATS = 1 << 26
"""Per-example gradient values held at a time: 256 MiB."""


def cross_example_layers(net: nn.Module) -> list[str]:
    """Layers whose output for one example depends on the others of its batch, as "name (kind)"."""
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.instancenorm import _InstanceNorm

    return [
        f"{name or 'the network itself'} ({type(layer).__name__})"
        for name, layer in net.named_modules()
        if (isinstance(layer, _BatchNorm) and not isinstance(layer, _InstanceNorm))
        or (isinstance(layer, _InstanceNorm) and layer.track_running_stats)
    ]


def require_per_example(net: nn.Module) -> None:
    """Refuse a network in which examples of a batch see one another.

    Raises:
        PrivacyError: It has such a layer; the sentence names the first and the remedy.
    """
    layers = cross_example_layers(net)
    if layers:
        raise PrivacyError(
            f"the model mixes the examples of a batch in {layers[0]}, which example-level privacy "
            "cannot allow; use GroupNorm instead, or the privatizer's unit 'site'."
        )


def mean_gradient(net: nn.Module, losses: Callable[[Index], Tensor], batch: Index) -> None:
    """Set `.grad` to the mean gradient over `batch`, without privacy; zero if it is empty."""
    import torch

    net.zero_grad(set_to_none=True)
    if len(batch):
        losses(batch).mean().backward()  # type: ignore[no-untyped-call]
        return
    for parameter in trainable(net):
        parameter.grad = torch.zeros_like(parameter)


def clipped_sum(
    net: nn.Module, losses: Callable[[Index], Tensor], batch: Index, *, clip: float
) -> None:
    """Set `.grad` to the sum over `batch` of per-example gradients, each clipped to norm `clip`.

    Args:
        net: The network inside `losses`.
        losses: The loss of each example at some positions, shape (B,).  Where an example stands
            K times in the network's input, its copies lie together.
        batch: Positions of examples, shape (B,); may be empty.
        clip: C, the largest ℓ₂ norm of one example's contribution over all parameters.

    Guarantees:
        Replacing one example's data by any other changes the result by at most 2·C in ℓ₂ norm,
        and leaving it out by at most C (up to `float32` rounding), if the network treats examples
        apart.  An example whose gradient is not finite contributes zero.
    """
    import torch

    parameters = trainable(net)
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    size = sum(parameter.numel() for parameter in parameters)
    chunk = max(1, GRADIENT_FLOATS // size)
    if len(batch):
        with _Samplers(net):
            for start in range(0, len(batch), chunk):
                _add_clipped(losses, batch[start : start + chunk], parameters, totals, clip)
    for parameter, total in zip(parameters, totals, strict=True):
        parameter.grad = total


def _add_clipped(
    losses: Callable[[Index], Tensor],
    batch: Index,
    parameters: list[nn.Parameter],
    totals: list[Tensor],
    clip: float,
) -> None:
    import torch

    losses(batch).sum().backward()  # type: ignore[no-untyped-call]
    samples = [_take_samples(parameter, len(batch)) for parameter in parameters]
    squares = torch.zeros(len(batch), device=totals[0].device)
    for sample in samples:
        if sample is not None:
            squares += sample.flatten(1).square().sum(1)
    norms = squares.sqrt()
    finite = torch.isfinite(norms)
    factors = torch.where(finite, (clip / norms.clamp(min=1e-12)).clamp(max=1.0), 0.0)
    all_finite = bool(finite.all())
    for sample, total in zip(samples, totals, strict=True):
        if sample is None:
            continue
        rows = sample.flatten(1)
        if not all_finite:
            rows = rows.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        total.add_((factors @ rows).view_as(total))


def _take_samples(parameter: nn.Parameter, examples: int) -> Tensor | None:
    """Take the per-example gradients (B, …) off `parameter`; copies of an example are summed."""
    sample: Tensor | None = getattr(parameter, "grad_sample", None)
    parameter.grad = None
    parameter.grad_sample = None  # type: ignore[attr-defined]
    if sample is None or len(sample) == examples:
        return sample
    return sample.view(examples, -1, *sample.shape[1:]).sum(1)


class _Samplers:
    """Opacus' hooks on a network, for the time of a `with` block."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net

    def __enter__(self) -> None:
        from opacus import GradSampleModule

        self._quiet = warnings.catch_warnings()
        self._quiet.__enter__()
        # The images need no gradient of their own, which is as it should be.
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        self._net.zero_grad(set_to_none=True)
        self._wrapped = GradSampleModule(
            self._net, batch_first=True, loss_reduction="sum", strict=False
        )

    def __exit__(self, *error: object) -> None:
        self._wrapped.to_standard_module()
        self._quiet.__exit__(None, None, None)
