"""NIfTI files that a table lists, with their labels or masks.

>>> NiftiDataset(path="brats.csv", mask="labels", channels=4).load()  # doctest: +SKIP

    path,labels,split
    1/image.nii.gz,1/labels.nii.gz,train
    2/image.nii.gz,2/labels.nii.gz,test
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, get_args

import numpy as np
from attrs import Attribute, field, frozen
from attrs.validators import and_, ge, le

from cohortium.plugin import (
    DataError,
    Dataset,
    FileTable,
    ListedExample,
    ListedFormat,
    MaskFormat,
    Offer,
    StudyError,
    hookimpl,
)
from cohortium_nifti._masks import SUFFIX, encode_mask
from cohortium_nifti._reader import read_mask, read_nifti

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


COHORTIUM_API = 1

SUFFIXES: Final = (".nii", ".nii.gz")
"""Endings of the files. A pair of .hdr and .img is two files, and a row lists one."""

Plane = Literal["", "axial", "coronal", "sagittal"]
"""Plane of the one slice of each file, or "" for volumes."""

_AXES: Final = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The axis of X, Y and Z across each plane."""

ValueType = Literal["", "uint8", "uint16", "int16", "float32"]
"""Declared type of the values, or "" for that of the files."""


def _known(_: object, attribute: Attribute[str], value: object) -> None:
    known = get_args({"plane": Plane, "dtype": ValueType}[attribute.name])
    if value not in known:
        raise StudyError(
            f"nifti: {attribute.name} is {value!r}; let it be one of {', '.join(map(repr, known))}."
        )


def _lengths(_: object, __: object, value: tuple[float, float, float] | None) -> None:
    if value is None:
        return
    if len(value) != 3 or not all(math.isfinite(x) and x > 0 for x in value):  # noqa: PLR2004 - X, Y, Z
        raise StudyError(
            f"nifti: spacing is {value!r}; give three lengths in mm, such as (1.0, 1.0, 1.0)."
        )


@frozen(kw_only=True)
class NiftiDataset(FileTable):
    """NIfTI files of the user's own, listed in a CSV or Parquet file.

    The files end in .nii or .nii.gz. The axes of a volume run to the patient's right, front and
    head, in this order. No volume is resampled. Reading needs `pip install 'cohortium[nifti]'`.

    Masks are NIfTI files too, with a whole number for each voxel of their image.

    Attributes:
        spacing: The lengths of a voxel in mm along the three axes, which each file must have.
            Without it, files of every spacing are read.
        channels: Number of volumes in a file, each of which is a channel.
        plane: "axial", "coronal" or "sagittal" if each file has one slice in this plane. It becomes
            a flat image, with the other two axes in their order.
        dtype: Type of the values, to which each file is converted if no value changes. By default
            that of the files. Scaled values are `float32`.
    """

    kind: ClassVar[str] = "nifti"

    spacing: tuple[float, float, float] | None = field(default=None, validator=_lengths)
    channels: int = field(default=1, validator=and_(ge(1), le(1 << 10)))
    plane: Plane = field(default="", validator=_known)
    dtype: ValueType = field(default="", validator=_known)

    @property
    def file_format(self) -> ListedFormat:
        """The format of the files."""
        # The reader mutes nibabel's warnings and log, which are one of the whole process.
        return ListedFormat(
            read=self._read, suffixes=SUFFIXES, mask_suffixes=SUFFIXES, num_threads=1
        )

    def _read(self, path: Path, mask_path: Path | None) -> ListedExample:
        found = read_nifti(path, spacing=self.spacing, channels=self.channels)
        axis = self._axis(found.pixels.shape[1:], path)
        image = _converted(found.pixels, self.dtype, path) if self.dtype else found.pixels
        mask = None if mask_path is None else read_mask(mask_path, image=found)
        lengths = " × ".join(f"{length:.3g}" for length in found.spacing)
        notes = (("voxel in mm", lengths),)
        mask_format = MaskFormat(
            suffix=SUFFIX, encode=lambda predicted: encode_mask(path, predicted, axis)
        )
        if axis is None:
            return ListedExample(image=image, mask=mask, notes=notes, mask_format=mask_format)
        return ListedExample(
            image=image.squeeze(1 + axis),
            mask=None if mask is None else mask.squeeze(axis),
            notes=notes,
            mask_format=mask_format,
        )

    def _axis(self, shape: tuple[int, ...], path: Path) -> int | None:
        """Return the axis across the declared plane, or None for a volume."""
        shown = " × ".join(map(str, shape))
        if self.plane:
            axis = _AXES[self.plane]
            if shape[axis] != 1:
                raise DataError(
                    f"{path} has {shown} voxels, which are no single {self.plane} slice; declare "
                    "the plane of its slice, or none for volumes."
                )
            return axis
        for plane, axis in _AXES.items():
            if shape[axis] == 1:
                raise DataError(
                    f"{path} has {shown} voxels, which are one slice; declare plane = {plane!r} of "
                    "the data set, and it becomes a flat image."
                )
        return None


def _converted(values: NDArray[Any], dtype: str, path: Path) -> NDArray[Any]:
    if dtype == "float32":
        converted: NDArray[Any] = values.astype(np.float32)
    else:
        limits = np.iinfo(dtype)
        converted = np.clip(values, limits.min, limits.max).astype(dtype)
    if not np.array_equal(converted, values):
        raise DataError(
            f"{path} has {values.dtype} values that {dtype} cannot hold; declare another dtype."
        )
    return converted


@hookimpl
def cohortium_datasets() -> list[Offer[Dataset]]:
    """Offer `nifti`."""
    return [
        Offer(
            "nifti",
            NiftiDataset,
            "NIfTI volumes or slices that a CSV or Parquet file lists, with labels or masks.",
            local_parameters=("path", "root", "patient_key"),
        )
    ]
