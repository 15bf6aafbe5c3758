"""The U-Net's shapes, layers and clipped gradients under a loss of segmentation."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from cohortium.clipping.clipped_sum import clipped_sum
from cohortium.plugin import DataSpec, StudyError
from cohortium_unet import UNet
from cohortium_unet._network import Network
from tests.support.per_example_gradients import EXACT, gradient, one_by_one


@settings(max_examples=25, deadline=None)
@given(
    size=st.lists(st.integers(5, 13), min_size=2, max_size=3), depth=st.integers(1, 2),
    width=st.integers(1, 5),
)  # fmt: skip
def test_unet_keeps_any_size(size: list[int], depth: int, width: int) -> None:
    net = Network(2, 3, width, depth, rank=len(size))
    assert net(torch.zeros(1, 2, *size)).shape == (1, 3, *size)


def test_unet_matches_paper_layers() -> None:
    net = UNet(width=64, depth=4)
    spec = DataSpec(channels=1, height=572, width=572, classes=("a", "b"), examples=30)
    with torch.device("meta"):
        layers = [*net.build(spec, 0).modules()]
    convolutions = [m for m in layers if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in convolutions] == [
        (1, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512),
        (512, 1024), (1024, 1024), (1024, 512), (512, 512), (512, 256), (256, 256), (256, 128),
        (128, 128), (128, 64), (64, 64), (64, 2),
    ]  # fmt: skip
    transposed = [m for m in layers if isinstance(m, nn.ConvTranspose2d)]
    assert [(m.in_channels, m.out_channels) for m in transposed] == [
        (1024, 512), (512, 256), (256, 128), (128, 64),
    ]  # fmt: skip
    assert sum(isinstance(m, nn.GroupNorm) for m in layers) == len(convolutions) - 1


def test_unet_sees_whole_image_and_keeps_detail() -> None:
    net = UNet(width=4, depth=2).build(
        DataSpec(channels=1, height=16, width=16, classes=("a", "b"), examples=30), 0
    )
    image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    image.requires_grad_()
    (slope,) = torch.autograd.grad(net(image)[0, 0, 8, 8], image)
    assert (slope != 0).float().mean() > 0.9
    assert float(slope[0, 0, 8, 8].abs()) > float(slope.abs().median())


@pytest.mark.parametrize(("side", "depth"), [(8, 3), (7, 3), (3, 2)])
def test_unet_refuses_small_images(side: int, depth: int) -> None:
    spec = DataSpec(channels=1, height=28, width=side, classes=("a", "b"), examples=30)
    with pytest.raises(StudyError, match=rf"more than {1 << depth} pixels .* lower depth\.$"):
        UNet(depth=depth).build(spec, 0)


def segmentation_losses(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of an image's pixels, and one soft Dice loss of the image."""
    entropy = functional.cross_entropy(logits, masks, reduction="none").flatten(1).mean(1)
    found = logits.softmax(1).flatten(2)
    wanted = functional.one_hot(masks.flatten(1), logits.shape[1]).transpose(1, 2)
    dice = (2 * (found * wanted).sum(2) + 1) / (found.sum(2) + wanted.sum(2) + 1)
    return torch.add(entropy, 1 - dice.mean(1))


@pytest.mark.parametrize("size", [(9, 12), (7, 6, 9)], ids=str)
@pytest.mark.parametrize("clip", [1e-2, 1e6])
def test_unet_clipped_sum_matches_definition(size: tuple[int, ...], clip: float) -> None:
    torch.manual_seed(0)
    net = Network(1, 3, 4, 2, rank=len(size)).double()
    images = torch.randn(4, 1, *size, dtype=torch.float64)
    masks = torch.randint(0, 3, (4, *size))

    def losses(batch: NDArray[np.int64]) -> torch.Tensor:
        index = torch.from_numpy(batch)
        return segmentation_losses(net(images[index]), masks[index])

    expected = one_by_one(net, losses, 4, clip)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # because no layer takes examples one by one
        clipped_sum(net, losses, np.arange(4), clip=clip)
    assert float((gradient(net) - expected).norm()) <= EXACT * float(expected.norm())
