"""Clipped sums by their definition: one backward pass for each example."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cohortium.clipping.clipped_sum import clipped_sum
from cohortium.parameters import trainable

Losses = Callable[[NDArray[np.int64]], torch.Tensor]
EXACT = 1e-5


def losses_of(net: nn.Module, x: torch.Tensor, copies: int = 1) -> Losses:
    """A loss that is smooth in all outputs; `copies` rows of `x` are one example."""
    examples = len(x) // copies

    def losses(batch: NDArray[np.int64]) -> torch.Tensor:
        rows = x.view(examples, copies, *x.shape[1:])[torch.from_numpy(batch)]
        out = net(rows.flatten(0, 1)).flatten(1)
        weights = torch.arange(1, 1 + out.shape[1], dtype=out.dtype) / out.shape[1]
        each: torch.Tensor = ((out * weights).sin() + out.square()).mean(1)
        return each.view(len(batch), copies).mean(1)

    return losses


def one_by_one(net: nn.Module, losses: Losses, examples: int, clip: float) -> torch.Tensor:
    """The definition: each example's gradient by itself, clipped, summed."""
    parameters = trainable(net)
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for i in range(examples):
        net.zero_grad(set_to_none=True)
        losses(np.array([i])).sum().backward()  # type: ignore[no-untyped-call]
        grads = [p.grad for p in parameters]
        flat = torch.cat([
            (torch.zeros_like(p) if g is None else g).flatten()
            for g, p in zip(grads, parameters, strict=True)
        ]).double()  # fmt: skip
        total += flat * min(1.0, clip / max(1e-30, float(flat.norm())))
    return total


def gradient(net: nn.Module) -> torch.Tensor:
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainable(net)]
    return torch.cat([part.flatten() for part in parts]).double()


def agree(net: nn.Module, x: torch.Tensor, *, copies: int = 1, clip: float | None = None) -> None:
    losses, examples = losses_of(net, x, copies), len(x) // copies
    everything = one_by_one(net, losses, examples, 1e30)
    for c in (clip,) if clip else (float(everything.norm()) / examples, 1e30):
        expected = one_by_one(net, losses, examples, c)
        clipped_sum(net, losses, np.arange(examples), clip=c)
        assert float((gradient(net) - expected).norm()) <= EXACT * float(expected.norm())
        assert float(gradient(net).norm()) <= examples * c * (1 + EXACT)
    hooks = (m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert not any(hooks)
    assert all(isinstance(p, nn.Parameter) for m in net.modules() for p in m._parameters.values()
               if p is not None)  # fmt: skip
