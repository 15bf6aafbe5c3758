"""NIfTI files are read as nibabel reads them, with axes in one order, or refused."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import NDArray

from cohortium.plugin import DataError
from cohortium_nifti._reader import read_mask, read_nifti
from tests.support.nifti_files import saved

FOLDER = Path(nibabel.__file__).parent / "tests" / "data"
FILES = sorted(path for path in FOLDER.iterdir() if path.is_file() and path.suffix != ".py")
ENDINGS = ("a.nii", "a.nii.gz", "a.img", "a.hdr", "a.img.gz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nifti")


def by_nibabel(path: Path) -> NDArray[np.float64] | None:
    """Values by nibabel alone, with volumes first, or None where it has none."""
    if path.suffix not in (".nii", ".gz", ".hdr"):
        return None
    try:
        with warnings.catch_warnings(action="ignore"):
            image: Any = nibabel.load(path)
            assert isinstance(image, nibabel.Nifti1Pair)
            values: NDArray[np.float64] = nibabel.as_closest_canonical(image).get_fdata()
    except Exception:  # noqa: BLE001 - nibabel raises any error about another format
        return None
    return values[None] if values.ndim == 3 else np.moveaxis(values, -1, 0)


def test_the_wheel_ships_its_files() -> None:
    assert len(FILES) > 60


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shipped_file_is_read_or_refused(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    expected = by_nibabel(path)
    capfd.readouterr()
    if expected is None or not np.isfinite(expected).all():
        with pytest.raises(DataError) as caught:
            read_nifti(path)
        text = str(caught.value)
        assert FOLDER.name in text
        assert text.endswith(".")
        assert "\n" not in text
    else:
        found = read_nifti(path, channels=len(expected))
        assert found.pixels.shape == expected.shape
        assert np.array_equal(found.pixels, expected.astype(found.pixels.dtype))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "spacing"),
    [
        # The shapes are those in nibabel's tests/data/README.rst and test_testing.py; types and
        # lengths are those that nibabel 5.4.2 shows of the headers.
        ("anatomical.nii", (1, 33, 41, 25), "int16", (2, 2, 2)),
        ("example4d.nii.gz", (2, 128, 96, 24), "int16", (2, 2, 2.2)),
        ("example_nifti2.nii.gz", (2, 32, 20, 12), "int16", (2, 2, 2.2)),
        ("functional.nii", (20, 17, 21, 3), "float32", (4, 4, 8)),
        ("standard.nii.gz", (1, 4, 5, 7), "uint8", (1, 3, 2)),
    ],
)
def test_known_file_has_its_known_facts(
    name: str, shape: tuple[int, ...], dtype: str, spacing: tuple[float, float, float]
) -> None:
    found = read_nifti(FOLDER / name, spacing=spacing, channels=shape[0])
    assert found.pixels.shape == shape
    assert found.pixels.dtype == dtype
    assert found.spacing == pytest.approx(spacing, abs=1e-5)
    assert nibabel.aff2axcodes(found.affine) == ("R", "A", "S")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("analyze.hdr", "is no NIfTI file"),
        ("nifti1.hdr", r"cannot read .*nifti1\.img: No such file"),
        ("resampled_anat_moved.nii", "NaN or infinite"),
        ("row_major.dconn.nii", "has 6 axes"),
        ("test.mgz", "is no NIfTI file by its name"),
        ("functional.nii", "has 20 volumes, and 1 are declared"),
    ],
)
def test_shipped_file_is_refused_with_reason(name: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_nifti(FOLDER / name)


ORIENTATIONS = st.tuples(
    st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([-1, 1])] * 3)
).map(lambda drawn: np.array([*zip(*drawn, strict=True)]))


@given(
    voxels=arrays(
        st.sampled_from(["uint8", "uint16", "int16", "float32"]),
        st.tuples(*[st.integers(1, 4)] * 3),
        elements=st.integers(0, 200),
    ),
    orientation=ORIENTATIONS,
    name=st.sampled_from(ENDINGS),
    version=st.sampled_from([1, 2]),
    angle=st.floats(-0.3, 0.3),
)
def test_turned_file_gives_the_canonical_volume(
    folder: Path, *, voxels: NDArray[Any], orientation: NDArray[Any], name: str, version: int,
    angle: float,
) -> None:  # fmt: skip
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ np.diag([0.5, 0.75, 2.5, 1])
    affine[:3, 3] = [-10, 20, 3]
    turned = apply_orientation(voxels, orientation)
    path = saved(
        folder / name, turned, affine @ inv_ornt_aff(orientation, voxels.shape), version=version
    )
    found = read_nifti(path, spacing=(0.5, 0.75, 2.5))
    assert found.pixels.dtype == voxels.dtype
    assert np.array_equal(found.pixels[0], voxels)
    assert np.allclose(found.affine, affine, atol=1e-4)
    assert found.pixels.flags.c_contiguous


@given(
    voxels=arrays("int16", (2, 3, 4), elements=st.integers(-32768, 32767)),
    slope=st.sampled_from([0.5, 2, -1, 0.1]),
    intercept=st.sampled_from([0, -1024, 0.25]),
)
def test_scaling_is_applied(
    folder: Path, voxels: NDArray[Any], slope: float, intercept: float
) -> None:
    path = saved(folder / "a.nii", voxels, slope=slope, intercept=intercept)
    found = read_nifti(path).pixels[0]
    assert found.dtype == np.float32
    scale = np.float64(np.float32(slope))  # the header has single precision
    assert np.array_equal(found, (voxels * scale + intercept).astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "becomes"),
    [
        ("uint8", "uint8"), ("int8", "int16"), ("int16", "int16"), ("uint16", "uint16"),
        ("int32", "float32"), ("uint32", "float32"), ("int64", "float32"), ("uint64", "float32"),
        ("float32", "float32"), ("float64", "float32"), (">i2", "int16"), (">f4", "float32"),
    ],
)  # fmt: skip
def test_type_is_kept_or_holds_each_value(tmp_path: Path, dtype: str, becomes: str) -> None:
    voxels = np.arange(24).reshape(2, 3, 4).astype(dtype)
    found = read_nifti(saved(tmp_path / "a.nii", voxels)).pixels[0]
    assert found.dtype == becomes
    assert found.dtype.isnative
    assert np.array_equal(found, voxels)


@pytest.mark.parametrize("value", [2**24 + 1, -(2**24) - 1])
def test_integer_beyond_float32_is_refused(tmp_path: Path, value: int) -> None:
    path = saved(tmp_path / "a.nii", np.full((1, 1, 1), value, np.int32))
    with pytest.raises(DataError, match="int32 values that float32 cannot hold"):
        read_nifti(path)


@pytest.mark.parametrize("value", [0.1, 1e300])
def test_float64_beyond_float32_is_refused(tmp_path: Path, value: float) -> None:
    path = saved(tmp_path / "a.nii", np.full((1, 1, 1), value, np.float64))
    with pytest.raises(DataError, match="float64 values that float32 cannot hold"):
        read_nifti(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_value_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    path = saved(tmp_path / "a.nii", np.array([[[0, value]]], np.float32))
    with pytest.raises(DataError, match=r"a\.nii has values that are NaN or infinite"):
        read_nifti(path)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_voxels_are_refused(tmp_path: Path, dtype: str) -> None:
    path = saved(tmp_path / "a.nii", np.zeros((1, 1, 1), dtype))
    with pytest.raises(DataError, match=f"voxels of type {dtype}"):
        read_nifti(path)


def test_volumes_become_declared_channels(tmp_path: Path) -> None:
    voxels = np.arange(48, dtype=np.int16).reshape(2, 3, 4, 2)
    path = saved(tmp_path / "a.nii", voxels)
    assert np.array_equal(read_nifti(path, channels=2).pixels, np.moveaxis(voxels, -1, 0))
    with pytest.raises(DataError, match="has 2 volumes, and 3 are declared"):
        read_nifti(path, channels=3)


def test_another_spacing_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8), np.diag([1, 1, 2.5, 1]))
    assert read_nifti(path).spacing == (1, 1, 2.5)
    with pytest.raises(DataError, match=r"of 1 × 1 × 2\.5 mm, and 1 × 1 × 1 mm are declared"):
        read_nifti(path, spacing=(1, 1, 1))


def test_lengths_in_another_unit_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8), unit="micron")
    with pytest.raises(DataError, match="states lengths in micron"):
        read_nifti(path)


def test_axes_in_a_plane_are_refused(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[:3, 2] = [1, 1, 0]
    path = saved(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8), affine)
    with pytest.raises(DataError, match="axes without three directions"):
        read_nifti(path)


@given(
    labels=arrays(np.uint8, (2, 3, 4)),
    orientation=ORIENTATIONS,
    dtype=st.sampled_from(["uint8", "int16", "int64", "float32", "float64"]),
)
def test_mask_has_the_axes_of_its_image(
    folder: Path, labels: NDArray[Any], orientation: NDArray[Any], dtype: str
) -> None:
    affine = np.diag([0.5, 1, 2, 1])
    image = read_nifti(saved(folder / "image.nii", np.zeros((2, 3, 4), np.int16), affine))
    turned = apply_orientation(labels.astype(dtype), orientation)
    path = saved(folder / "mask.nii.gz", turned, affine @ inv_ornt_aff(orientation, labels.shape))
    found = read_mask(path, image=image)
    assert found.dtype == np.uint8
    assert np.array_equal(found, labels)


@pytest.mark.parametrize(
    ("mask", "affine", "words"),
    [
        (np.zeros((2, 3, 5), np.uint8), np.eye(4), "2 × 3 × 5 labels .* draw it on that image"),
        (np.zeros((2, 3, 4, 2), np.uint8), np.eye(4), "in 2 volumes"),
        (np.full((2, 3, 4), -1, np.int16), np.eye(4), "has values from -1 to -1"),
        (np.full((2, 3, 4), 256, np.int16), np.eye(4), "has values from 256 to 256"),
        (np.full((2, 3, 4), 0.5, np.float32), np.eye(4), "labels are whole numbers"),
        (np.zeros((2, 3, 4), np.uint8), np.diag([1, 1, 1.1, 1]), "lies elsewhere"),
        (np.zeros((2, 3, 4), np.uint8), np.eye(4) + np.eye(4, k=3), "lies elsewhere"),
    ],
)
def test_mask_that_does_not_fit_is_refused(
    tmp_path: Path, mask: NDArray[Any], affine: NDArray[Any], words: str
) -> None:
    image = read_nifti(saved(tmp_path / "image.nii", np.zeros((2, 3, 4), np.int16)))
    path = saved(tmp_path / "mask.nii", mask, affine)
    with pytest.raises(DataError, match=words) as caught:
        read_mask(path, image=image)
    assert str(path) in str(caught.value)


def test_reader_imports_no_nifti_library() -> None:
    code = "import sys, cohortium_nifti._reader\nprint('nibabel' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(DataError, match=r"pip install 'cohortium\[nifti\]'\.$"):
        read_nifti(tmp_path / "a.nii")
