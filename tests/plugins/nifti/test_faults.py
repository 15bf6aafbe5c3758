"""Damaged and lying NIfTI files: one sentence with the path, in bounded memory."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from struct import pack_into
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium.plugin import DataError
from cohortium_nifti._reader import NiftiImage, read_mask, read_nifti
from tests.support.nifti_files import saved
from tests.support.refusals import refused_in_memory

VOXELS = np.arange(1, 25, dtype=np.int16).reshape(2, 3, 4)

DIM, DATATYPE, VOX_OFFSET, SLOPE, FORMS, AFFINE, MAGIC = 40, 70, 108, 112, 252, 280, 344
"""Places of NIfTI-1's fields in bytes (nifti1.h)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def samples(folder: Path) -> dict[str, bytes]:
    """Files by name."""
    for name in ("one.nii", "packed.nii.gz", "pair.img"):
        saved(folder / name, VOXELS, slope=2, intercept=1)
    saved(folder / "two.nii", VOXELS, version=2)
    names = ("one.nii", "two.nii", "packed.nii.gz", "pair.img", "pair.hdr")
    return {name: (folder / name).read_bytes() for name in names}


def tried(path: Path, content: bytes) -> NiftiImage | str:
    """The image in `content`, or the sentence that refuses it."""
    path.write_bytes(content)
    try:
        return read_nifti(path)
    except DataError as error:
        text = str(error)
    assert path.stem in text
    assert str(path.parent) in text
    assert text.endswith(".")
    assert "\n" not in text
    return text


def refused(path: Path, content: bytes) -> str:
    """The sentence that refuses `content`, in bounded memory."""
    return refused_in_memory(lambda: tried(path, content), content)


def changed(content: bytes, place: int, form: str, *values: Any) -> bytes:
    """A file with another value in its header."""
    made = bytearray(content)
    pack_into(form, made, place, *values)
    return bytes(made)


@pytest.mark.parametrize("name", ["one.nii", "two.nii", "packed.nii.gz", "pair.img", "pair.hdr"])
def test_file_cut_anywhere_is_refused(folder: Path, samples: dict[str, bytes], name: str) -> None:
    content = samples[name]
    # A pair's header ends with four bytes that announce extensions, and need not be there.
    length = 348 if name == "pair.hdr" else len(content)
    try:
        for end in range(length):
            assert isinstance(tried(folder / name, content[:end]), str), end
    finally:
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("name", ["one.nii", "two.nii", "packed.nii.gz", "pair.img"])
def test_bytes_after_the_voxels_are_refused(
    folder: Path, samples: dict[str, bytes], name: str
) -> None:
    content = samples[name]
    more = gzip.compress(gzip.decompress(content) + b"\0") if "gz" in name else content + b"\0"
    try:
        assert "holds another number of bytes" in refused(folder / name, more)
    finally:
        (folder / name).write_bytes(content)


