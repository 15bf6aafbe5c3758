"""Networks of images with three axes."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import pytest
import torch
from torch import nn

from cohortium.plugin import DataSpec, Model, Multiclass
from cohortium_cnn import CNN
from cohortium_dpresnet import DPResNet
from cohortium_resnet9 import ResNet9
from cohortium_resnet18 import ResNet18
from cohortium_vgg16 import VGG16
from tests.support.per_example_gradients import agree

SPEC = DataSpec(channels=3, size=(28, 28), task=Multiclass(tuple("abcdefgh")), examples=100)

VOLUMES: list[Model] = [
    CNN(width=4),
    DPResNet(width=4),
    DPResNet(width=4, standardise=True),
    ResNet9(width=4),
    ResNet9(width=4, norm="group"),
    ResNet18(width=4),
    ResNet18(width=4, stem="large", norm="batch"),
    VGG16(width=2, pooled_size=2),
]


@pytest.mark.parametrize("model", VOLUMES, ids=str)
def test_volume_network_gives_logits(model: Model) -> None:
    spec = DataSpec(channels=1, size=(10, 12, 9), task=Multiclass(tuple("abcde")), examples=9)
    net = model.build(spec, 0)
    assert net(torch.zeros(2, 1, 10, 12, 9)).shape == (2, 5)
    flat = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
    assert not any(isinstance(layer, flat) for layer in net.modules())


APART = [model for model in VOLUMES if getattr(model, "norm", "group") == "group"]


@pytest.mark.parametrize("model", APART, ids=str)
def test_volume_network_clipped_sum_matches_definition(model: Model) -> None:
    spec = DataSpec(channels=1, size=(9, 17, 16), task=Multiclass(tuple("abcde")), examples=9)
    images = torch.rand(3, *spec.shape, generator=torch.Generator().manual_seed(0))
    agree(model.build(spec, 0).double(), model.preprocess(images).double())


SHAPES: dict[Any, str] = {
    CNN(width=4): "1c9f2dc4ef1e9a07",
    DPResNet(width=8): "56fcd21e000e17f1",
    ResNet9(width=4): "7a298debe925b576",
    ResNet18(width=4): "e7b15117c5390abd",
}
"""SHA-256 of the names and shapes of each network's weights for images of two axes."""


@pytest.mark.parametrize(("model", "digest"), SHAPES.items(), ids=str)
def test_flat_network_keeps_weights_and_draws(model: Model, digest: str) -> None:
    net = model.build(SPEC, 3)
    shapes = [(name, tuple(tensor.shape)) for name, tensor in net.state_dict().items()]
    assert hashlib.sha256(repr(shapes).encode()).hexdigest()[:16] == digest
    again = copy.deepcopy(net)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for layer in again.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.reset_parameters()
    assert all(map(torch.equal, net.parameters(), again.parameters()))
