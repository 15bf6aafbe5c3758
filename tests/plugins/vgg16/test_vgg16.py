"""The layers of VGG-16, and its sizes of images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cohortium.plugin import DataSpec, Multiclass
from cohortium_vgg16 import VGG16
from cohortium_vgg16._network import Network


def test_vgg16_has_the_papers_parameters() -> None:
    with torch.device("meta"):
        net = Network(3, 1000, 64, 7, 0.5, rank=2)
    papers, biases = 138_357_544, 4_224
    norms = 2 * biases  # in place of the convolutions' biases
    assert sum(p.numel() for p in net.parameters()) == papers - biases + norms
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == 16


@pytest.mark.parametrize("side", [16, 28, 45, 64, 224])
def test_vgg16_takes_any_size(side: int) -> None:
    spec = DataSpec(channels=3, size=(side, side), task=Multiclass(tuple("abcde")), examples=30)
    net = VGG16(width=1).build(spec, 0)
    assert net(torch.zeros(1, 3, side, side)).shape == (1, 5)


@pytest.mark.parametrize("pooled_size", [1, 2])
def test_vgg16_takes_volumes(pooled_size: int) -> None:
    net = Network(1, 5, 2, pooled_size, 0.0, rank=3)
    assert net(torch.zeros(2, 1, 16, 20, 33)).shape == (2, 5)


def test_vgg16_drops_units_in_training_alone() -> None:
    spec = DataSpec(channels=1, size=(28, 28), task=Multiclass(tuple("abcde")), examples=30)
    net = VGG16(width=2, dropout=0.5).build(spec, 0)
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))
