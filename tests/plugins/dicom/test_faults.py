"""Damaged and lying DICOM files: one sentence with the path, in bounded memory."""

from __future__ import annotations

import os
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import compress  # type: ignore[attr-defined]
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless

from cohortium.plugin import DataError
from cohortium_dicom import _header
from cohortium_dicom._reader import DicomImage, StoredValues, Windowing, read_dicom
from tests.support.dicom_files import PATIENT, dicom, written
from tests.support.refusals import MEMORY, refused_in_memory

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
PIXELS = np.arange(1, 13, dtype=np.uint16).reshape(3, 4)

WINDOWS: tuple[Windowing, ...] = ("file", StoredValues(dtype="float32", intensity_range=(0, 1)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


def tried(path: Path, content: bytes, window: Windowing = WINDOWS[1]) -> DicomImage | str:
    """The image in `content`, or the sentence that refuses it."""
    path.write_bytes(content)
    try:
        return read_dicom(path, window=window)
    except DataError as error:
        refusal = error
    text = str(refusal)
    assert str(path) in text
    assert text.endswith(".")
    assert "\n" not in text
    assert PATIENT not in "".join(traceback.format_exception(refusal))
    return text


def refused(path: Path, content: bytes, memory: int = MEMORY) -> str:
    """The sentence that refuses `content`, in bounded memory."""
    return refused_in_memory(lambda: tried(path, content), content, memory)


def runs() -> FileDataset:
    dataset = dicom(PIXELS)
    compress(dataset, RLELossless)
    return dataset


def jpeg(rows: int, columns: int) -> bytes:
    """The shipped JPEG of 3 × 3 pixels, whose code stream declares another size."""
    dataset = pydicom.dcmread(SHIPPED / "SC_rgb_small_odd_jpeg.dcm")
    start = dataset.PixelData.index(b"\xff\xc0") + 5
    size = rows.to_bytes(2, "big") + columns.to_bytes(2, "big")
    dataset.PixelData = dataset.PixelData[:start] + size + dataset.PixelData[start + 4 :]
    return written(dataset)


def table(depth: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4, 1, depth])
    item.add_new("LUTData", "US", [1, 2, 3, 4])
    return item


def palette() -> FileDataset:
    elements: dict[str, Any] = {}
    for name in ("Red", "Green", "Blue"):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [16, 0, 8]
        elements[f"{name}PaletteColorLookupTableData"] = bytes(range(16))
    return dicom(PIXELS, photometric="PALETTE COLOR", **elements)


SAMPLES: dict[str, bytes] = {
    "plain": written(dicom(PIXELS, RescaleSlope=2, WindowCenter=[5, 6], WindowWidth=[3, 4])),
    "deflated": written(dicom(PIXELS, syntax=DeflatedExplicitVRLittleEndian)),
    "runs": written(runs()),
    "tables": written(dicom(PIXELS, ModalityLUTSequence=[table(16)], VOILUTSequence=[table(8)])),
    "palette": written(palette()),
    "jpeg": (SHIPPED / "SC_rgb_small_odd_jpeg.dcm").read_bytes(),
    "jpeg 2000": (SHIPPED / "JPEG2000.dcm").read_bytes(),
}


@pytest.mark.parametrize("name", ["plain", "deflated", "runs", "jpeg"])
def test_file_cut_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    content = SAMPLES[name]
    for end in range(0, len(content) - 16, 5):
        assert isinstance(tried(tmp_path / "a.dcm", content[:end]), str), end


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "tables"])
def test_uncompressed_file_cut_at_every_byte_is_refused(tmp_path: Path, name: str) -> None:
    content = SAMPLES[name]
    for end in range(len(content)):
        assert isinstance(tried(tmp_path / "a.dcm", content[:end]), str), end