@given(
    name=st.sampled_from(["one.nii", "two.nii", "packed.nii.gz", "pair.hdr"]),
    changes=st.lists(
        st.tuples(
            st.integers(0, 700), st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_file_with_changed_bytes_is_read_or_refused(
    folder: Path, samples: dict[str, bytes], name: str, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(samples[name])
    for place, value in changes:
        content[place % len(content)] = value
    try:
        tried(folder / name, bytes(content))
    finally:
        (folder / name).write_bytes(samples[name])


@given(st.binary(max_size=600), st.sampled_from([".nii", ".nii.gz", ".hdr", ".img"]))
def test_arbitrary_bytes_are_refused(folder: Path, content: bytes, ending: str) -> None:
    assert isinstance(tried(folder / f"any{ending}", content), str)


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize(
    ("place", "form", "values"),
    [
        (DIM, "<4h", (3, 32767, 32767, 32767)),
        (DIM, "<4h", (3, 500, 500, 500)),
        (DIM, "<4h", (3, 2, 3, 5)),
        (DIM, "<4h", (3, 2, 3, 3)),
        (DIM, "<4h", (3, 2, 3, 0)),
        (DIM, "<4h", (3, -2, -3, 4)),
        (DIM, "<8h", (7, 2, 3, 4, 1, 1, 1, 1)),
        (DIM, "<h", (2,)),
        (DIM, "<h", (-1,)),
        (DATATYPE, "<2h", (1, 1)),
        (DATATYPE, "<2h", (128, 24)),
        (DATATYPE, "<2h", (2, 8)),
        (DATATYPE, "<2h", (1024, 64)),
        (DATATYPE, "<2h", (1536, 128)),
        (DATATYPE, "<2h", (77, 16)),
        (VOX_OFFSET, "<f", (1e9,)),
        (VOX_OFFSET, "<f", (-1e9,)),
        (VOX_OFFSET, "<f", (float("nan"),)),
        (VOX_OFFSET, "<f", (416,)),
        (SLOPE, "<2f", (1, float("inf"))),
        (SLOPE, "<2f", (3e38, 3e38)),
        (AFFINE, "<12f", (0,) * 12),
        (AFFINE, "<12f", (float("nan"),) * 12),
        (AFFINE, "<12f", (1, 2, 3, 0, 2, 4, 6, 0, 3, 6, 9, 0)),
        (MAGIC, "4s", (b"abc\0",)),
    ],
)
def test_lying_header_is_refused_in_bounded_memory(
    folder: Path, samples: dict[str, bytes], *, is_packed: bool, place: int, form: str,
    values: tuple[Any, ...],
) -> None:  # fmt: skip
    content = changed(samples["one.nii"], place, form, *values)
    name, content = ("b.nii.gz", gzip.compress(content)) if is_packed else ("b.nii", content)
    refused(folder / name, content)


def test_both_sizes_are_in_the_sentence(folder: Path, samples: dict[str, bytes]) -> None:
    content = changed(samples["one.nii"], DIM, "<4h", 3, 2, 3, 50)
    text = refused(folder / "b.nii", content)
    assert "has 400 bytes, and its header declares 952" in text


def test_bomb_is_unpacked_within_its_declared_size(folder: Path, samples: dict[str, bytes]) -> None:
    content = gzip.compress(samples["one.nii"]) + gzip.compress(bytes(1 << 20)) * (1 << 10)
    assert "holds another number of bytes" in refused(folder / "bomb.nii.gz", content)


def test_bomb_before_the_voxels_is_refused(folder: Path, samples: dict[str, bytes]) -> None:
    content = changed(samples["one.nii"], VOX_OFFSET, "<f", 1 << 25)
    packed = gzip.compress(content + bytes(1 << 25), 1)
    assert "at most 16,777,216 is read" in refused(folder / "bomb.nii.gz", packed)


def test_large_file_is_refused_unread(folder: Path, samples: dict[str, bytes]) -> None:
    path = folder / "large.nii"
    path.write_bytes(changed(samples["one.nii"], DIM, "<4h", 3, 1024, 1024, 1024))
    os.truncate(path, 352 + (1 << 31))
    with pytest.raises(DataError, match="and at most 134,217,728 are read"):
        read_nifti(path)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "empty"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.img"])
def test_place_without_image_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / name
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    with pytest.raises(DataError, match=r"/a\."):
        read_nifti(path)


def test_packed_file_under_another_name_is_refused(folder: Path, samples: dict[str, bytes]) -> None:
    assert "is no NIfTI file" in refused(folder / "b.nii", samples["packed.nii.gz"])
    assert "cannot be read" in refused(folder / "b.nii.gz", samples["one.nii"])


def test_file_without_orientation_runs_to_the_left(folder: Path, samples: dict[str, bytes]) -> None:
    found = tried(folder / "b.nii", changed(samples["one.nii"], FORMS, "<2h", 0, 0))
    assert isinstance(found, NiftiImage)
    assert np.array_equal(found.pixels[0], 2.0 * VOXELS[::-1] + 1)


def test_damaged_mask_is_refused(folder: Path, samples: dict[str, bytes]) -> None:
    image = read_nifti(folder / "one.nii")
    (folder / "mask.nii").write_bytes(samples["one.nii"][:-1])
    with pytest.raises(DataError, match=r"mask\.nii"):
        read_mask(folder / "mask.nii", image=image)
