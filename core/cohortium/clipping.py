"""Per-example gradients, clipped and summed: the step on which example-level privacy rests."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from cohortium.errors import PrivacyError
from cohortium.vector import trainable

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from cohortium.bookkeeping import Share
    from cohortium.vocabulary import Index

TRIAL_CLIP = 1e-3
"""A bound at which nearly every gradient is clipped: wrong norms show, and add up to wrong sums."""

TRIAL_TOLERANCE = 1e-2
"""How far, in clips, the sum of a few may differ from the sum of each; rounding is far below."""

GRADIENT_FLOATS = 1 << 26
"""Numbers kept of a physical batch for its clipped sum: 256 MiB."""


def cross_example_layers(net: nn.Module) -> list[str]:
    """Layers of `net` that let the examples of a batch see one another, as "name (kind)"."""
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.instancenorm import _InstanceNorm

    return [
        f"{name or 'the network itself'} ({type(layer).__name__})"
        for name, layer in net.named_modules()
        if (isinstance(layer, _BatchNorm) and not isinstance(layer, _InstanceNorm))
        or (isinstance(layer, _InstanceNorm) and layer.track_running_stats)
    ]


def require_per_example(net: nn.Module) -> None:
    """Refuse `net` if it has a layer in which the examples of a batch see one another.

    Raises:
        PrivacyError: It has such a layer; the sentence names the first and the remedy.
    """
    layers = cross_example_layers(net)
    if layers:
        raise PrivacyError(
            f"the model mixes the examples of a batch in {layers[0]}, which example-level privacy "
            "cannot allow; use GroupNorm instead, or the privatizer's unit 'site'."
        )


def require_separable(net: nn.Module, inputs: Tensor) -> None:
    """Refuse a network whose gradients cannot be told apart by example, by trying it.

    The clipped sum over a small batch has to be the sum of the clipped gradients of its examples
    alone.  It is not where examples see one another, or where the first dimension of a layer's
    input is not the batch.

    Args:
        net: Left as it was, but for its gradients.
        inputs: A few different prepared inputs, shape (B, …).

    Raises:
        PrivacyError: It is such a network.
    """
    import numpy as np
    import torch
    from torch.nn import functional
    from torch.nn.modules.dropout import _DropoutNd

    labels = torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)

    def losses(batch: Index) -> Tensor:
        index = torch.from_numpy(batch)
        return functional.cross_entropy(net(inputs[index]), labels[index], reduction="none")

    def before_labels(batch: Index) -> Tensor:
        found: Tensor = net.prelude(inputs[torch.from_numpy(batch)])  # type: ignore[operator]
        return found

    phases = [losses, before_labels] if hasattr(net, "prelude") else [losses]

    def summed(batch: Index) -> Tensor:
        found = []
        for phase in phases:
            clipped_sum(net, phase, batch, clip=TRIAL_CLIP)
            found += [p.grad.double().flatten() for p in trainable(net) if p.grad is not None]
        return torch.cat(found)

    modes = [(layer, layer.training) for layer in net.modules()]
    buffers = [buffer.clone() for buffer in net.buffers()]
    net.train()
    for layer in net.modules():
        if isinstance(layer, _DropoutNd):
            layer.eval()
    everyone = np.arange(len(inputs))
    apart = sum((summed(everyone[i : i + 1]) for i in everyone[1:]), summed(everyone[:1]))
    gap = float((summed(everyone) - apart).norm())
    for layer, mode in modes:
        layer.training = mode
    for buffer, before in zip(net.buffers(), buffers, strict=True):
        buffer.copy_(before)
    if not gap <= TRIAL_TOLERANCE * TRIAL_CLIP:
        raise PrivacyError(
            "the model's gradients cannot be told apart by example: its examples see one another, "
            "or a layer takes something else than the batch as its first dimension; change it, or "
            "use the privatizer's unit 'site'."
        )


def mean_gradient(net: nn.Module, losses: Callable[[Index], Tensor], batch: Index) -> None:
    """Set `.grad` to the mean gradient over `batch`, without privacy; zero if it is empty.

    Args:
        net: The network inside `losses`.
        losses: The loss of each example at some positions, shape (B,).
        batch: Positions of examples, shape (B,).
    """
    import torch

    net.zero_grad(set_to_none=True)
    if len(batch):
        each = losses(batch)
        # Their mean would go through three more operations, there and back.
        each.backward(torch.full_like(each, 1 / len(each)))  # type: ignore[no-untyped-call]
        return
    for parameter in trainable(net):
        parameter.grad = torch.zeros_like(parameter)


def clipped_sum(
    net: nn.Module, losses: Callable[[Index], Tensor], batch: Index, *, clip: float
) -> None:
    """Set `.grad` to the sum over `batch` of per-example gradients, each clipped to norm `clip`.

    Args:
        net: The network inside `losses`.  Its layers take the batch as the first dimension.
        losses: The loss of each example at some positions, shape (B,).  Where an example stands
            K times in the network's input, its copies lie together.
        batch: Positions of examples, shape (B,); may be empty.
        clip: C, the largest ℓ₂ norm of one example's contribution over all parameters.

    Guarantees:
        Replacing one example's data by any other changes the result by at most 2·C in ℓ₂ norm,
        and leaving it out by at most C (up to `float32` rounding), if the network treats examples
        apart.  An example whose gradient is not finite contributes zero.  It costs one forward
        and one backward pass where each layer's use of its parameters shows in its calls; where
        it does not, examples are taken one by one, with a warning.

    Raises:
        PrivacyError: A layer alters its weights by the examples it sees.
    """
    import torch

    from cohortium.bookkeeping import UnaccountedError

    parameters = trainable(net)
    try:
        totals = _from_one_pass(net, parameters, losses, batch, clip)
    except UnaccountedError as reason:
        warnings.warn(f"{reason}: examples are taken one by one, which is slow.", stacklevel=2)
        totals = _one_by_one(parameters, losses, batch, clip)
    for parameter in parameters:
        total = totals.get(parameter)
        parameter.grad = torch.zeros_like(parameter) if total is None else total


def _from_one_pass(
    net: nn.Module, parameters: list[nn.Parameter], losses: Callable[[Index], Tensor],
    batch: Index, clip: float,
) -> dict[nn.Parameter, Tensor]:  # fmt: skip
    """Clipped sums by parameter, a physical batch at a time."""
    from cohortium.bookkeeping import Book

    totals: dict[nn.Parameter, Tensor] = {}
    # At first no more examples than if every gradient of each were held; then what is seen to fit.
    size = max(1, sum(parameter.numel() for parameter in parameters))
    start, step = 0, max(1, GRADIENT_FLOATS // size)
    with Book(net) as book:
        while start < len(batch):
            part = batch[start : start + step]
            book.open(len(part))
            shares, floats = book.take(losses(part))
            if shares:
                _add_clipped(totals, shares, clip)
            start += step
            step = max(1, GRADIENT_FLOATS * len(part) // max(1, floats))
    return totals


def _add_clipped(totals: dict[nn.Parameter, Tensor], shares: list[Share], clip: float) -> None:
    """Add a physical batch's clipped sums; what a share keeps is let go when it has been used."""
    import torch
    from torch.nn.utils.parametrize import cached

    squares = sum((share.squares for share in shares[1:]), shares[0].squares)
    factors = _factors(squares, clip)
    bad = None if bool(squares.isfinite().all()) else ~squares.isfinite()
    with torch.no_grad(), torch.autocast(factors.device.type, enabled=False), cached():
        while shares:
            share = shares.pop()
            for parameter, total in zip(share.parameters, share.totals(factors, bad), strict=True):
                totals[parameter] = totals[parameter] + total if parameter in totals else total


def _one_by_one(
    parameters: list[nn.Parameter], losses: Callable[[Index], Tensor], batch: Index, clip: float
) -> dict[nn.Parameter, Tensor]:
    """The same by its definition: as many backward passes as there are examples."""
    import torch

    totals: dict[nn.Parameter, Tensor] = {}
    for i in range(len(batch)):
        loss = losses(batch[i : i + 1]).sum()
        if not loss.requires_grad:
            continue
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        pairs = list(zip(parameters, found, strict=True))
        squares = torch.stack([g.square().sum(dtype=torch.float64) for _, g in pairs]).sum()
        if squares.isfinite():
            factor = _factors(squares, clip)
            for parameter, g in pairs:
                totals[parameter] = totals.get(parameter, 0) + g * factor.to(g.dtype)
    return totals


def _factors(squares: Tensor, clip: float) -> Tensor:
    """What brings gradients of these squared norms down to `clip`; zero where not finite."""
    norms = squares.sqrt()
    return (clip / norms.clamp(min=1e-12)).clamp(max=1.0).where(norms.isfinite(), 0.0)