@given(
    name=st.sampled_from(sorted(SAMPLES)),
    window=st.sampled_from(WINDOWS),
    changes=st.lists(
        st.tuples(
            st.integers(0, 1 << 20),
            st.sampled_from([0, 1, 2, 3, 0x7F, 0x80, 0xFF]) | st.integers(0, 255),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_file_with_changed_bytes_is_read_or_refused(
    folder: Path, name: str, window: Windowing, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(SAMPLES[name])
    for place, value in changes:
        content[place % len(content)] = value
    tried(folder / "a.dcm", bytes(content), window)


@given(st.binary(max_size=300), st.booleans())
def test_arbitrary_bytes_are_refused(folder: Path, content: bytes, is_headed: bool) -> None:
    head = bytes(128) + b"DICM" if is_headed else b""
    assert isinstance(tried(folder / "a.dcm", head + content), str)


@pytest.mark.parametrize("make", [lambda: dicom(PIXELS), runs], ids=["plain", "runs"])
@pytest.mark.parametrize(
    ("element", "value"),
    [
        ("Rows", 65535),
        ("Columns", 65535),
        ("Columns", 2000),
        ("Rows", 1),
        ("Rows", 0),
        ("NumberOfFrames", 2_000_000_000),
        ("NumberOfFrames", 100_000),
        ("NumberOfFrames", 2),
        ("NumberOfFrames", -1),
        ("SamplesPerPixel", 3),
        ("SamplesPerPixel", 60_000),
        ("BitsAllocated", 8),
        ("BitsAllocated", 12),
        ("BitsAllocated", 64),
        ("BitsStored", 17),
        ("HighBit", 14),
        ("PixelRepresentation", 7),
        ("PhotometricInterpretation", "PALETTE COLOR"),
        ("PhotometricInterpretation", "CMYK"),
        ("RescaleSlope", 0),
    ],
)
def test_lying_header_is_refused_in_bounded_memory(
    tmp_path: Path, make: Callable[[], FileDataset], element: str, value: Any
) -> None:
    dataset = make()
    setattr(dataset, element, value)
    refused(tmp_path / "a.dcm", written(dataset))


def test_both_sizes_are_in_the_sentence(tmp_path: Path) -> None:
    dataset = dicom(PIXELS)
    dataset.Rows = 5
    text = refused(tmp_path / "a.dcm", written(dataset))
    assert "declares 1 × 5 × 4 pixels of 1 × 16 bits, and holds 24 bytes of them" in text


def test_image_beyond_the_bound_is_refused(tmp_path: Path) -> None:
    dataset = dicom(PIXELS)
    dataset.Rows = dataset.Columns = 65535
    assert "more than 134,217,728 values" in refused(tmp_path / "a.dcm", written(dataset))


@pytest.mark.parametrize("size", [(4, 3), (65500, 65500), (0, 3)])
def test_code_stream_of_another_size_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    assert "data are of another size" in refused(tmp_path / "a.dcm", jpeg(*size))


def test_code_stream_of_its_size_is_read(tmp_path: Path) -> None:
    assert isinstance(tried(tmp_path / "a.dcm", jpeg(3, 3), "file"), DicomImage)


def test_compressed_data_beyond_all_proportion_are_refused(tmp_path: Path) -> None:
    dataset = runs()
    dataset.Rows = dataset.Columns = 8000
    text = refused(tmp_path / "a.dcm", written(dataset))
    assert "data are of another size" in text


def test_fragment_without_image_is_refused(tmp_path: Path) -> None:
    dataset = runs()
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.PixelData = encapsulate([b"\xff\xd8" + bytes(20)])
    refused(tmp_path / "a.dcm", written(dataset))


def test_deflated_bomb_is_refused_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_header, "MAX_BYTES", 1 << 24)
    content = SAMPLES["deflated"]
    start = content.index(DeflatedExplicitVRLittleEndian.encode())
    meta = content[: start + len(DeflatedExplicitVRLittleEndian)]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    text = refused(tmp_path / "a.dcm", meta + bomb, memory=1 << 24)
    assert "inflates to more than 16,777,216 bytes" in text


def test_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.touch()
    os.truncate(path, _header.MAX_BYTES + 1)
    with pytest.raises(DataError, match=r"has 1,073,741,825 bytes, and at most 1,073,741,824"):
        read_dicom(path, window="file")


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "empty"])
def test_place_without_image_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.dcm"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    with pytest.raises(DataError, match=r"a\.dcm"):
        read_dicom(path, window="file")


def test_deep_sequences_are_refused(tmp_path: Path) -> None:
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    # The shared functional groups, each with the same sequence inside.
    sequence = b"\x00\x52\x29\x92SQ\x00\x00\xff\xff\xff\xff" + item
    content = SAMPLES["plain"]
    assert isinstance(tried(tmp_path / "a.dcm", content[:-36] + sequence * 5000), str)


@pytest.mark.parametrize("is_deflated", [False, True])
def test_sequence_of_many_items_is_refused(tmp_path: Path, *, is_deflated: bool) -> None:
    # The shared functional groups, with items that are empty.
    items = b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 100_000
    sequence = b"\x00\x52\x29\x92SQ\x00\x00" + len(items).to_bytes(4, "little") + items
    content = SAMPLES["plain"] + sequence
    if is_deflated:
        meta = SAMPLES["deflated"].index(DeflatedExplicitVRLittleEndian.encode()) + 22
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        content = SAMPLES["deflated"][:meta] + packer.compress(sequence) + packer.flush()
    assert "more than 65,536 items" in refused(tmp_path / "a.dcm", content)


@pytest.mark.parametrize("element", ["FloatPixelData", "DoubleFloatPixelData"])
def test_floating_point_pixels_are_refused(tmp_path: Path, element: str) -> None:
    dataset = dicom(PIXELS)
    del dataset.PixelData
    setattr(dataset, element, bytes(96))
    assert "holds floating-point pixels" in refused(tmp_path / "a.dcm", written(dataset))
