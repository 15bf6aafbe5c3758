"""The network that is trained on public images, and its pooled features."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cohortium.plugin import StudyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cohortium.plugin import DataSpec

RADII = (0.4, 0.75, 1.1)
"""Outer radii of the rings that the last maps are averaged over. 1 touches the image's sides."""
SOFTNESS = 1 / 14
LEAST = 4 / 28**2
"""Share of an image below which a part has less weight.  The means over so little are chance."""
IMAGES_AT_ONCE = 256
TURNS = 4


class Network(nn.Module):
    """A small network that returns logits (N, classes) from images (N, C, H, W)."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        w = width
        self.maps = nn.Sequential(
            *_block(channels, w, 1), *_block(w, 2 * w, 2), *_block(2 * w, 2 * w, 1),
            *_block(2 * w, 4 * w, 2),
        )  # fmt: skip
        self.head = nn.Linear(4 * w, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.maps(images).mean((2, 3)))
        return logits

    def maps_by_stage(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps after each of the four convolutions."""
        x, found = images, []
        for layer in self.maps:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x)
        return tuple(found)


def _block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    groups = next(g for g in range(8, 0, -1) if outputs % g == 0)
    return [
        nn.Conv2d(inputs, outputs, 3, stride, 1),
        nn.GroupNorm(groups, outputs),
        nn.ReLU(),
    ]


class FeatureMapNetwork(Protocol):
    """A network whose logits are `head` of its pooled last maps."""

    head: nn.Linear

    def maps(self, images: Tensor) -> Tensor:
        """Return the last maps, (N, D, h, w), of prepared images."""
        ...


def require_feature_maps(net: nn.Module) -> FeatureMapNetwork:
    """Return `net`, if it has maps and a linear head.

    Raises:
        StudyError: It has not.
    """
    if callable(getattr(net, "maps", None)) and isinstance(getattr(net, "head", None), nn.Linear):
        return cast("FeatureMapNetwork", net)
    raise StudyError(
        "model 'pretrained': its network has no method 'maps' and no linear layer 'head'; use "
        "'dpresnet', 'resnet9' or 'resnet18', or leave network out."
    )


def require_pixel_outputs(net: nn.Module, spec: DataSpec) -> None:
    """Refuse a network whose outputs for an image of `spec` are not one for each class and pixel.

    Raises:
        StudyError: They have another shape.
    """
    with torch.no_grad():
        found = tuple(net(torch.zeros(1, *spec.shape)).shape[1:])
    if found != tuple(spec.output_shape):
        raise StudyError(
            f"model 'pretrained': its images have masks, which take outputs of shape "
            f"{tuple(spec.output_shape)}, and its network gives {found}; set network = 'unet'."
        )


def pixel_shares(net: nn.Module, images: Tensor) -> Tensor:
    """Return the shares of K classes in each pixel, shape (N, K, H, W).

    They are the means of the network's probabilities over four turns of the image.

    Args:
        net: The network, from images to logits of the same size.
        images: Prepared images, shape (N, C, H, W).
    """
    if torch.compiler.is_compiling():
        # A traced program has no loop over an unknown number of images.  Its caller chooses that
        # number.
        return _pixel_shares(net, images)
    with torch.no_grad():
        return torch.cat([_pixel_shares(net, some) for some in torch.split(images, IMAGES_AT_ONCE)])


def _pixel_shares(net: nn.Module, images: Tensor) -> Tensor:
    turns = TURNS if images.shape[2] == images.shape[3] else 1
    turned = [
        net(images.rot90(turn, (2, 3))).softmax(1).rot90(-turn, (2, 3)) for turn in range(turns)
    ]
    return torch.stack(turned).mean(0)


