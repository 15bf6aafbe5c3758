"""Many image files as one array: in order, once in memory, and compared with one another."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cohortium.data import image_array
from cohortium.data.image_array import read_image_array
from cohortium.data.image_file import ImageFileOptions
from cohortium.errors import DataError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 4), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 4, 3), dtype=np.uint8)


def many(folder: Path, count: int) -> tuple[list[Path], np.ndarray]:
    images = np.random.default_rng(1).integers(0, 256, (count, 5, 4), dtype=np.uint8)
    files = [folder / f"{number}.png" for number in range(count)]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file)
    return files, images[:, None]


def test_files_become_one_array_in_order(tmp_path: Path) -> None:
    files, images = many(tmp_path, 300)
    found = read_image_array(files, ImageFileOptions())
    np.testing.assert_array_equal(found, images)
    assert found.flags.c_contiguous


@pytest.mark.parametrize(
    ("other", "remedies"),
    [
        (GREY, {"declare size = [height, width]"}),
        (GREY[:5].astype(np.uint16), {"such as 8 bits"}),
        (COLOUR[:5], {"all in grey, or all in colour"}),
        (GREY.astype(np.uint16), {"declare size = [height, width]", "such as 8 bits"}),
    ],
)
def test_files_of_different_form_are_both_named(
    tmp_path: Path, other: np.ndarray, remedies: set[str]
) -> None:
    files, _ = many(tmp_path, 20)
    Image.fromarray(other).save(files[7])
    Image.fromarray(GREY).save(files[12])
    with pytest.raises(DataError, match=r"7\.png has .* and .*0\.png has 1 channel of 5 × 4") as e:
        read_image_array(files, ImageFileOptions())
    known = {"declare size = [height, width]", "such as 8 bits", "all in grey, or all in colour"}
    assert {remedy for remedy in known if remedy in str(e.value)} == remedies
    with pytest.raises(DataError, match=r"^line 9: .*7\.png has"):
        read_image_array(files, ImageFileOptions(), where=lambda index: f"line {index + 2}")


def test_first_damaged_file_is_named_with_its_place(tmp_path: Path) -> None:
    files, _ = many(tmp_path, 20)
    for number in (5, 3, 17):
        files[number].write_bytes(b"?")
    with pytest.raises(DataError, match=r"^line 4: .*3\.png is no PNG"):
        read_image_array(files, ImageFileOptions(), where=lambda index: f"line {index + 1}")
    with pytest.raises(DataError, match=re.escape(f"{files[3]} is no PNG")):
        read_image_array(files, ImageFileOptions())


def test_array_beyond_memory_is_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, _ = many(tmp_path, 3)
    files[1].unlink()
    monkeypatch.setattr(image_array, "available", lambda: 100)
    with pytest.raises(DataError, match=r"3 images like .*0\.png take .* declare a smaller size"):
        read_image_array(files, ImageFileOptions())


def test_images_exist_once_in_memory(tmp_path: Path) -> None:
    image = np.zeros((512, 512), np.uint8)
    files = [tmp_path / f"{number}.png" for number in range(40)]
    for file in files:
        Image.fromarray(image).save(file)
    read_image_array(files[:2], ImageFileOptions())
    tracemalloc.start()
    found = read_image_array(files, ImageFileOptions())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The array, and for each thread some copies of one image.
    assert peak < found.nbytes + 4 * image_array.THREADS * image.nbytes
