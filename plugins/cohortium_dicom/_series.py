"""Slices of one series, put in order by their places in the patient."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import field, frozen

from cohortium.plugin import DataError, is_system_file
from cohortium_dicom._header import MAX_VALUES
from cohortium_dicom._reader import read_dicom

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cohortium_dicom._reader import DicomImage
    from cohortium_dicom._windows import Windowing

TOLERANCE: Final = 0.01
"""Largest deviation of a slice's place, as a part of the distance between slices."""

_ANGLE: Final = 1e-3
"""Largest deviation of a direction's components. Scanners round them to a few digits."""


@frozen(kw_only=True, eq=False)
class Volume:
    """Slices of one series as a volume.

    Attributes:
        pixels: Values, shape (D, H, W) or (D, H, W, 3). D runs along the normal of the slices.
        spacing: Distance of slices, rows and columns in mm.
        patient_id: The patient's identifier, or "". It is in no text of this value.
        series_uid: Identifier of the series.
        notes: The window and the stored bits of the first slice, as kind and value.
    """

    pixels: NDArray[Any] = field(repr=False)
    spacing: tuple[float, float, float]
    patient_id: str = field(repr=False)
    series_uid: str = field(repr=False)
    notes: tuple[tuple[str, str], ...] = ()


def order_slices(files: Sequence[DicomImage]) -> Volume:
    """Return the slices of one series as a volume.

    Each slice's position (ImagePositionPatient) is projected on the normal of the slices, which is
    the cross product of ImageOrientationPatient's directions (PS3.3, C.7.6.2.1.1).

    Args:
        files: At least two files of one frame, in any order.

    Raises:
        DataError: Files are of several series, patients, sizes, types or orientations. Or a
            position is missing, occurs twice, or is not at a regular distance.
    """
    if len(files) < 2:  # noqa: PLR2004 - one slice has no distance
        where = f"{files[0].path} is" if files else "there is"
        raise DataError(f"{where} no volume; give the two slices or more of a series.")
    first = files[0]
    for file in files:
        _require_same_kind(file, first)
    if len(files) * first.pixels.size > MAX_VALUES:
        raise DataError(
            f"the series of {first.path} has more than {MAX_VALUES:,} values; leave slices out."
        )
    orientation, spacing = first.orientation, first.spacing
    assert orientation is not None
    assert spacing is not None
    across, down = np.array(orientation[:3]), np.array(orientation[3:])
    axes = np.stack([np.cross(across, down), across, down])
    if not np.allclose(axes @ axes.T, np.eye(3), atol=5 * _ANGLE):
        raise DataError(
            f"{first.path} has an orientation that is not two perpendicular directions; leave the "
            "series out."
        )
    places = np.array([file.position for file in files]) @ axes.T
    order = np.argsort(places[:, 0], kind="stable")
    distance = _distance([files[i] for i in order], places[order])
    return Volume(
        pixels=np.concatenate([files[i].pixels for i in order]),
        spacing=(distance, spacing[0], spacing[1]),
        patient_id=first.patient_id,
        series_uid=first.series_uid,
        notes=first.notes,
    )


def read_series(folder: Path, *, window: Windowing) -> Volume:
    """Read the files of a folder, which are the slices of one series, as a volume.

    Hidden files, and those that operating systems leave in folders, are ignored.

    Args:
        folder: The folder.
        window: The declared window.

    Raises:
        DataError: The folder cannot be read, or holds anything else. Or its slices are no volume.

    Guarantees:
        No file outside the folder is read, also by a symbolic link.
    """
    paths = _files_in(folder)
    images = []
    for path in paths:
        image = read_dicom(path, window=window)
        if len(paths) * image.pixels.size > MAX_VALUES:
            raise DataError(
                f"{folder} has {len(paths)} files like {path}, more than {MAX_VALUES:,} values; "
                "leave slices out."
            )
        images.append(image)
    if not images:
        raise DataError(f"{folder} has no files; put the slices of one series there.")
    return order_slices(images)


def _files_in(folder: Path) -> list[Path]:
    try:
        inside = sorted(path for path in folder.iterdir() if not is_system_file(path.name))
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}.") from error
    root = os.path.realpath(folder)
    for path in inside:
        if os.path.isdir(path):  # noqa: PTH112 - methods of Path may raise
            raise DataError(
                f"{path} is a folder among the slices of a series; list each series in a row of "
                "its own."
            )
        if os.path.dirname(os.path.realpath(path)) != root:  # noqa: PTH120
            raise DataError(
                f"{path} leaves its folder by a symbolic link; put the file into that folder."
            )
    return inside


def _require_same_kind(file: DicomImage, first: DicomImage) -> None:
    """Refuse a slice that cannot be stacked on the first one."""
    if len(file.pixels) != 1:
        raise DataError(
            f"{file.path} holds {len(file.pixels)} frames; give files of one slice, or read it as "
            "a volume by itself."
        )
    for name in ("position", "orientation", "spacing"):
        if getattr(file, name) is None:
            raise DataError(
                f"{file.path} has no usable {name}, so its slice cannot be put in order; leave its "
                "series out."
            )
    pairs = {
        "series": (file.series_uid, first.series_uid),
        "patient": (file.patient_id, first.patient_id),
        "size": (file.pixels.shape, first.pixels.shape),
        "type": (file.pixels.dtype, first.pixels.dtype),
        "spacing": (file.spacing, first.spacing),
    }
    differing = [name for name, (one, other) in pairs.items() if one != other]
    assert file.orientation is not None
    assert first.orientation is not None
    if not np.allclose(file.orientation, first.orientation, rtol=0, atol=_ANGLE):
        differing.append("orientation")
    if differing:
        raise DataError(
            f"{file.path} differs from {first.path} in {' and '.join(differing)}; stack slices of "
            "one series only."
        )


def _distance(files: Sequence[DicomImage], places: NDArray[np.float64]) -> float:
    """Return the distance of neighbouring slices in mm, if it is one for all.

    Args:
        files: The slices in order.
        places: Their places along normal, row and column in mm, shape (D, 3).
    """
    steps = np.diff(places[:, 0])
    distance = float(np.median(steps))
    for step, file, following in zip(steps, files, files[1:], strict=False):
        if step <= TOLERANCE * max(distance, TOLERANCE):
            raise DataError(
                f"{following.path} is at the place of {file.path}; leave one of them out."
            )
        if abs(step - distance) > TOLERANCE * distance:
            raise DataError(
                f"{following.path} is {step:g} mm from the slice before it, and others are "
                f"{distance:g} mm apart; add the missing slices, or leave the series out."
            )
    shifts = np.abs(places[:, 1:] - places[0, 1:]).max(axis=1)
    for shift, file in zip(shifts, files, strict=True):
        if shift > TOLERANCE * distance:
            raise DataError(
                f"{file.path} is shifted by {shift:g} mm within its plane (as by a tilted gantry); "
                "straighten the series, or leave it out."
            )
    return float((places[-1, 0] - places[0, 0]) / (len(files) - 1))