def pooled(
    net: FeatureMapNetwork,
    images: Tensor,
    shares: Tensor | None = None,
    *,
    stages: int = 1,
    has_squares: bool = False,
) -> Tensor:
    """Return square roots of the means of maps, (N, F).

    The means are over R rings and K parts, and over quarter turns.  F is R + K times the number of
    maps.

    Args:
        net: The network.
        images: Prepared images, shape (N, C, H, W).
        shares: Shares of K parts in each pixel, (N, K, H, W), or none for rings alone.
        stages: How many of the last stages' maps are averaged.
        has_squares: Whether the fourth roots of the means of squared maps follow, which doubles F.

    Raises:
        StudyError: The network has fewer stages.
    """
    if torch.compiler.is_compiling():
        # A traced program has no loop over an unknown number of images.  Its caller chooses that
        # number.
        return _pooled(net, images, shares, stages, has_squares)
    batches = torch.split(images, IMAGES_AT_ONCE)
    within = [None] * len(batches) if shares is None else torch.split(shares, IMAGES_AT_ONCE)
    # Without images, one empty batch has the number of features.
    with torch.no_grad():
        rows = [
            _pooled(net, batch, some, stages, has_squares)
            for batch, some in zip(batches, within, strict=True)
        ]
    return torch.cat(rows)


def _pooled(
    net: FeatureMapNetwork, images: Tensor, shares: Tensor | None, stages: int, has_squares: bool
) -> Tensor:
    totals: list[Tensor] = []
    turns = TURNS if images.shape[2] == images.shape[3] else 1
    for turn in range(turns):
        means = []
        for maps in _last_maps(net, images.rot90(turn, (2, 3)), stages):  # each (N, D, h, w)
            rings = _rings(maps)
            parts = None if shares is None else _parts(shares.rot90(turn, (2, 3)), maps)
            means.append(_means(maps, rings, parts))
            if has_squares:
                means.append(_means(maps.square(), rings, parts))
        totals = [a + b for a, b in zip(totals, means, strict=True)] if totals else means
    roots = [(total / turns).flatten(1).clamp(min=0).sqrt() for total in totals]
    if has_squares:
        roots[1::2] = [root.sqrt() for root in roots[1::2]]
    return torch.cat(roots, dim=1)


def _last_maps(net: FeatureMapNetwork, images: Tensor, stages: int) -> list[Tensor]:
    """Return the maps of the last stages, the last one's at the end.

    Earlier maps may be sums before a ReLU.  Their negative values count as zero.
    """
    if stages == 1:
        return [net.maps(images)]
    by_stage: Callable[[Tensor], tuple[Tensor, ...]] | None = getattr(net, "maps_by_stage", None)
    found = () if by_stage is None else by_stage(images)
    if len(found) < stages:
        raise StudyError(
            f"model 'pretrained' is to average the maps of {stages} stages, and its network names "
            f"{max(1, len(found))}; lower stages."
        )
    *earlier, last = found[-stages:]
    return [*(maps.relu() for maps in earlier), last]


def _means(maps: Tensor, rings: Tensor, parts: Tensor | None) -> Tensor:
    """Return the means of maps (n, D, h, w) over R rings and K parts, (n, R + K, D)."""
    means = torch.einsum("nchw,hwr->nrc", maps, rings)
    if parts is None:
        return means
    return torch.cat([means, torch.einsum("nchw,nkhw->nkc", maps, parts)], dim=1)


def _parts(shares: Tensor, maps: Tensor) -> Tensor:
    """Return the weights of the positions of maps (n, D, h, w) in the parts, (n, K, h, w).

    The weights of a part add up to 1, or to less where it has less than `LEAST` of the image.

    Args:
        shares: Shares of the parts in each pixel, (n, K, H, W).
        maps: The maps.
    """
    height, width = maps.shape[2:]
    coarse = functional.adaptive_avg_pool2d(shares, (height, width))
    return coarse / coarse.sum((2, 3), keepdim=True).clamp(min=LEAST * height * width)


def _rings(maps: Tensor) -> Tensor:
    """Return the weights of the positions of maps in the rings, (h, w, R).

    The maps are (N, D, h, w).  The weights of each ring add up to 1.
    """
    down, across = (
        (torch.arange(side, dtype=maps.dtype, device=maps.device) + 0.5) * (2 / side) - 1
        for side in maps.shape[2:]
    )
    distance = torch.hypot(across[None, :], down[:, None])
    discs = [torch.sigmoid((radius - distance) / SOFTNESS) for radius in RADII]
    rings = torch.stack([discs[0], *(b - a for a, b in pairwise(discs))], 2)
    return rings / rings.sum((0, 1))
