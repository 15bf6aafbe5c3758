"""Soft joint histograms of colour and edges in rings around the centre.

The features of an image depend on that image and on constants, and on nothing else.
So they do not change the sensitivity of a training step, and they cost no privacy.

A group of features is the square root of a distribution.  So Euclidean distances between groups are
Hellinger distances, and every row of features has the same norm for any image.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn import functional

from cohortium.plugin import part_shares

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cohortium.plugin import Model
    from cohortium_descriptor import Descriptor

# The constants below were chosen at this size.  Larger images are averaged down towards it.
SIDE: Final = 28
MIN_SIDE: Final = 8
# Width of the rings' borders, in units of their radii.
SOFTNESS: Final = 1 / 14
PIXELS_AT_ONCE: Final = 50_000
# Pixels below which a part has less weight.  Colours of so few are chance.
LEAST: Final = 4.0
# Image gradients of half the brightness range per pixel and more share the last bin.
STEEPEST: Final = 0.5
# Slope of the curve that is applied to differences of channels.
CONTRAST: Final = 6.0
# Standard deviation of a standardised image.  Two and a half of them reach black and white.
DEVIATION: Final = 0.2


def features(images: Tensor, terms: Descriptor, parts: Model | None = None) -> list[Tensor]:
    """Describe each image by itself, in rings around its centre and in its parts.

    Args:
        images: Shape (N, C, H, W), values in [0, 1], any number of channels.
        terms: The constants.
        parts: The model that gives the shares of K parts in each pixel.  Its images are averaged
            down as those of the histograms are.

    Returns:
        Features in the rings, shape (N, D), D = `terms.described(C)`.  Every row has the norm
        `terms.norm`.  With `parts`, features in them follow, which have K in place of the number of
        rings.  Their rows have this norm, or less where a part is nearly absent.

    Raises:
        StudyError: The model of the parts gives another shape.
        ValueError: A side is shorter than `MIN_SIDE`.
    """
    if min(images.shape[2:]) < MIN_SIDE:
        raise ValueError(f"the descriptor needs images of at least {MIN_SIDE} pixels a side")
    if torch.compiler.is_compiling():
        # A traced program has no loop over an unknown number of images.  Its caller chooses that
        # number.
        return _describe(_coarse(images), terms, parts)
    step = max(1, PIXELS_AT_ONCE // images[0:1, 0].numel()) if len(images) else 1
    # Without images, one empty batch has the numbers of features.
    batches = [_describe(_coarse(some), terms, parts) for some in torch.split(images, step)]
    return [torch.cat(blocks) for blocks in zip(*batches, strict=True)]


def _standardized(images: Tensor) -> Tensor:
    """Return images of mean 1/2 and deviation `DEVIATION`, cut off at 0 and 1.

    All channels of an image share the scale, so that colours keep their hues.  An image of one
    value becomes grey.
    """
    axes = (1, 2, 3)
    centred = images - images.mean(axes, keepdim=True)
    deviation = centred.square().mean(axes, keepdim=True).sqrt().clamp(min=1e-3)
    return (centred * (DEVIATION / deviation) + 0.5).clamp(0, 1)


def _coarse(images: Tensor) -> Tensor:
    """Average large images down, so that gradients are comparable at every size."""
    factor = min(images.shape[2:]) // SIDE
    return functional.avg_pool2d(images, factor) if factor > 1 else images


def _describe(images: Tensor, terms: Descriptor, parts: Model | None) -> list[Tensor]:
    """Return blocks of features, each (n, D), of images of shape (n, C, H, W)."""
    regions = [_rings(images, terms)] + ([] if parts is None else [_parts(images, parts)])
    if terms.standardize:
        images = _standardized(images)
    colours = [_soft_bins(plane, terms.bins) for plane in _planes(images)]  # (n, P, bins)
    slope, outward = _gradients(images)
    steep, radial, bright = (
        _soft_bins(plane, terms.edge_bins) for plane in (slope, outward, images.mean(1).flatten(1))
    )
    pairs = [*combinations(colours, 2), (steep, radial), (steep, bright)]
    return [_histograms(pairs, some, terms) for some in regions]


def _histograms(
    pairs: Sequence[tuple[Tensor, Tensor]], regions: Tensor, terms: Descriptor
) -> Tensor:
    """Return square roots of the joint histograms of pairs of bins, in each region, (n, D).

    `regions` are the weights of the P pixels in R regions, (P, R) for all images or (n, P, R).
    """
    shares = [_joint(left, right, regions) for left, right in pairs]
    # Each histogram sums to 1.  So its square root has norm 1, and a row has the root of their
    # number.
    unit = math.sqrt(len(pairs) * regions.shape[-1])
    return torch.cat(shares, dim=1).sqrt_().mul_(terms.norm / unit)


def _planes(images: Tensor) -> list[Tensor]:
    """Return values, each (n, P), whose pairs are binned together.

    The values are in [0, 1].

    They are brightness and the differences between neighbouring channels.  The channels themselves
    rise and fall together, and leave most bins of their joint histograms empty.
    For a grey image they are the brightness of a pixel and of its surroundings.
    """
    brightness = images.mean(1, keepdim=True)  # (n, 1, H, W)
    if images.shape[1] == 1:
        reach = max(1, min(images.shape[2:]) // 14)
        around = functional.avg_pool2d(
            brightness, 2 * reach + 1, stride=1, padding=reach, count_include_pad=False
        )
        return [brightness.flatten(1), around.flatten(1)]
    # Small differences are the common ones.  The logistic curve gives them most of the bins.
    contrast = torch.sigmoid(CONTRAST * (images[:, 1:] - images[:, :-1]))  # (n, C - 1, H, W)
    return [brightness.flatten(1), *contrast.flatten(2).unbind(1)]


def _gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the brightness gradient's magnitude and outward component, each (n, P).

    The outward component points away from the centre.  Both are square roots in [0, 1], so that
    faint edges have bins of their own.  A radial component of zero is 0.5.
    """
    padded = functional.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")[:, 0]
    across = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / (2 * STEEPEST)
    down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / (2 * STEEPEST)
    x, y = _positions(images)
    outward = (across * x + down * y) / torch.hypot(x, y).clamp_(min=1e-6)
    signed = outward.sign() * outward.abs().clamp_(max=1).sqrt_()
    return torch.hypot(across, down).clamp_(max=1).sqrt_().flatten(1), (0.5 + signed / 2).flatten(1)


