"""NIfTI volumes and masks as arrays, with axes in one order for all files.

from cohortium_nifti._reader import read_mask, read_nifti

image = read_nifti(Path("scan.nii.gz"), spacing=(1.0, 1.0, 1.0))
mask = read_mask(Path("labels.nii.gz"), image=image)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import field, frozen

from cohortium.plugin import DataError
from cohortium_nifti._header import Voxels, read_voxels, worded

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SPACING_TOLERANCE: Final = 1e-3
"""Largest deviation of a voxel's length, as a part of the declared one."""

PLACE_TOLERANCE: Final = 1e-2
"""Largest distance of a mask's voxel from that of its image, as a part of the voxel's length."""

_KEPT: Final = ("uint8", "uint16", "int16", "float32")


@frozen(kw_only=True, eq=False)
class NiftiImage:
    """Content of one NIfTI file.

    Attributes:
        path: The file.
        pixels: Values, shape (C, X, Y, Z). The axes run to the patient's right, front and head, as
            nearly as the file's axes do.
        spacing: Lengths of a voxel in mm, along X, Y and Z.
        affine: Map from indices (X, Y, Z) to mm in the patient's coordinates, shape (4, 4).
    """

    path: Path
    pixels: NDArray[Any] = field(repr=False)
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64] = field(repr=False)


def read_nifti(
    path: Path, *, spacing: tuple[float, float, float] | None = None, channels: int = 1
) -> NiftiImage:
    """Read a volume.

    Values of type `uint8`, `uint16`, `int16` and `float32` keep their type. `int8` becomes `int16`.
    Other types become `float32`, if that changes no value. Scaled values (scl_slope, scl_inter)
    become `float32`, rounded to it. A file without an orientation is read as nibabel reads it: its
    axes run to the left, front and head.

    Args:
        path: A file .nii or .nii.gz, or either file of a pair .hdr and .img.
        spacing: The declared lengths of a voxel in mm, along X, Y and Z. No file is resampled.
        channels: The declared number of volumes in the file, each of which is a channel.

    Raises:
        DataError: The file is missing, damaged or larger than the bound, or no NIfTI file. Or it
            has another spacing or number of volumes, or a value that is NaN or infinite.
    """
    voxels = read_voxels(path)
    with worded(path):
        values = _typed(_scaled(voxels, path), path, is_scaled=voxels.is_scaled)
        pixels, affine = _canonical(values, voxels.affine)
        lengths = _lengths(affine)
    if len(pixels) != channels:
        raise DataError(
            f"{path} has {len(pixels)} volumes, and {channels} are declared as channels; split it, "
            "or declare its channels."
        )
    if spacing is not None and not np.allclose(lengths, spacing, rtol=SPACING_TOLERANCE, atol=0):
        raise DataError(
            f"{path} has voxels of {_shown(lengths)} mm, and {_shown(spacing)} mm are declared; "
            "resample it, or declare its own spacing."
        )
    return NiftiImage(path=path, pixels=pixels, spacing=lengths, affine=affine)


def read_mask(path: Path, *, image: NiftiImage) -> NDArray[np.uint8]:
    """Read the label of each voxel of an image.

    Args:
        path: The file of the labels, whole numbers from 0 to 255.
        image: The image that the labels belong to.

    Returns:
        Labels, shape (X, Y, Z), with the axes of the image.

    Raises:
        DataError: The file cannot be read as by `read_nifti`, holds other values, or has other
            voxels than the image.
    """
    voxels = read_voxels(path)
    with worded(path):
        values, affine = _canonical(_scaled(voxels, path), voxels.affine)
        labels = _labels(values, path)
    if labels.shape[0] != 1 or labels.shape[1:] != image.pixels.shape[1:]:
        raise DataError(
            f"{path} has {_shown(labels.shape[1:])} labels in {len(labels)} volumes, and its image "
            f"{image.path} has {_shown(image.pixels.shape[1:])} voxels; draw it on that image."
        )
    # Affines are linear, so the farthest voxel is at a corner.
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(labels.shape[1:]) - 1)
    apart = corners @ (affine - image.affine)[:3, :3].T + (affine - image.affine)[:3, 3]
    if np.linalg.norm(apart, axis=1).max() > PLACE_TOLERANCE * min(image.spacing):
        raise DataError(
            f"{path} lies elsewhere in the patient than its image {image.path} (their affines "
            "differ); resample it to that image."
        )
    mask: NDArray[np.uint8] = labels[0]
    return mask


def _scaled(voxels: Voxels, path: Path) -> NDArray[Any]:
    """Return the values of a file: as stored, or scaled as `float64`."""
    values = voxels.stored.astype(voxels.stored.dtype.newbyteorder("="), copy=False)
    if voxels.is_scaled:
        values = values * np.float64(voxels.slope) + np.float64(voxels.intercept)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(f"{path} has values that are NaN or infinite; replace them.")
    return values


def _typed(values: NDArray[Any], path: Path, *, is_scaled: bool) -> NDArray[Any]:
    """Return values of one of the types that examples have."""
    if values.dtype.name in _KEPT:
        return values
    if values.dtype == np.int8:
        return values.astype(np.int16)
    narrow = values.astype(np.float32)
    is_exact = is_scaled or np.array_equal(narrow.astype(values.dtype), values)
    if not is_exact or not np.isfinite(narrow).all():
        raise DataError(
            f"{path} has {values.dtype} values that float32 cannot hold; convert it to int16 or "
            "float32."
        )
    return narrow


def _labels(values: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    lowest, highest = values.min(), values.max()
    labels: NDArray[np.uint8] = np.clip(values, 0, 255).astype(np.uint8)
    if not np.array_equal(labels, values):
        raise DataError(
            f"{path} has values from {lowest:g} to {highest:g}, and labels are whole numbers from "
            "0 to 255; correct it."
        )
    return labels


def _canonical(
    values: NDArray[Any], affine: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return values of shape (C, X, Y, Z) along the patient's axes, with their affine."""
    from nibabel.funcs import as_closest_canonical
    from nibabel.nifti1 import Nifti1Image

    # nibabel writes no integers of 64 bits without being told the type.
    turned: Any = as_closest_canonical(Nifti1Image(values, affine, dtype=values.dtype))
    pixels = np.asanyarray(turned.dataobj)
    shaped = pixels[None] if pixels.ndim == 3 else np.moveaxis(pixels, -1, 0)  # noqa: PLR2004
    return np.ascontiguousarray(shaped), np.asarray(turned.affine, np.float64)


def _lengths(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    from nibabel.affines import voxel_sizes

    x, y, z = (float(length) for length in voxel_sizes(affine))
    return x, y, z


def _shown(numbers: tuple[float, ...]) -> str:
    return " × ".join(f"{number:g}" for number in numbers)
