"""Cases of DICOM and NIfTI files for the fuzzer."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from pydicom.pixels import compress  # type: ignore[attr-defined]
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from cohortium_dicom._reader import StoredValues, Window, Windowing, read_dicom
from cohortium_nifti._reader import read_nifti
from tests.fuzz.mutation import stranger
from tests.support import dicom_files, nifti_files

MEMORY = 1 << 24
"""Bytes that reading a file of a few hundred bytes may hold."""

WINDOWS: tuple[Windowing, ...] = (
    "file",
    Window(center=40, width=400),
    StoredValues(dtype="int16", intensity_range=(-1024, 3071)),
)


@cache
def _dicom_files() -> tuple[bytes, ...]:
    pixels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    runs = dicom_files.dicom(pixels)
    compress(runs, RLELossless, generate_instance_uid=False)
    colours = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    made = (
        dicom_files.dicom(
            pixels, RescaleSlope=2, RescaleIntercept=-9, WindowCenter=5, WindowWidth=9
        ),
        dicom_files.dicom(pixels, syntax=DeflatedExplicitVRLittleEndian),
        dicom_files.dicom(colours, photometric="RGB"),
        runs,
    )
    return tuple(map(dicom_files.written, made))


def dicom(path: Path, rng: Random) -> None:
    """Read a DICOM file."""
    path.write_bytes(stranger(lambda rng: rng.choice(_dicom_files()), rng, DICOM_TOKENS))
    found = read_dicom(path, window=rng.choice(WINDOWS))
    assert found.pixels.ndim == (3 if found.kind == "grey" else 4)


DICOM_TOKENS = (
    b"DICM", b"\xff\xff\xff\xff", b"\xff\xff", b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0",
    b"SQ\x00\x00",
    b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x08\x00IS\x02\x00", b"\xe0\x7f\x10\x00OW\x00\x00",
    b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.5", b"UN", b"\x00\x00", b"9" * 12, b"1e999 ",
)  # fmt: skip


@cache
def _nifti_files(folder: Path) -> tuple[bytes, ...]:
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    path = folder / "sample.nii"
    return tuple(
        nifti_files.saved(path, voxels, slope=2, intercept=1, version=version).read_bytes()
        for version in (1, 2)
    )


def nifti(path: Path, rng: Random) -> None:
    """Read a NIfTI file, packed or not as its name says."""
    is_packed = path.suffix == ".gz"
    content = stranger(lambda rng: rng.choice(_nifti_files(path.parent)), rng, NIFTI_TOKENS)
    path.write_bytes(gzip.compress(content, mtime=0) if is_packed else content)
    found = read_nifti(path)
    assert found.pixels.ndim == 4
    assert np.isfinite(found.pixels).all()


NIFTI_TOKENS = (
    b"n+1\x00", b"ni1\x00", b"n+2\x00\r\n\x1a\n", b"\xff\x7f", b"\x00\x00\xc0\x7f",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x80\x7f", b"\x00\x00\x00\x00", b"\x5c\x01\x00\x00", b"\x1c\x02\x00\x00", b"\x80\x00",
)  # fmt: skip
