"""Made-up DICOM files, written with pydicom."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

PATIENT = "DOE^JANE-4711"
"""A PatientID that no error may repeat."""


def dicom(
    pixels: NDArray[Any],
    *,
    stored: int | None = None,
    photometric: str = "MONOCHROME2",
    syntax: str = ExplicitVRLittleEndian,
    **elements: Any,
) -> FileDataset:
    """A file of `pixels`: (H, W), (frames, H, W), or with colours last for other photometrics."""
    samples = pixels.shape[-1] if photometric in ("RGB", "YBR_FULL") else 1
    frames = pixels.reshape(-1, *pixels.shape[-3:]) if samples > 1 else pixels
    frames = frames.reshape(-1, *frames.shape[-2:]) if samples == 1 else frames
    meta: Any = FileMetaDataset()  # pydicom's type of a UID accepts no text
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.PatientID = PATIENT
    dataset.SeriesInstanceUID = "1.2.3"
    dataset.NumberOfFrames = len(frames)
    dataset.Rows, dataset.Columns = frames.shape[1:3]
    dataset.SamplesPerPixel = samples
    if samples > 1:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = pixels.dtype.itemsize * 8
    dataset.BitsStored = stored or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    data = np.ascontiguousarray(pixels).tobytes()
    dataset.add_new("PixelData", "OW", data + bytes(len(data) % 2))
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def written(dataset: FileDataset) -> bytes:
    """The bytes of a file."""
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def saved(path: Path, pixels: NDArray[Any], **options: Any) -> Path:
    """Write a file of `pixels` to `path`."""
    path.write_bytes(written(dicom(pixels, **options)))
    return path
