"""Made-up DICOM files give back the values that they were made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import compress  # type: ignore[attr-defined]
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from cohortium.plugin import DataError
from cohortium_dicom._reader import StoredValues, Window, read_dicom
from tests.support.dicom_files import PATIENT, dicom, saved, written

SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
FLOATS = StoredValues(dtype="float32", intensity_range=(-1000, 1000))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dicom")


@st.composite
def frames(draw: st.DrawFn) -> tuple[NDArray[Any], int]:
    """Frames of 8, 12 or 16 bits with or without sign, and their bits."""
    stored = draw(st.sampled_from([8, 10, 12, 16]))
    is_signed = draw(st.booleans())
    dtype = np.dtype(f"{'i' if is_signed else 'u'}{1 if stored == 8 else 2}")
    low = -(1 << (stored - 1)) if is_signed else 0
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)))
    values = st.integers(low, low + (1 << stored) - 1)
    return draw(arrays(dtype, shape, elements=values)), stored


@given(
    made=frames(),
    slope=st.sampled_from([None, 1, 2, 0.5, -0.25]),
    intercept=st.sampled_from([None, 0, -1024, 17.5]),
    is_inverted=st.booleans(),
    syntax=st.sampled_from(SYNTAXES),
)
def test_read_of_written_values_is_exact(
    folder: Path, *, made: tuple[NDArray[Any], int], slope: float | None,
    intercept: float | None, is_inverted: bool, syntax: Any,
) -> None:  # fmt: skip
    pixels, stored = made
    scaling = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    path = saved(
        folder / "a.dcm", pixels, stored=stored, syntax=syntax,
        photometric="MONOCHROME1" if is_inverted else "MONOCHROME2",
        **{name: value for name, value in scaling.items() if value is not None},
    )  # fmt: skip
    expected = pixels.astype(np.float64) * (slope or 1) + (intercept or 0)
    if is_inverted:
        expected = -expected  # the range is symmetric
    found = read_dicom(path, window=FLOATS)
    assert found.pixels.dtype == np.float32
    assert np.array_equal(found.pixels, expected.astype(np.float32))


def linear(values: NDArray[Any], centre: float, width: float) -> NDArray[np.float64]:
    """The linear function of PS3.3, C.11.2.1.2.1, from 0 to 255."""
    values = values.astype(np.float64)
    inside = ((values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5) * 255
    below, above = values <= centre - 0.5 - (width - 1) / 2, values > centre - 0.5 + (width - 1) / 2
    return np.where(below, 0, np.where(above, 255, inside))


@given(
    made=frames(),
    centre=st.integers(-200, 2000),
    width=st.integers(1, 4000),
    is_inverted=st.booleans(),
    is_declared=st.booleans(),
)
def test_window_is_the_standards_function(
    folder: Path, *, made: tuple[NDArray[Any], int], centre: int, width: int,
    is_inverted: bool, is_declared: bool,
) -> None:  # fmt: skip
    pixels, stored = made
    own = {} if is_declared else {"WindowCenter": centre, "WindowWidth": width}
    path = saved(
        folder / "a.dcm", pixels, stored=stored,
        photometric="MONOCHROME1" if is_inverted else "MONOCHROME2",
        RescaleSlope=1, RescaleIntercept=-100, **own,
    )  # fmt: skip
    window = Window(center=centre, width=width) if is_declared else "file"
    expected = np.rint(linear(pixels.astype(np.int32) - 100, centre, width))
    found = read_dicom(path, window=window).pixels  # type: ignore[arg-type]
    assert found.dtype == np.uint8
    assert np.array_equal(found, 255 - expected if is_inverted else expected)


def test_first_of_several_windows_is_used(tmp_path: Path) -> None:
    pixels = np.arange(100, dtype=np.uint16).reshape(10, 10)
    path = saved(tmp_path / "a.dcm", pixels, WindowCenter=[50, 1], WindowWidth=[20, 2])
    assert np.array_equal(
        read_dicom(path, window="file").pixels,
        read_dicom(path, window=Window(center=50, width=20)).pixels,
    )


def test_image_without_window_needs_a_declared_one(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.dcm", np.zeros((2, 2), np.uint16))
    with pytest.raises(DataError, match=r"a\.dcm has no window of its own; declare a window\.$"):
        read_dicom(path, window="file")


def test_image_of_8_bits_is_shown_as_it_is(tmp_path: Path) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = saved(tmp_path / "a.dcm", pixels)
    assert np.array_equal(read_dicom(path, window="file").pixels[0], pixels)


@pytest.mark.parametrize("depth", [8, 12, 16])
def test_voi_table_is_applied_beyond_256_entries(tmp_path: Path, depth: int) -> None:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [1000, 10, depth])
    table = np.linspace(0, (1 << depth) - 1, 1000).astype(np.uint16)
    item.add_new("LUTData", "US", table.tolist())
    pixels = np.arange(1200, dtype=np.uint16).reshape(30, 40)
    path = saved(tmp_path / "a.dcm", pixels, VOILUTSequence=[item])
    indices = np.clip(pixels.astype(np.int32) - 10, 0, 999)
    expected = np.rint(table[indices] * (255 / ((1 << depth) - 1)))
    assert np.array_equal(read_dicom(path, window="file").pixels[0], expected)


def test_modality_table_is_applied(tmp_path: Path) -> None:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [256, 0, 16])
    table = (np.arange(256) * 7 + 3).astype(np.uint16)
    item.add_new("LUTData", "US", table.tolist())
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = saved(tmp_path / "a.dcm", pixels, ModalityLUTSequence=[item])
    assert np.array_equal(read_dicom(path, window=FLOATS).pixels[0], table[pixels])


@given(pixels=arrays(np.uint8, (2, 3, 4, 3)), frames=st.integers(1, 2))
def test_colours_are_read_unchanged(folder: Path, pixels: NDArray[Any], frames: int) -> None:
    path = saved(folder / "a.dcm", pixels[:frames], photometric="RGB")
    found = read_dicom(path, window=Window(center=0, width=1))
    assert found.kind == "colour"
    assert np.array_equal(found.pixels, pixels[:frames])


def test_grey_in_ybr_becomes_grey_in_rgb(tmp_path: Path) -> None:
    pixels = np.full((2, 2, 3), 128, np.uint8)
    pixels[..., 0] = [[0, 60], [120, 255]]
    path = saved(tmp_path / "a.dcm", pixels, photometric="YBR_FULL")
    found = read_dicom(path, window="file").pixels[0]
    assert np.array_equal(found, np.repeat(pixels[..., :1], 3, axis=-1))


def test_palette_of_8_bits_clamps_its_indices(tmp_path: Path) -> None:
    reds, greens, blues = (np.arange(200, dtype=np.uint8) + shift for shift in (0, 20, 40))
    elements: dict[str, Any] = {}
    for name, table in (("Red", reds), ("Green", greens), ("Blue", blues)):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [200, 0, 8]
        elements[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    pixels = np.array([[0, 5, 199], [200, 300, 65535]], np.uint16)
    path = saved(tmp_path / "a.dcm", pixels, photometric="PALETTE COLOR", **elements)
    indices = np.minimum(pixels, 199)
    expected = np.stack([reds[indices], greens[indices], blues[indices]], axis=-1)
    assert np.array_equal(read_dicom(path, window="file").pixels[0], expected)


@given(pixels=arrays(np.uint16, (2, 8, 8)))
def test_runs_are_decoded_frame_by_frame(folder: Path, pixels: NDArray[Any]) -> None:
    dataset = dicom(pixels)
    compress(dataset, RLELossless)
    path = folder / "a.dcm"
    path.write_bytes(written(dataset))
    found = read_dicom(path, window=StoredValues(dtype="uint16", intensity_range=(0, 1)))
    assert np.array_equal(found.pixels, pixels)


def groups(*slopes: float) -> list[Dataset]:
    """Functional groups with a rescaling each."""
    found = []
    for slope in slopes:
        group, item = Dataset(), Dataset()
        item.RescaleSlope, item.RescaleIntercept = slope, -10
        group.PixelValueTransformationSequence = [item]
        found.append(group)
    return found


def test_shared_rescaling_of_enhanced_file_is_applied(tmp_path: Path) -> None:
    pixels = np.arange(8, dtype=np.uint16).reshape(2, 2, 2)
    path = saved(tmp_path / "a.dcm", pixels, SharedFunctionalGroupsSequence=groups(2))
    assert np.array_equal(read_dicom(path, window=FLOATS).pixels, pixels * 2.0 - 10)


def test_frames_with_different_rescaling_are_refused(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 2), np.uint16)
    path = saved(tmp_path / "a.dcm", pixels, PerFrameFunctionalGroupsSequence=groups(1, 2))
    with pytest.raises(DataError, match="differ in RescaleSlope"):
        read_dicom(path, window=FLOATS)


@pytest.mark.parametrize(
    ("dtype", "intercept", "words"),
    [
        ("uint8", 0, "has values from 0 to 300, and uint8 holds 0 to 255"),
        ("uint16", -1, "has values from -1 to 299"),
        ("int16", 0.5, "has fractions, and int16 holds none"),
    ],
)
def test_values_that_do_not_fit_are_refused(
    tmp_path: Path, dtype: Any, intercept: float, words: str
) -> None:
    path = saved(tmp_path / "a.dcm", np.array([[0, 300]], np.uint16), RescaleIntercept=intercept)
    with pytest.raises(DataError, match=words):
        read_dicom(path, window=StoredValues(dtype=dtype, intensity_range=(0, 1)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Window(center=0, width=0.5),
        lambda: Window(center=float("nan"), width=1),
        lambda: Window(center=0, width=float("inf")),
        lambda: StoredValues(dtype="int16", intensity_range=(1, 1)),
        lambda: StoredValues(dtype="int16", intensity_range=(0, float("inf"))),
    ],
)
def test_impossible_window_is_refused(make: Any) -> None:
    with pytest.raises(DataError):
        make()


def test_place_and_patient_are_read(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "a.dcm", np.zeros((2, 2), np.uint8), ImagePositionPatient=[1, 2.5, -3],
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[0.5, 0.25],
    )  # fmt: skip
    found = read_dicom(path, window="file")
    assert found.position == (1, 2.5, -3)
    assert found.orientation == (1, 0, 0, 0, 1, 0)
    assert found.spacing == (0.5, 0.25)
    assert found.patient_id == PATIENT
    assert found.series_uid == "1.2.3"
    assert PATIENT not in repr(found)
    assert PATIENT not in str(found)


def test_readers_import_no_dicom_library() -> None:
    code = (
        "import sys, cohortium_dicom._reader, cohortium_dicom._series\n"
        "print('pydicom' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DataError, match=r"pip install 'cohortium\[dicom\]'\.$"):
        read_dicom(tmp_path / "a.dcm", window="file")
