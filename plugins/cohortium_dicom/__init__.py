"""DICOM files that a table lists, with their labels.

>>> window = Window(center=40, width=400)
>>> DicomDataset(path="ct.csv", label="finding", window=window).load()  # doctest: +SKIP

    path,finding,split
    series/0001,normal,train
    series/0002,tumour,test
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np
from attrs import Attribute, field, frozen

from cohortium.plugin import (
    DataError,
    Dataset,
    FileTable,
    ImageFileOptions,
    ListedExample,
    ListedFormat,
    Offer,
    StudyError,
    decode_mask,
    hookimpl,
)
from cohortium_dicom._reader import read_dicom
from cohortium_dicom._series import read_series
from cohortium_dicom._windows import Depth, StoredValues, Window, Windowing

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from cohortium_dicom._reader import DicomImage
    from cohortium_dicom._series import Volume

COHORTIUM_API = 1

Patients = Literal["", "header"]
"""Place of the patients' names: the table's column, if there is one, or the files' headers."""

__all__ = ["DicomDataset", "Window", "cohortium_datasets"]


def _known(_: object, attribute: Attribute[str], value: object) -> None:
    known = get_args({"dtype": Depth, "patients": Patients}[attribute.name])
    if value not in known:
        raise StudyError(
            f"dicom: {attribute.name} is {value!r}; let it be one of {', '.join(map(repr, known))}."
        )


def _window(_: object, __: object, value: object) -> None:
    if value is not None and value != "file" and not isinstance(value, Window):
        raise StudyError(
            f"dicom: window is {value!r}; give center and width, or 'file' for the window of each "
            "file."
        )


@frozen(kw_only=True)
class DicomDataset(FileTable):
    """DICOM files of the user's own, listed in a CSV or Parquet file.

    A row lists a file, or a folder with the slices of one series, which becomes a volume. Its axes
    are the slices, along their normal, then rows and columns. No volume is resampled. Reading
    needs `pip install 'cohortium[dicom]'`.

    Grey values pass through the rescaling of their file, and then through the declared window.
    Without a window, they keep their unit, and `intensity_range` is declared.

    Masks are PNG, TIFF or npy files, and those of volumes are npy files or TIFF files of several
    pages. Their slices are in the order of the volume.

    Attributes:
        window: Center and width of a window in the unit of the files (Hounsfield units in CT),
            which becomes brightness from 0 to 255. "file" takes the window of each file.
        dtype: Type of the values without a window.
        frames: Whether the frames of a file are the slices of a volume.
        patients: "header" takes each file's PatientID as the patient. It needs a `patient_key`,
            and no column of patients.
    """

    kind: ClassVar[str] = "dicom"

    window: Window | Literal["file"] | None = field(default=None, validator=_window)
    dtype: Depth = field(default="int16", validator=_known)
    frames: bool = False
    patients: Patients = field(default="", validator=_known)

    def __attrs_post_init__(self) -> None:
        """Refuse options that contradict one another, or that lack another."""
        super().__attrs_post_init__()
        if (self.window is None) == (self.intensity_range is None):
            raise StudyError(
                "dicom: declare either a window, with which values are from 0 to 255, or an "
                "intensity_range, the two values that become 0 and 1."
            )
        _ = self._windowing
        if self.patients and (self.patient or not self.patient_key):
            raise StudyError(
                "dicom: patients = 'header' needs a patient_key, and no column patient; declare "
                "the key's file alone."
            )

    @property
    def _windowing(self) -> Windowing:
        if self.window is not None:
            return self.window
        assert self.intensity_range is not None
        return StoredValues(dtype=self.dtype, intensity_range=self.intensity_range)

    @property
    def file_format(self) -> ListedFormat:
        """The format of the files."""

        def read(path: Path, mask_path: Path | None) -> ListedExample:
            image, found = self._image(path)
            return ListedExample(
                image=image,
                mask=None if mask_path is None else _mask(mask_path, image, path),
                patient=_patient(found.patient_id, path) if self.patients else None,
                notes=found.notes,
            )

        # The reader mutes pydicom's warnings and log, which are one of the whole process.
        return ListedFormat(read=read, suffixes=(), has_folders=True, num_threads=1)

    def _image(self, path: Path) -> tuple[NDArray[Any], DicomImage | Volume]:
        """Return the image of a file or folder, with its content."""
        if path.is_dir():
            volume = read_series(path, window=self._windowing)
            return _channels_first(volume.pixels, num_axes=3), volume
        found = read_dicom(path, window=self._windowing)
        if self.frames:
            return _channels_first(found.pixels, num_axes=3), found
        if len(found.pixels) > 1:
            raise DataError(
                f"{path} holds {len(found.pixels)} frames; declare frames = true of the data set "
                "if they are the slices of one volume, or split it."
            )
        return _channels_first(found.pixels[0], num_axes=2), found


def _channels_first(pixels: NDArray[Any], *, num_axes: int) -> NDArray[Any]:
    """Return grey values or colours, the latter last, with channels first."""
    return pixels[None] if pixels.ndim == num_axes else np.moveaxis(pixels, -1, 0)


def _mask(mask_path: Path, image: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    size = image.shape[1:]
    # The pages of a TIFF file are the slices of a volume's mask.
    mask = decode_mask(mask_path, ImageFileOptions(pages=len(size) > 2))  # noqa: PLR2004 - (H, W)
    if mask.shape != size:
        raise DataError(
            f"{mask_path} has {_shown(mask.shape)} labels, and its image {path} has "
            f"{_shown(size)} pixels; draw it on that image."
        )
    return mask


def _patient(patient_id: str, path: Path) -> str:
    """Return the identifier as a table's column has it, without spaces around it."""
    if not (text := patient_id.strip()):
        raise DataError(
            f"{path} has no PatientID; leave it out, or name patients in a column of the table."
        )
    return text


def _shown(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


@hookimpl
def cohortium_datasets() -> list[Offer[Dataset]]:
    """Offer `dicom`."""
    return [
        Offer(
            "dicom",
            DicomDataset,
            "DICOM files, or folders of slices, that a CSV or Parquet file lists.",
            local_parameters=("path", "root", "patient_key"),
        )
    ]
