from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attrs import frozen
from torch import Tensor, nn

from cohortium.plugin import DataSpec, StudyError
from cohortium.testing import ConformanceError, models
from cohortium_cnn import CNN
from cohortium_unet import UNet

SMALL = CNN(width=4)


@frozen
class Changed:
    """A good model with one thing done otherwise."""

    view: Callable[[Tensor], Tensor] = SMALL.preprocess
    maker: Callable[[DataSpec, int], nn.Module] = SMALL.build

    def preprocess(self, images: Tensor) -> Tensor:
        return self.view(images)

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        return self.maker(spec, seed)


def unseeded(spec: DataSpec, seed: int) -> nn.Module:
    del seed
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(1), nn.Linear(1, len(spec.classes)))[2:]


def seeds_globally(spec: DataSpec, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(3, len(spec.classes))


def one_class_more(spec: DataSpec, seed: int) -> nn.Module:
    return nn.Sequential(SMALL.build(spec, seed), nn.Linear(len(spec.classes), 5))


def nothing_to_learn(spec: DataSpec, seed: int) -> nn.Module:
    return SMALL.build(spec, seed).requires_grad_(requires_grad=False)


def takes_nothing(spec: DataSpec, seed: int) -> nn.Module:
    raise StudyError("not these.")


class Centred(nn.Module):
    """Takes the batch's mean from its logits, unseen by any list of layers."""

    def __init__(self, net: nn.Module, *, always: bool) -> None:
        super().__init__()
        self.net, self.always = net, always

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits - logits.mean(0) if self.always or self.training else logits


class Remembering(nn.Module):
    """Logits that lean on those of earlier images."""

    mean: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        if self.training:
            self.mean = self.mean.lerp(logits.detach().mean(), 0.1)
        shifted: Tensor = logits + self.mean
        return shifted


def batch_norm(spec: DataSpec, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(spec.channels, 4, 3, 2),
            nn.BatchNorm2d(4),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(4, len(spec.classes)),
        )


def dropout(spec: DataSpec, seed: int) -> nn.Module:
    return nn.Sequential(nn.Dropout(), SMALL.build(spec, seed))


def constant(spec: DataSpec, seed: int) -> nn.Module:
    del seed
    return SMALL.build(spec, 0)


def only_grey(spec: DataSpec, seed: int) -> nn.Module:
    if spec.channels != 3:
        raise StudyError("three channels only.")
    return SMALL.build(spec, seed)


def halved(spec: DataSpec, seed: int) -> nn.Module:
    """Outputs for each pixel, of sides that are rounded down to even ones."""
    if spec.output_shape[1:] != spec.size:
        raise StudyError("outputs for each pixel only.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if len(spec.size) == 3:
            down: nn.Module = nn.Conv3d(spec.channels, 4, 2, 2)
            return nn.Sequential(down, nn.ConvTranspose3d(4, spec.output_shape[0], 2, 2))
        down = nn.Conv2d(spec.channels, 4, 2, 2)
        return nn.Sequential(down, nn.ConvTranspose2d(4, spec.output_shape[0], 2, 2))


BAD = [
    (
        models.check_prepare_is_per_image,
        Changed(view=lambda x: x / x.mean()),
        "not per image.*the other images of its batch were replaced",
    ),
    (
        models.check_prepare_is_per_image,
        Changed(view=lambda x: x + torch.arange(len(x)).view(-1, 1, 1, 1)),
        "when it came last instead of first",
    ),
    (models.check_prepare_is_repeatable, Changed(view=lambda x: x.sub_(0.5)), "do not work in pl"),
    (
        models.check_prepare_is_repeatable,
        Changed(view=lambda x: x + torch.rand(1)),
        "drew random numbers",
    ),
    (
        models.check_prepare_is_finite,
        Changed(view=lambda x: (x - x.mean((1, 2, 3), True)) / x.std((1, 2, 3), keepdim=True)),  # noqa: FBT003
        "NaN or infinity for a black",
    ),
    (models.check_prepare_is_finite, Changed(view=lambda x: x.double()), "float64 from 4 images"),
    (models.check_build_is_repeatable, Changed(maker=unseeded), "two networks for one seed"),
    (
        models.check_build_leaves_the_generator,
        Changed(maker=seeds_globally),
        "moved torch's global",
    ),
    (models.check_logits, Changed(maker=one_class_more), r"must give logits of shape \(4, 4\)"),
    (
        models.check_logits,
        Changed(maker=halved),
        r"gave \(4, 4, 16, 16, 16\) values.* of shape \(4, 4, 17, 17, 17\)",
    ),
    (models.check_logits, Changed(maker=nothing_to_learn), "no trainable parameter"),
    (models.check_logits, Changed(maker=takes_nothing), "images of no shape.*not these"),
    (
        models.check_scores_one_image_at_a_time,
        Changed(maker=lambda s, n: Centred(SMALL.build(s, n), always=True)),
        "in evaluation mode",
    ),
    (
        models.check_mixing_is_visible,
        Changed(maker=lambda s, n: Centred(SMALL.build(s, n), always=False)),
        "in code that example-level privacy cannot see",
    ),
    (
        models.check_per_example_gradients,
        Changed(maker=lambda s, n: Remembering(SMALL.build(s, n))),
        "per-example gradients cannot be taken",
    ),
]


@pytest.mark.parametrize(("check", "bad", "words"), BAD)
def test_a_bad_model_fails(check: Any, bad: Any, words: str) -> None:
    with torch.random.fork_rng(devices=[]), pytest.raises(ConformanceError, match=words):
        check(bad)


@pytest.mark.parametrize(
    "model", [SMALL, Changed(maker=dropout), UNet(width=4, depth=2)], ids=["cnn", "dropout", "unet"]
)
@pytest.mark.parametrize("check", models.CHECKS)
def test_valid_plugin_passes_check(check: Any, model: Any) -> None:
    assert check(model) is None


def test_permitted_model_limitations_are_noted() -> None:
    known = Changed(maker=batch_norm)
    models.check_scores_one_image_at_a_time(known)
    assert models.check_mixing_is_visible(known) == (
        "mixes examples in 1 (BatchNorm2d): no example-level privacy"
    )
    assert models.check_per_example_gradients(known) == "not tried: the network mixes examples"
    same = models.check_build_is_repeatable(Changed(maker=constant))
    assert same == "every seed gives the same weights"
    refused = models.check_logits(Changed(maker=only_grey))
    assert refused == "does not take images of 1×28×28, 2×64×64, 1×20×24×18, 2×17×17×17"


def test_every_check_has_bad_implementation() -> None:
    assert {check for check, _, _ in BAD} == set(models.CHECKS)
