"""Parts of an image, learned from made-up masks, and the histograms of `descriptor` in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from attrs import evolve, field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cohortium.learning.pretraining import augment
from cohortium.plugin import DataSpec, Model, Multiclass, StudyError
from cohortium_cnn import CNN
from cohortium_descriptor import Descriptor
from cohortium_descriptor._features import features
from cohortium_phantom import Phantom, PhantomFields
from cohortium_pretrained import Pretrained
from cohortium_pretrained._network import pooled
from cohortium_resnet18 import ResNet18
from cohortium_unet import UNet

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SPEC = DataSpec(channels=3, size=(28, 28), task=Multiclass(tuple("abcdefgh")), examples=100)
FIELDS = PhantomFields(labels="masks", examples=16, validation=0, test=0)
PARTS = Pretrained(images=FIELDS, network=UNet(width=4, depth=1), epochs=1)
CELLS = Phantom(examples=48, validation=0, test=0, seed=5)


@frozen
class FixedParts:
    """Gives every image the same shares, (K, H, W)."""

    shares: Tensor = field(eq=False)

    def preprocess(self, images: Tensor) -> Tensor:
        """Return the shares, (N, K, H, W)."""
        return self.shares.expand(len(images), *self.shares.shape)

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        """Refuse: these are parts alone."""
        raise NotImplementedError


def part_features(images: Tensor, terms: Descriptor, parts: Model) -> Tensor:
    return features(images, terms, parts)[1]


def _cells() -> Tensor:
    return torch.from_numpy(CELLS.load().train.images).float() / 255


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), height=st.integers(2, 6), width=st.integers(2, 6))
def test_augmentation_turns_masks_with_images(seed: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(2, (3, height, width), generator=generator)
    # Black and white remain apart under any stain that is drawn.
    images = masks[:, None].float().expand(-1, 3, -1, -1)
    altered, turned = augment(images, masks, generator)
    assert torch.equal(turned, (altered.mean(1) > 0.65).long())


def test_augmentation_leaves_labels_of_images() -> None:
    labels = torch.arange(4)
    _, same = augment(_cells()[:4], labels, torch.Generator().manual_seed(0))
    assert torch.equal(same, labels)


def test_pretraining_on_masks_finds_parts() -> None:
    model = evolve(PARTS, epochs=12)
    train = FIELDS.load().train
    shares = model.preprocess(torch.from_numpy(train.images).float() / 255)
    masks = torch.from_numpy(train.labels)
    commonest = float((masks == 0).float().mean())
    assert float((shares.argmax(1) == masks).float().mean()) > commonest + 0.05


def test_shares_turn_with_their_image() -> None:
    images = _cells()[:3]
    shares = PARTS.preprocess(images)
    assert shares.shape == (3, 3, 28, 28)
    assert torch.allclose(shares.sum(1), torch.ones(3, 28, 28), atol=1e-5)
    turned = PARTS.preprocess(images.rot90(1, (2, 3)))
    assert torch.allclose(turned, shares.rot90(1, (2, 3)), atol=1e-4)
    assert PARTS.preprocess(images[:0]).shape == (0, 3, 28, 28)
    assert PARTS.preprocess(images[:, :1]).shape == (3, 3, 28, 28)


def test_parts_are_kept_in_a_file(tmp_path: Path) -> None:
    model = evolve(PARTS, weights=str(tmp_path / "parts.safetensors"))
    first = model.preprocess(_cells()[:2])
    assert torch.equal(evolve(model).preprocess(_cells()[:2]), first)
    with pytest.raises(StudyError, match="trained otherwise"):
        evolve(model, seed=2).preprocess(_cells()[:2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": None}, "its own network gives labels, and its images have masks"),
        ({"network": CNN(width=4)}, r"take outputs of shape \(3, 56, 56\), and its network gives"),
        ({"network": ResNet18(width=2)}, "its network gives"),
        ({"whiten": 0.5, "components": 2}, "whiten and components would change features"),
        ({"trainable": "everything"}, "trainable would change features"),
    ],
)
def test_pretrained_refuses_unfit_terms_for_masks(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        evolve(PARTS, **changes).preprocess(_cells()[:1])


def test_parts_are_no_classifier() -> None:
    with pytest.raises(StudyError, match="gives the parts of an image and no answers"):
        PARTS.build(SPEC, 0)


def test_histograms_in_parts_sum_to_their_share() -> None:
    shares = torch.zeros(3, 28, 28)
    shares[0, :, :14] = 1  # half of the image
    shares[1, 0, 20:22] = 1  # two pixels, half of the fewest that count whole
    terms = Descriptor(bins=5, edge_bins=4)
    rows = part_features(_cells(), terms, FixedParts(shares))
    assert rows.shape == (48, 3 * (3 * 25 + 2 * 16))
    start, unit = 0, terms.norm**2 / (5 * 3)
    for bins in (25, 25, 25, 16, 16):
        held = rows[:, start : start + 3 * bins].square().reshape(-1, 3, bins).sum(2) / unit
        assert torch.allclose(held, torch.tensor([1, 0.5, 0]).expand(48, 3), atol=1e-4)
        start += 3 * bins


def test_histograms_in_a_part_ignore_the_rest() -> None:
    shares = torch.zeros(2, 28, 28)
    shares[0, :, :14], shares[1, :, 14:] = 1, 1
    images, terms = _cells(), Descriptor(bins=5, edge_bins=4)
    changed = images.clone()
    changed[..., 15:] = 0.3
    before, after = (part_features(i, terms, FixedParts(shares)) for i in (images, changed))
    left = [rows[:, :25] for rows in (before, after)]
    assert torch.equal(*left)
    right = [rows[:, 25:50] for rows in (before, after)]
    assert float((right[0] - right[1]).norm(dim=1).min()) > 1


def test_parts_see_images_as_the_histograms_do() -> None:
    seen: list[tuple[int, ...]] = []

    @frozen
    class Halves(FixedParts):
        def preprocess(self, images: Tensor) -> Tensor:
            seen.append(tuple(images.shape))
            return super().preprocess(images)

    large = _cells()[:2].repeat_interleave(3, 2).repeat_interleave(3, 3)
    terms, parts = Descriptor(), Halves(torch.ones(1, 28, 28))
    rows = part_features(large, terms, parts)
    assert seen == [(2, 3, 28, 28)]
    assert torch.allclose(rows, part_features(_cells()[:2], terms, parts), atol=1e-2)


def test_parts_of_another_size_are_refused() -> None:
    with pytest.raises(StudyError, match=r"parts must give the shares .* gave \(2, 1, 14, 14\)"):
        part_features(_cells()[:2], Descriptor(), FixedParts(torch.ones(1, 14, 14)))
    with pytest.raises(StudyError, match="use 'pretrained' on images with masks"):
        part_features(_cells()[:2], Descriptor(), Pretrained(images=CELLS, width=4, epochs=1))


def test_descriptor_joins_parts_and_extra_features() -> None:
    extra: Model = Pretrained(images=CELLS, width=4, epochs=1)
    model = Descriptor(
        center_on=CELLS, parts=PARTS, extra_features=extra, whiten=0.5, components=20
    )
    rows = model.preprocess(_cells())
    assert rows.shape == (48, 20)
    assert torch.allclose(rows.norm(dim=1), torch.full((48,), 70.0), rtol=1e-4)
    blocks = model._blocks(_cells())
    assert torch.equal(blocks[0], features(_cells(), model)[0])
    assert [block.shape[1] for block in blocks] == [model.described(3), 3 * (3 * 196 + 2 * 64), 48]
    without = evolve(model, parts=None).preprocess(_cells())
    assert float((rows - without).norm(dim=1).max()) > 1
    with pytest.raises(ValueError, match="parts needs components"):
        Descriptor(parts=PARTS)


class ItsOwnMaps(nn.Module):
    """A network whose maps are its images."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 8)

    def maps(self, images: Tensor) -> Tensor:
        return images


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 3))
def test_maps_are_averaged_in_the_parts_of_their_own_image(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 2, 12, 12, generator=generator)
    shares = torch.rand(count, 3, 12, 12, generator=generator)
    rows = pooled(ItsOwnMaps(), images, shares)
    weights = shares / shares.sum((2, 3), keepdim=True)
    expected = torch.einsum("nchw,nkhw->nkc", images, weights).sqrt()
    assert torch.equal(rows[:, :6], pooled(ItsOwnMaps(), images))
    torch.testing.assert_close(rows[:, 6:], expected.flatten(1))


