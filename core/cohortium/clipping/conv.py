"""Weight gradients by example and Gram matrices, for convolutions.

The patches of an image are the kernel's inputs at each position.  Their Gram matrix is computed
from that of the image's pixels.  The latter is as many times smaller as the kernel has taps.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from attrs import field, frozen
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

GROUPED = 1 << 22
"""Most weights in one grouped convolution.

More weights do not fit the caches.
"""


UNFOLDED = 1 << 15
"""Most numbers of an example's patches for a product of matrices.

Up to this limit, the weight gradient is the product of the patches and the output gradient.  Above
it, and above the number of weights, copies of patches cost too much.  A convolution in as many
groups as examples then costs less.
"""


@frozen
class AdjointConvolution:
    """The convolution whose adjoint is a transposed convolution, without padding.

    The attributes are those of `nn.Conv2d`.
    """

    weight: Tensor = field(repr=False)
    in_channels: int
    out_channels: int
    kernel_size: Sequence[int]
    stride: Sequence[int]
    dilation: Sequence[int]
    groups: int
    padding: Sequence[int]
    padding_mode: str = "zeros"

    @classmethod
    def of(cls, layer: Any) -> AdjointConvolution:
        """Return the convolution for a transposed one."""
        return cls(
            layer.weight, layer.out_channels, layer.in_channels, layer.kernel_size, layer.stride,
            layer.dilation, layer.groups, [0] * len(layer.kernel_size),
        )  # fmt: skip


def _inside(layer: Any, x: Tensor) -> tuple[Tensor, Sequence[int]]:
    """Return the kernel's input, and the zeros of padding by side."""
    padding: Sequence[int] | str = layer.padding
    if layer.padding_mode == "zeros" and not isinstance(padding, str):
        return x, padding
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    sides = layer._reversed_padding_repeated_twice  # noqa: SLF001
    return functional.pad(x, sides, mode=mode), [0] * (x.ndim - 2)


def convolution_gradient(layer: Any, x: Tensor, g: Tensor, examples: int) -> Tensor:
    """Return weight gradients (B, E, D/groups, …).

    The inputs have shape (N, D, …) and the output gradients (N, E, …).
    """
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
    """Return weight gradients (B, …), as products of output gradients and patches."""
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
    """Return copies as the batch, with all examples' channels, (K, B·D, …)."""
    if examples == 1:
        return rows
    apart = rows.view(examples, -1, *rows.shape[1:])
    return apart.transpose(0, 1).flatten(1, 2)


def _gradient(layer: Any, x: Tensor, g: Tensor, padding: Sequence[int], examples: int) -> Tensor:
    """Return weight gradients (B, …), from one grouped convolution.

    It has B times as many groups as the layer.
    """
    shape = (examples * layer.out_channels, *layer.weight.shape[1:])
    weights = layer.weight.detach().new_empty(1).expand(shape)  # because only its shape matters
    not_transposed = False
    _, rows, _ = torch.ops.aten.convolution_backward(
        _side_by_side(g, examples), _side_by_side(x, examples), weights, None, layer.stride,
        padding, layer.dilation, not_transposed, [0] * (x.ndim - 2), examples * layer.groups,
        [False, True, False],
    )  # fmt: skip
    gradients: Tensor = rows.view(examples, *layer.weight.shape)
    return gradients


def patch_grams(layer: Any, x: Tensor, out: Sequence[int], examples: int) -> Tensor:
    """Return products of all pairs of patches, shape (B, K·T, K·T).

    The products are in double precision.

    Positions t and u see taps at s·t + a and s·u + a, for stride s and offset a.  So the patches'
    products are sums of the pixels' products, over offsets.  Only pixels of one phase a mod s are
    multiplied with one another.

    In a flattened grid an offset moves t and u equally.  So it moves the flattened matrix of
    products as a whole.  Products with the zeros of a padding are not computed.

    Args:
        layer: A convolution in one group, of sequences, images or volumes.
        x: Input, shape (N, D, *size).
        out: Sides of the output map.
        examples: B.
    """
    x, around = _inside(layer, x)
    axes = zip(layer.kernel_size, layer.stride, layer.dilation, around, out, strict=True)
    lengths, phases = zip(*(_phases(*axis) for axis in axes), strict=True)
    steps = [prod(lengths[axis + 1 :]) for axis in range(len(lengths))]
    k = len(x) // examples
    n = k * prod(lengths)
    total = x.new_zeros(examples, n * n, dtype=torch.float64)
    for place in product(*phases):
        pixels = x[:, :, *(phase.pixels for phase in place)].double()  # (N, D, *sides)
        sides = pixels.shape[2:]
        flat = pixels.flatten(2).reshape(examples, k, -1, prod(sides))
        flat = flat.transpose(1, 2).flatten(2)  # (B, D, K·sides)
        gram = torch.bmm(flat.transpose(1, 2), flat).view(examples, k, *sides, k, *sides)
        edges = [
            edge
            for phase, side, length in zip(place, sides, lengths, strict=True)
            for edge in (length - phase.first - side, phase.first)
        ][::-1]
        gram = functional.pad(gram, (*edges, 0, 0, *edges)).view(examples, -1)
        for phase, step in reversed([*zip(place, steps, strict=True)]):
            gram = _moved(gram, phase.shifts, step * (n + 1))
        total[:, : gram.shape[1]] += gram
    inside = [slice(side) for side in out]
    grids = total.view(examples, k, *lengths, k, *lengths)
    return grids[:, :, *inside, :, *inside].reshape(examples, k * prod(out), -1)


@frozen
class _Phase:
    """Grid of the pixels that some taps see, along one axis.

    Attributes:
        pixels: Their positions in the image.
        first: Number of positions of the grid before them, in the padding.
        shifts: Position in the grid of each of the taps, for the first position of the kernel.
    """

    pixels: slice
    first: int
    shifts: list[int]


def _phases(
    taps: int, stride: int, dilation: int, around: int, out: int
) -> tuple[int, list[_Phase]]:
    """Return the length of a grid, and one grid for each phase.

    A phase is a remainder of the taps' offsets by the stride.
    """
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
    """Return the sum of `flat` (B, n), moved by each of `shifts`."""
    length = flat.shape[1] - max(shifts) * step
    parts = [flat[:, shift * step : shift * step + length] for shift in shifts]
    return sum(parts[1:], parts[0])
