"""A convolution's weight gradients by example, and the Gram matrices of its patches.

The patches of an image are what the kernel sees at each position; their Gram matrix is put
together from that of the image's pixels, which is as many times smaller as the kernel has taps.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

GROUPED = 1 << 22
"""Weights taken in one grouped convolution: with more, it falls out of the caches."""


UNFOLDED = 1 << 15
"""Numbers of an example's patches up to which its weight gradient is taken as their product with
the output gradient: with more, and more than weights, copying them costs more than a convolution
in as many groups as there are examples."""


def _inside(layer: Any, x: Tensor) -> tuple[Tensor, Sequence[int]]:
    """What the kernel slides over, and how many zeros it finds around that on each side."""
    padding: Sequence[int] | str = layer.padding
    if layer.padding_mode == "zeros" and not isinstance(padding, str):
        return x, padding
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    sides = layer._reversed_padding_repeated_twice  # noqa: SLF001
    return functional.pad(x, sides, mode=mode), [0] * (x.ndim - 2)


def convolution_gradient(layer: Any, x: Tensor, g: Tensor, examples: int) -> Tensor:
    """Weight gradients (B, E, D/groups, …) of inputs (N, D, …) and output gradients (N, E, …)."""
    x, padding = _inside(layer, x)
    numbers = layer.weight[0].numel() * g[0, 0].numel() * (len(x) // examples)
    if examples > 1 and layer.groups == 1 and numbers <= max(UNFOLDED, layer.weight.numel()):
        return _by_patches(layer, x, g, padding, examples)
    k, step = len(x) // examples, max(1, GROUPED // layer.weight.numel())
    rows = [
        _gradient(layer, x[i * k : (i + step) * k], g[i * k : (i + step) * k], padding,
                  min(step, examples - i)) for i in range(0, examples, step)
    ]  # fmt: skip
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _by_patches(layer: Any, x: Tensor, g: Tensor, padding: Sequence[int], examples: int) -> Tensor:
    """Weight gradients (B, …), as products of output gradients and patches."""
    x = functional.pad(x, [side for around in reversed(padding) for side in (around, around)])
    x, g = (t.reshape(examples, -1, *t.shape[1:]) for t in (x, g))  # (B, K, D, …)
    example, copy, channel, *places = x.stride()
    taps = [d * s for d, s in zip(layer.dilation, places, strict=True)]
    steps = [d * s for d, s in zip(layer.stride, places, strict=True)]
    patches = x.as_strided(
        (examples, *layer.weight.shape[1:], x.shape[1], *g.shape[3:]),
        (example, channel, *taps, copy, *steps),
    )  # (B, D, taps…, K, positions…)
    rows = torch.bmm(
        g.transpose(1, 2).reshape(examples, layer.out_channels, -1),
        patches.reshape(examples, layer.weight[0].numel(), -1).transpose(1, 2),
    )
    return rows.view(examples, *layer.weight.shape)


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
    In a flattened grid an offset moves t and u alike, so it moves the flattened matrix of products
    as a whole; products with the zeros of a padding are not taken.

    Args:
        layer: A convolution in one group, of images or sequences.
        x: What went in, shape (N, D, H, W) or (N, D, W).
        out: The output map's sides.
        examples: B.
    """
    x, around = _inside(layer, x)
    axes = list(zip(layer.kernel_size, layer.stride, layer.dilation, around, out, strict=True))
    if len(axes) == 1:  # a sequence is an image of one line
        x, axes = x.unsqueeze(2), [(1, 1, 1, 0, 1), *axes]
    (height, rows), (width, columns) = (_phases(*axis) for axis in axes)
    k = len(x) // examples
    n = k * height * width
    total = x.new_zeros(examples, n * n, dtype=torch.float64)
    for row, column in product(rows, columns):
        pixels = x[:, :, row.pixels, column.pixels].double()  # (N, D, h, w)
        h, w = pixels.shape[2:]
        flat = pixels.reshape(examples, k, -1, h * w).transpose(1, 2).flatten(2)  # (B, D, Khw)
        gram = torch.bmm(flat.transpose(1, 2), flat).view(examples, k, h, w, k, h, w)
        edges = (column.first, width - column.first - w, row.first, height - row.first - h)
        gram = functional.pad(gram, (*edges, 0, 0, *edges)).view(examples, -1)
        gram = _moved(_moved(gram, column.shifts, n + 1), row.shifts, width * (n + 1))
        total[:, : gram.shape[1]] += gram
    oh, ow = (axis[-1] for axis in axes)
    grids = total.view(examples, k, height, width, k, height, width)
    return grids[:, :, :oh, :ow, :, :oh, :ow].reshape(examples, k * oh * ow, -1)


@frozen
class _Phase:
    """Along one axis, the pixels that some taps of a kernel see, in a grid of their own.

    Attributes:
        pixels: Where they are in the image.
        first: How many places of the grid come before them, in the padding.
        shifts: How far into the grid each of the taps is at the first position.
    """

    pixels: slice
    first: int
    shifts: list[int]


def _phases(
    taps: int, stride: int, dilation: int, around: int, out: int
) -> tuple[int, list[_Phase]]:
    """The places of a grid, and one grid for each remainder of the taps' offsets by the stride."""
    offsets = [i * dilation for i in range(taps)]
    places = out + offsets[-1] // stride
    found = []
    for phase in sorted({offset % stride for offset in offsets}):
        first = min(max(0, -((phase - around) // stride)), places)
        start = phase + first * stride - around
        pixels = slice(start, start + (places - first) * stride, stride)
        shifts = [offset // stride for offset in offsets if offset % stride == phase]
        found.append(_Phase(pixels, first, shifts))
    return places, found


def _moved(flat: Tensor, shifts: Sequence[int], step: int) -> Tensor:
    """The sum of `flat` (B, n) moved by each of some `shifts`, in steps."""
    length = flat.shape[1] - max(shifts) * step
    parts = [flat[:, shift * step : shift * step + length] for shift in shifts]
    return sum(parts[1:], parts[0])
