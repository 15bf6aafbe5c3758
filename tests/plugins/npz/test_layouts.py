"""Files as people have them: each is read in the one way that it can be, or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from cohortium import Federation, discover
from cohortium.data.intensity import to_unit_range
from cohortium.data.npz import read_images
from cohortium.data.pixels import to_channels_first
from cohortium.errors import DataError, StudyError
from cohortium_npz import Npz

if TYPE_CHECKING:
    from pathlib import Path

    from cohortium.plugin import Splits

TRAIN, TEST = 12, 6


def images(number: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(number).integers(0, 256, (number, *shape)).astype(np.uint8)


def labels(number: int, *values: int) -> np.ndarray[Any, Any]:
    return np.array(values or (0, 1, 2))[np.arange(number) % len(values or (0, 1, 2))]


def file(folder: Path, **changed: Any) -> str:
    held = {
        "train_images": images(TRAIN, 20, 18), "train_labels": labels(TRAIN),
        "test_images": images(TEST, 20, 18), "test_labels": labels(TEST),
    }  # fmt: skip
    np.savez(folder / "own.npz", **(held | changed))
    return str(folder / "own.npz")


def shaped(folder: Path, *shape: int, **options: Any) -> Splits:
    changed = {"train_images": images(TRAIN, *shape), "test_images": images(TEST, *shape)}
    return Npz(path=file(folder, **changed), **options).load()


@pytest.mark.parametrize("shape", [(20, 18), (20, 18, 1), (20, 18, 3), (16, 16, 3), (4, 4, 1)])
def test_unambiguous_layout_is_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    read = shaped(tmp_path, *shape).train.images
    assert read.shape == (TRAIN, *(shape[2:] or (1,)), *shape[:2])
    np.testing.assert_array_equal(
        np.moveaxis(read, 1, -1).reshape(TRAIN, *shape), images(TRAIN, *shape)
    )


@pytest.mark.parametrize(
    ("shape", "ways"),
    [
        ((3, 16, 16), ["16 × 16 with 3 channels (channels first)", "3 × 16 with 16 channels"]),
        ((16, 16, 16), ["with 16 channels (channels last)", "with 16 channels (channels first)"]),
        ((1, 8, 8), ["1 × 8 with 8 channels", "8 × 8 with 1 channel (channels first)"]),
        ((3, 28, 28), ["28 × 28 with 3 channels (channels first)", "volumes of 3 × 28 × 28"]),
        ((28, 28, 8), ["28 × 28 with 8 channels (channels last)", "volumes of 28 × 28 × 8"]),
        ((28, 28, 4), ["with 4 channels (channels last)", "colour with transparency"]),
        ((28, 28, 2), ["with 2 channels (channels last)", "grey with transparency"]),
        ((3, 9, 3), ["3 × 9 with 3 channels (channels last)", "9 × 3 with 3 channels"]),
        ((28, 28, 28), ["grey volumes of 28 × 28 × 28", 'layout = "volumes"']),
        ((3, 9, 9, 3), ["volumes of 3 × 9 × 9 with 3 channels", "9 × 9 × 3 with 3 channels"]),
        ((8, 28, 28, 28), ["volumes of 28 × 28 × 28 with 8 channels (channels first)"]),
    ],
)
def test_ambiguous_layout_error_names_all_readings(
    tmp_path: Path, shape: tuple[int, ...], ways: list[str]
) -> None:
    with pytest.raises(DataError, match=r"own\.npz: train_images has shape") as caught:
        shaped(tmp_path, *shape)
    assert not [way for way in ways if way not in str(caught.value)]
    assert str(caught.value).count("\n") == 0


def test_volumes_are_read_as_declared(tmp_path: Path) -> None:
    for shape, options in (((12, 20, 18), {"layout": "volumes"}), ((12, 20, 18, 1), {})):
        read = shaped(tmp_path, *shape, **options)
        assert read.spec.shape == (1, 12, 20, 18)
        np.testing.assert_array_equal(read.train.images[:, 0], images(TRAIN, *shape[:3]))
    read = shaped(tmp_path, 3, 12, 20, 18, layout="channels-first")
    assert read.spec.shape == (3, 12, 20, 18)
    with pytest.raises(DataError, match='layout = "volumes" cannot read: it has an axis'):
        shaped(tmp_path, 12, 20, 18, 1, layout="volumes")
    with pytest.raises(DataError, match='layout = "volumes" cannot read: a volume has three axes'):
        shaped(tmp_path, 12, 20, layout="volumes")


@pytest.mark.parametrize("pixel_type", ["uint16", "int16", "float32"])
def test_deep_images_need_a_declared_range(tmp_path: Path, pixel_type: str) -> None:
    deep = {
        f"{split}_images": (images(count, 20, 18).astype(np.int64) * 40).astype(pixel_type)
        for split, count in (("train", TRAIN), ("test", TEST))
    }
    path = file(tmp_path, **deep)
    with pytest.raises(DataError, match=f"'intensity_range' must be declared for {pixel_type}"):
        Npz(path=path).load()
    splits = Npz(path=path, intensity_range=(0, 4000)).load()
    assert splits.train.images.dtype == pixel_type
    scaled = to_unit_range(splits.train.images, splits.spec).numpy()
    expected = (splits.train.images.astype(np.float64) / 4000).clip(0, 1)
    np.testing.assert_allclose(scaled, expected, atol=1e-6)
    with pytest.raises(ValueError, match="the lower one first"):
        evolve(splits.spec, intensity_range=(10.0, 10.0))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12))
def test_declared_layout_determines_axis_order(first: int, second: int, last: int) -> None:
    array = images(2, first, second, last)
    np.testing.assert_array_equal(to_channels_first(array, "it", layout="channels-first"), array)
    np.testing.assert_array_equal(
        to_channels_first(array, "it", layout="channels-last"), array.transpose(0, 3, 1, 2)
    )


def test_layout_parameter_selects_channel_axis(tmp_path: Path) -> None:
    assert shaped(tmp_path, 3, 16, 16, layout="channels-first").train.images.shape[1:] == (
        3,
        16,
        16,
    )
    assert shaped(tmp_path, 16, 16, 16, layout="channels-last").train.images.shape[1] == 16
    assert shaped(tmp_path, 28, 28, 4, layout="channels-last").train.images.shape[1] == 4
    with pytest.raises(DataError, match=r'layout = "channels-first" reads as 28 channels'):
        shaped(tmp_path, 28, 28, 3, layout="channels-first")
    with pytest.raises(StudyError, match=r"layout is 'nchw'; let it be one of auto, channels-last"):
        Npz(path="own.npz", layout="nchw")  # type: ignore[arg-type]
    assert discover().find("dataset", "npz").factory is Npz


def test_images_to_classify_match_model_format(tmp_path: Path) -> None:
    np.savez(tmp_path / "first.npz", images=images(4, 3, 16, 12))
    taken = read_images(tmp_path / "first.npz", split="test", shape=(3, 16, 12))
    np.testing.assert_array_equal(taken, images(4, 3, 16, 12))
    taken = read_images(tmp_path / "first.npz", split="test", shape=(12, 3, 16))
    np.testing.assert_array_equal(taken, images(4, 3, 16, 12).transpose(0, 3, 1, 2))
    np.savez(tmp_path / "cube.npz", images=images(4, 3, 3, 3))
    with pytest.raises(DataError, match=r"can be read as .* the model takes 3 channels of 3 × 3"):
        read_images(tmp_path / "cube.npz", split="test", shape=(3, 3, 3))


ONE_HOT = np.eye(3, dtype=np.uint8)[labels(TRAIN)]
SEVERAL = (np.arange(TRAIN * 4).reshape(TRAIN, 4) % 3 > 0).astype(np.uint8)
NAN = np.where(np.arange(TRAIN) == 3, np.nan, labels(TRAIN))
UNGRADED = np.where(np.arange(TRAIN) == 3, 255, labels(TRAIN)).astype(np.uint8)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (UNGRADED, r"its labels are 0, 1, 2, 255; 255 lies apart, as a code for 'ungraded'"),
        (np.where(UNGRADED == 255, -1, labels(TRAIN)), "a negative one"),
        (labels(TRAIN, 0, 5, 10), "number the classes from 0 without gaps"),
        (ONE_HOT, r"of which one is 1 \(one-hot\); save labels\.argmax\(1\)"),
        (ONE_HOT.astype(float), r"\(one-hot\); save labels\.argmax\(1\)"),
        (SEVERAL, r"several findings may hold at once there; set task = \"multilabel\""),
        (ONE_HOT * 0.8 + 0.2 / 3, "add up to 1, as probabilities do"),
        (labels(TRAIN)[None], r"has shape \(1, 12\), but there are 12 images; .*reshape\(-1\)"),
        (labels(TRAIN).astype(float), r"astype\('int64'\) loses nothing"),
        (labels(TRAIN) * 0.37, "these are measurements"),
        (NAN, "nan is no class, so leave out"),
        (labels(TRAIN) > 0, r"is bool; .*astype\('uint8'\) gives 0 and 1"),
        (np.array(["a", "b"])[np.arange(TRAIN) % 2], "names of classes go into an array 'classes'"),
    ],
)  # fmt: skip
def test_invalid_class_labels_are_refused(
    tmp_path: Path, train: np.ndarray[Any, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        Npz(path=file(tmp_path, train_labels=train)).load()
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((1, 2, 3), "its labels are 1, 2, 3; they begin at 1, .* subtract 1"),
        ((0,), "all its labels are 0, and of one class alone every answer is right"),
        ((7,), "all its labels are 7"),
        ((0, 1, 9), "its labels are 0, 1, 9; 9 lies apart"),
        ((0, 5, 10), r"its labels are 0, 5, 10; number the classes from 0 without gaps"),
    ],
)
def test_single_or_noncontiguous_labels_are_refused(
    tmp_path: Path, numbers: tuple[int, ...], words: str
) -> None:
    own = {"train_labels": labels(TRAIN, *numbers), "test_labels": labels(TEST, *numbers)}
    with pytest.raises(DataError, match=words):
        Npz(path=file(tmp_path, **own)).load()


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((1, 2, 3), r"must lie in 0…2, found 1…3; they begin at 1, so subtract 1"),
        ((0, 1, 99), r"must lie in 0…2, found 0…99; 99 lies apart"),
        ((0, 1, 2, 3, 4), r"must lie in 0…2, found 0…4; give as many names"),
    ],
)
def test_labels_beyond_class_names_give_specific_errors(
    tmp_path: Path, numbers: tuple[int, ...], words: str
) -> None:
    named = Npz(path=file(tmp_path, train_labels=labels(TRAIN, *numbers)), classes=("a", "b", "c"))
    with pytest.raises(DataError, match=words):
        named.load()


def study(path: str, *classes: str) -> Federation:
    return Federation(
        dataset=Npz(path=path, classes=classes), model="cnn", trainer="fedavg",
        privatizer="none", aggregator="plain", sites=2, rounds=1,
    )  # fmt: skip


def test_site_may_lack_named_class(tmp_path: Path) -> None:
    path = file(tmp_path, train_labels=labels(TRAIN, 0))
    assert Npz(path=path, classes=("a", "b", "c")).load().classes == ("a", "b", "c")
    with pytest.raises(DataError, match="all training images are of class 'a', and of one class"):
        study(path, "a", "b", "c").prepare()
    path = file(tmp_path, train_labels=labels(TRAIN, 0, 2))
    with pytest.raises(DataError, match="test images are of class 'b', of which there is no train"):
        study(path, "a", "b", "c").prepare()
    path = file(tmp_path, test_labels=labels(TEST, 0, 2))
    assert study(path, "a", "b", "c").prepare().parameters


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((TRAIN, 20, 18), bool), "multiply by 255"),
        (np.full((TRAIN, 20, 18), 0.5), r"save it as float32: astype\('float32'\)"),
        (np.full((TRAIN, 20, 18), 4000), "save it as uint16, which holds its values, from 4000 to"),
        (np.full((TRAIN, 20, 18), -1000), "save it as int16"),
        (np.full((TRAIN, 20, 18), 70000), "as float32; a cast to fewer bits would wrap them"),
        (np.full((TRAIN, 20, 18), np.nan, np.float32), "NaN or infinite values"),
    ],
)
def test_unsupported_pixel_type_error_names_conversion(
    tmp_path: Path, values: np.ndarray[Any, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        Npz(path=file(tmp_path, train_images=values)).load()


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ((0, 2), (0, 2), "no training image is of class 1; number the classes from 0"),
        ((0, 1), (0, 1, 2), "no training image is of class 2"),
        ((0, 1, 3), (0, 1), "no training image is of class 2"),
    ],
)
def test_class_without_training_image_is_refused(
    tmp_path: Path, train: tuple[int, ...], test: tuple[int, ...], words: str
) -> None:
    own = {"train_labels": labels(TRAIN, *train), "test_labels": labels(TEST, *test)}
    with pytest.raises(DataError, match=words):
        study(file(tmp_path, **own)).prepare()