def test_a_part_that_is_nearly_absent_counts_less() -> None:
    images, shares = torch.ones(1, 2, 28, 28), torch.zeros(1, 2, 28, 28)
    shares[:, 0, 5, 5] = 1
    shares[:, 1, :2, :3] = 1
    rows = pooled(ItsOwnMaps(), images, shares)[:, 6:]
    torch.testing.assert_close(rows, torch.tensor([[0.5, 0.5, 1.0, 1.0]]))


def test_pretrained_features_in_parts() -> None:
    model = Pretrained(images=CELLS, width=4, epochs=1, parts=PARTS)
    rows = model.preprocess(_cells())
    assert rows.shape == (48, (3 + 3) * 16)
    assert torch.allclose(rows.norm(dim=1), torch.full((48,), 70.0), rtol=1e-4)
    assert model.build(SPEC, 0)(rows).shape == (48, 8)
    assert model.preprocess(_cells()[:0]).shape == (0, (3 + 3) * 16)
    with pytest.raises(StudyError, match="model 'pretrained': parts must give the shares"):
        evolve(model, parts=FixedParts(torch.ones(1, 14, 14))).preprocess(_cells())
    with pytest.raises(ValueError, match="stages, squares, parts and components are for features"):
        evolve(model, trainable="norms")
    with pytest.raises(StudyError, match="parts would change features, and images with masks"):
        evolve(PARTS, parts=PARTS).preprocess(_cells())
