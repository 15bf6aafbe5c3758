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

from cohortium.clipping.clipped_sum import clipped_sum
from cohortium.plugin import DataSpec, Multiclass, StudyError
from cohortium_segmentation import Segmentation
from cohortium_unet import UNet
from cohortium_unet._network import Network
from tests.support.per_example_gradients import EXACT, gradient, one_by_one

TASK = Segmentation(("background", "organ"))


def spec_of(*size: int) -> DataSpec:
    return DataSpec(channels=1, size=size, task=TASK, examples=30)


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
    spec = spec_of(572, 572)
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
    net = UNet(width=4, depth=2).build(spec_of(16, 16), 0)
    image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    image.requires_grad_()
    (slope,) = torch.autograd.grad(net(image)[0, 0, 8, 8], image)
    assert (slope != 0).float().mean() > 0.9
    assert float(slope[0, 0, 8, 8].abs()) > float(slope.abs().median())


@pytest.mark.parametrize(("side", "depth"), [(8, 3), (7, 3), (3, 2)])
def test_unet_refuses_small_images(side: int, depth: int) -> None:
    with pytest.raises(StudyError, match=rf"more than {1 << depth} pixels .* lower depth\.$"):
        UNet(depth=depth).build(spec_of(28, side), 0)


def test_unet_refuses_one_class_for_each_image() -> None:
    spec = DataSpec(channels=1, size=(28, 28), task=Multiclass(("a", "b")), examples=30)
    with pytest.raises(StudyError, match=r"outputs of shape \(2,\); use the task 'segmentation'"):
        UNet().build(spec, 0)


@pytest.mark.parametrize("size", [(9, 12), (7, 6, 9)], ids=str)
@pytest.mark.parametrize("clip", [1e-2, 1e6])
def test_unet_clipped_sum_matches_definition(size: tuple[int, ...], clip: float) -> None:
    torch.manual_seed(0)
    net = UNet(width=4, depth=2).build(spec_of(*size), 0).double()
    images = torch.randn(4, 1, *size, dtype=torch.float64)
    masks = torch.randint(0, 2, (4, *size), dtype=torch.uint8)

    def losses(batch: NDArray[np.int64]) -> torch.Tensor:
        index = torch.from_numpy(batch)
        return TASK.losses(net(images[index]), masks[index])

    expected = one_by_one(net, losses, 4, clip)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # because no layer takes examples one by one
        clipped_sum(net, losses, np.arange(4), clip=clip)
    assert float((gradient(net) - expected).norm()) <= EXACT * float(expected.norm())