def _positions(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return coordinates of the pixels, (1, W) and (H, 1).

    They are 0 at the image's centre and 1 at its sides.
    """
    down, across = (
        (torch.arange(side, dtype=images.dtype, device=images.device) + 0.5) * (2 / side) - 1
        for side in images.shape[2:]
    )
    return across[None, :], down[:, None]


def _rings(images: Tensor, terms: Descriptor) -> Tensor:
    """Return weights of the P pixels in the R rings, shape (P, R).

    The weights of each ring add up to 1.
    """
    distance = torch.hypot(*_positions(images)).flatten()
    discs = [torch.sigmoid((radius - distance) / SOFTNESS) for radius in terms.radii]
    inner = [torch.zeros_like(distance), *discs[:-1]]
    weights = torch.stack(discs, dim=1) - torch.stack(inner, dim=1)
    return weights / weights.sum(0)


def _parts(images: Tensor, parts: Model) -> Tensor:
    """Return weights of the P pixels in the K parts of each image, shape (n, P, K).

    The weights of a part add up to 1, or to less where it has fewer than `LEAST` pixels.
    """
    shares = part_shares(parts, images, model="descriptor")
    pixels = shares.flatten(2).transpose(1, 2)  # (n, P, K)
    return pixels / pixels.sum(1, keepdim=True).clamp(min=LEAST)


def _soft_bins(plane: Tensor, bins: int) -> Tensor:
    """Return the shares of two neighbouring bins in each value.

    The shares come from hat functions.  Shapes are (n, P) to (n, P, bins).
    """
    middles = torch.arange(bins, dtype=plane.dtype, device=plane.device)
    place = plane.clamp(0, 1).mul_(bins - 1).unsqueeze(-1)
    return (place - middles).abs_().neg_().add_(1).clamp_(min=0)


def _joint(left: Tensor, right: Tensor, regions: Tensor) -> Tensor:
    """Return joint histograms in each region, shape (n, R * A * B).

    The bins are (n, P, A) and (n, P, B), the regions (P, R) or (n, P, R).
    """
    weighted = left.unsqueeze(2) * regions.unsqueeze(-1)  # (n, P, R, A)
    return torch.bmm(weighted.flatten(2).transpose(1, 2), right).flatten(1)
