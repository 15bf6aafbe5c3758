"""Every file in pydicom's wheel is read as pydicom reads it, or refused in one sentence."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from cohortium.plugin import DataError
from cohortium_dicom._reader import StoredValues, Windowing, read_dicom

FOLDER = Path(pydicom.__file__).parent / "data"
FILES = sorted(
    path for path in FOLDER.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
)
FLOATS = StoredValues(dtype="float32", intensity_range=(0, 1))
COLOURS: dict[str, Windowing] = {
    "uint8": "file",
    "uint16": StoredValues(dtype="uint16", intensity_range=(0, 65535)),
}


def by_pydicom(path: Path) -> NDArray[Any] | None:
    """Values by pydicom alone, with frames first, or None where it has none of 8 or 16 bits."""
    try:
        with warnings.catch_warnings(action="ignore"):
            dataset = pydicom.dcmread(path)
            pixels = apply_modality_lut(dataset.pixel_array, dataset)
            if dataset.PhotometricInterpretation == "PALETTE COLOR":
                pixels = (apply_color_lut(pixels, dataset) >> 8).astype(np.uint8)
    except Exception:  # noqa: BLE001 - pydicom raises any error about a damaged file
        return None
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        pixels = 1.0 - pixels  # within the range of `FLOATS`
    several = "NumberOfFrames" in dataset and dataset.NumberOfFrames > 1
    return (pixels if several else pixels[None]) if dataset.BitsAllocated in (8, 16) else None


def require_sentence(error: DataError, path: Path) -> None:
    text = str(error)
    assert str(path) in text
    assert text.endswith(".")
    assert "\n" not in text
    assert len(text) < 600 + len(str(path))


def test_the_wheel_ships_its_files() -> None:
    assert len(FILES) > 200


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_shipped_file_is_read_or_refused(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    expected = by_pydicom(path)
    capfd.readouterr()
    if expected is None:
        with pytest.raises(DataError) as caught:
            read_dicom(path, window=FLOATS)
        require_sentence(caught.value, path)
    else:
        is_colour = expected.ndim == 4
        found = read_dicom(path, window=COLOURS[expected.dtype.name] if is_colour else FLOATS)
        assert found.kind == ("colour" if is_colour else "grey")
        assert np.array_equal(found.pixels, expected if is_colour else expected.astype(np.float32))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "shape", "lowest", "highest"),
    [
        # By pydicom 3.0.2's `pixel_array`, times RescaleSlope 1 and with RescaleIntercept -1024.
        ("CT_small.dcm", (1, 128, 128), -896, 1167),
        ("MR_small.dcm", (1, 64, 64), 127, 2145),
        ("MR_small_RLE.dcm", (1, 64, 64), 127, 2145),
        ("MR_small_bigendian.dcm", (1, 64, 64), 127, 2145),
        ("MR_small_jp2klossless.dcm", (1, 64, 64), 127, 2145),
        ("JPEG2000.dcm", (1, 1024, 256), -30, 245),
        # A code stream without sign where the header declares one.
        ("J2K_pixelrep_mismatch.dcm", (1, 512, 512), -2000, 1896),
    ],
)
def test_known_file_has_its_known_values(
    name: str, shape: tuple[int, ...], lowest: int, highest: int
) -> None:
    window = StoredValues(dtype="int16", intensity_range=(-1024, 3071))
    found = read_dicom(FOLDER / "test_files" / name, window=window)
    assert found.pixels.dtype == np.int16
    assert found.pixels.shape == shape
    assert (found.pixels.min(), found.pixels.max()) == (lowest, highest)


def test_mr_small_has_the_values_of_pydicoms_tests() -> None:
    # pydicom, tests/pixels/pixels_reference.py, its check of MR_small.dcm.
    window = StoredValues(dtype="int16", intensity_range=(0, 4095))
    (frame,) = read_dicom(FOLDER / "test_files" / "MR_small.dcm", window=window).pixels
    assert frame[0, 31:34].tolist() == [422, 319, 361]
    assert frame[31, :3].tolist() == [366, 363, 322]
    assert frame[-1, -3:].tolist() == [1369, 1129, 862]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MR_truncated.dcm", "holds 8,130 bytes"),
        ("rtplan.dcm", "holds no pixels"),
        ("liver_1frame.dcm", "1 of 1 bits"),
        ("rtdose.dcm", "32 of 32 bits"),
        ("no_meta.dcm", "is no DICOM file"),
        ("meta_missing_tsyntax.dcm", "names no transfer syntax"),
        ("README.txt", "is no DICOM file"),
        ("SC_rgb_rle_16bit.dcm", "colours of type uint16"),
        ("JPEG2000-embedded-sequence-delimiter.dcm", "of another size"),
    ],
)
def test_unreadable_file_is_refused_with_reason(name: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_dicom(FOLDER / "test_files" / name, window="file")


def test_missing_decoder_names_syntax_and_package() -> None:
    path = FOLDER / "test_files" / "MR_small_jpeg_ls_lossless.dcm"
    if by_pydicom(path) is not None:
        pytest.skip("a decoder is installed here")
    with pytest.raises(DataError, match=r"JPEG-LS Lossless.*pip install 'pylibjpeg\[all\]'"):
        read_dicom(path, window=FLOATS)
