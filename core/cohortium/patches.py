"""A convolution's weight gradients by example, and the Gram matrices of its patches.

The patches of an image are what the kernel sees at each position; their Gram matrix is put
together from that of the image's pixels, which is as many times smaller as the kernel has taps.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

GROUPED = 1 << 22
"""Weights taken in one grouped convolution: with more, it falls out of the caches."""


def padded(layer: Any, x: Tensor) -> Tensor:
    """What the kernel slides over."""
    sides = layer._reversed_padding_repeated_twice  # noqa: SLF001
    if not any(sides):
        return x
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return functional.pad(x, sides, mode=mode)


def convolution_gradient(layer: Any, x: Tensor, g: Tensor, examples: int) -> Tensor:
    """Weight gradients (B, E, D/groups, …) of inputs (N, D, …) and output gradients (N, E, …)."""
    padding = layer.padding
    if isinstance(padding, str) or layer.padding_mode != "zeros":
        x, padding = padded(layer, x), [0] * (x.ndim - 2)
    k, step = len(x) // examples, max(1, GROUPED // layer.weight.numel())
    rows = [
        _gradient(layer, x[i * k : (i + step) * k], g[i * k : (i + step) * k], padding,
                  min(step, examples - i)) for i in range(0, examples, step)
    ]  # fmt: skip
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _side_by_side(rows: Tensor, examples: int) -> Tensor:
    """Copies as the batch and all examples' channels next to each other, (K, B·D, …)."""
    if examples == 1:
        return rows
    apart = rows.view(examples, -1, *rows.shape[1:])
    return apart.transpose(0, 1).flatten(1, 2)


def _gradient(layer: Any, x: Tensor, g: Tensor, padding: Sequence[int], examples: int) -> Tensor:
    """Weight gradients (B, …), as one gradient of a convolution in B times as many groups."""
    shape = (examples * layer.out_channels, *layer.weight.shape[1:])
    weights = layer.weight.detach().new_empty(1).expand(shape)  # only its shape matters
    not_transposed = False
    _, rows, _ = torch.ops.aten.convolution_backward(
        _side_by_side(g, examples), _side_by_side(x, examples), weights, None, layer.stride,
        padding, layer.dilation, not_transposed, [0] * (x.ndim - 2), examples * layer.groups,
        [False, True, False],
    )  # fmt: skip
    gradients: Tensor = rows.view(examples, *layer.weight.shape)
    return gradients


def patch_grams(layer: Any, x: Tensor, out: Sequence[int], examples: int) -> Tensor:
    """Products of all pairs of patches, shape (B, K·T, K·T), in double precision.

    Positions t and u see taps at s·t + a and s·u + a, for stride s and offset a: so the patches'
    products are sums of the pixels' own, over offsets, and only pixels of one phase a mod s meet.

    Args:
        layer: A convolution in one group, of images or sequences.
        x: What went in, shape (N, D, H, W) or (N, D, W).
        out: The output map's sides.
        examples: B.
    """
    x = padded(layer, x).double()
    lines = (1,) * (4 - x.ndim)  # a sequence is an image of one line
    x = x.view(*x.shape[:2], *lines, *x.shape[2:])
    size, stride, dilation = (
        (*lines, *s) for s in (layer.kernel_size, layer.stride, layer.dilation)
    )
    oh, ow = (*lines, *out)
    k = len(x) // examples
    offsets = [(i * dilation[0], j * dilation[1]) for i, j in product(*map(range, size))]
    total = x.new_zeros(examples, k, oh, ow, k, oh, ow)
    for phase in sorted({(a % stride[0], b % stride[1]) for a, b in offsets}):
        pixels = x[:, :, phase[0] :: stride[0], phase[1] :: stride[1]]  # (N, D, h, w)
        h, w = pixels.shape[2:]
        flat = pixels.reshape(examples, k, -1, h * w).transpose(1, 2).flatten(2)  # (B, D, Khw)
        gram = torch.bmm(flat.transpose(1, 2), flat).view(examples, k, h, w, k, h, w)
        for a, b in offsets:
            if (a % stride[0], b % stride[1]) == phase:
                i = slice(a // stride[0], a // stride[0] + oh)
                j = slice(b // stride[1], b // stride[1] + ow)
                total += gram[:, :, i, j, :, i, j]
    return total.view(examples, k * oh * ow, -1)
