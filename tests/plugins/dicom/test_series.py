"""Slices in any order give back their volume, and a series with a fault is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from cohortium.plugin import DataError
from cohortium_dicom._reader import DicomImage, StoredValues, read_dicom
from cohortium_dicom._series import order_slices
from tests.support.dicom_files import PATIENT, saved

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
OBLIQUE = (0.8, 0.6, 0.0, 0.0, 0.0, -1.0)
WORDS = StoredValues(dtype="int16", intensity_range=(0, 1))


def image(number: int, **changes: Any) -> DicomImage:
    """The slice of a number, at a distance of 2.5 mm."""
    made = DicomImage(
        path=Path(f"{number}.dcm"),
        kind="grey",
        pixels=np.full((1, 2, 3), number, np.int16),
        patient_id=PATIENT,
        series_uid="1.2.3",
        position=(-10.0, 5.0, 2.5 * number),
        orientation=AXIAL,
        spacing=(0.5, 0.75),
    )
    return attrs.evolve(made, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("series")


@given(
    volume=arrays(np.int16, st.tuples(st.integers(2, 6), st.integers(1, 3), st.integers(1, 3))),
    distance=st.sampled_from([0.625, 1.0, 3.3]),
    orientation=st.sampled_from([AXIAL, CORONAL, OBLIQUE]),
    data=st.data(),
)
def test_slices_in_any_order_give_the_volume(
    folder: Path, volume: NDArray[Any], distance: float, orientation: Any, data: st.DataObject
) -> None:
    normal = np.cross(orientation[:3], orientation[3:])
    paths = []
    for number, pixels in enumerate(volume):
        place = np.array([7.0, -20.0, 3.0]) + number * distance * normal
        path = saved(
            folder / f"{number}.dcm", pixels, ImagePositionPatient=place.round(4).tolist(),
            ImageOrientationPatient=list(orientation), PixelSpacing=[0.5, 0.75],
        )  # fmt: skip
        paths.append(path)
    shuffled = data.draw(st.permutations(paths))
    found = order_slices([read_dicom(path, window=WORDS) for path in shuffled])
    assert np.array_equal(found.pixels, volume)
    assert found.spacing == pytest.approx((distance, 0.5, 0.75), abs=1e-3)
    assert (found.patient_id, found.series_uid) == (PATIENT, "1.2.3")
    assert PATIENT not in repr(found)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"position": None}, "has no usable position"),
        ({"orientation": None}, "has no usable orientation"),
        ({"spacing": None}, "has no usable spacing"),
        ({"orientation": CORONAL}, "differs from .* in orientation"),
        ({"series_uid": "1.2.4"}, "in series"),
        ({"patient_id": "another"}, "in patient"),
        ({"spacing": (0.5, 0.7)}, "in spacing"),
        ({"pixels": np.zeros((1, 2, 4), np.int16)}, "in size"),
        ({"pixels": np.zeros((1, 2, 3), np.uint8)}, "in type"),
        ({"pixels": np.zeros((2, 2, 3), np.int16)}, "holds 2 frames"),
        ({"position": (-10.0, 5.0, 2.5)}, "is at the place of"),
        ({"position": (-10.0, 5.0, 5.6)}, "mm from the slice before it"),
        ({"position": (-10.0, 5.4, 5.0)}, "is shifted by 0.4 mm"),
    ],
)
def test_series_with_a_fault_is_refused(changes: Any, words: str) -> None:
    files = [image(3), image(0), image(2, **changes), image(1), image(4)]
    with pytest.raises(DataError, match=words) as caught:
        order_slices(files)
    assert ".dcm" in str(caught.value)
    assert PATIENT not in str(caught.value)


def test_missing_slice_is_refused() -> None:
    with pytest.raises(DataError, match=r"4\.dcm is 5 mm from .* add the missing slices"):
        order_slices([image(number) for number in (0, 1, 2, 4, 5)])


def test_skew_directions_are_refused() -> None:
    skew = (1.0, 0.0, 0.0, 0.5, 0.5, 0.0)
    with pytest.raises(DataError, match="not two perpendicular directions"):
        order_slices([image(number, orientation=skew) for number in range(3)])


@pytest.mark.parametrize("count", [0, 1])
def test_single_slice_is_no_volume(count: int) -> None:
    with pytest.raises(DataError, match="no volume"):
        order_slices([image(number) for number in range(count)])
