"""A DICOM file's header: read within bounds, and compared with the file's bytes before decoding."""

from __future__ import annotations

import stat
import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from cohortium.plugin import DataError, escape_control_characters, replace_library_errors

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pydicom.dataset import FileDataset

MAX_BYTES: Final = 1 << 30
"""Largest size of a file in bytes, also of an inflated one: 1 GiB."""

MAX_VALUES: Final = 1 << 27
"""Largest number of values of a file, the same as of one image of a study."""

MAX_ITEMS: Final = 1 << 16
"""Largest number of items in a file's sequences and compressed pixels.

pydicom makes an object of some hundred bytes for each item of eight.
"""

_ITEMS: Final = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
"""Tag of an item in both byte orders."""

_DEFLATED: Final = "1.2.840.10008.1.2.1.99"
_INFLATION_STEP: Final = 1 << 12
"""Number of bytes to inflate at a time, to at most 1,032 times as many."""

_PIXELS: Final = (
    "BitsAllocated", "BitsStored", "Columns", "NumberOfFrames", "PhotometricInterpretation",
    "PixelRepresentation", "PlanarConfiguration", "Rows", "SamplesPerPixel", "HighBit",
    "PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)  # fmt: skip
_VALUES: Final = (
    "ModalityLUTSequence", "RescaleIntercept", "RescaleSlope", "VOILUTFunction", "VOILUTSequence",
    "WindowCenter", "WindowWidth", "AlphaPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "BluePaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableData", "GreenPaletteColorLookupTableDescriptor",
    "PixelPresentation", "RedPaletteColorLookupTableData", "RedPaletteColorLookupTableDescriptor",
    "SegmentedRedPaletteColorLookupTableData",
)  # fmt: skip
_PLACES: Final = (
    "ImageOrientationPatient", "ImagePositionPatient", "PatientID", "PixelSpacing",
    "PerFrameFunctionalGroupsSequence", "SeriesInstanceUID", "SharedFunctionalGroupsSequence",
)  # fmt: skip

MAX_BITS: Final = 16
MAX_SHOWN: Final = 80
"""Largest number of characters of a file's text in a sentence."""

COLOURS: Final = 3
"""Values per pixel of a colour image."""


@frozen(kw_only=True)
class PixelFormat:
    """Form of a file's pixels, as its header declares it.

    Attributes:
        rows: Height in pixels.
        columns: Width in pixels.
        frames: Number of images in the file.
        samples: Values per pixel, 1 or 3.
        allocated: Bits per value in the file, 8 or 16.
        photometric: DICOM's name of the colours, such as MONOCHROME2.
    """

    rows: int
    columns: int
    frames: int
    samples: int
    allocated: int
    photometric: str

    @property
    def frame_bytes(self) -> int:
        """Size of one decoded frame in bytes."""
        return self.rows * self.columns * self.samples * self.allocated // 8

    def __str__(self) -> str:
        """Return the text for a sentence."""
        return (
            f"{self.frames} × {self.rows} × {self.columns} pixels of {self.samples} × "
            f"{self.allocated} bits"
        )


def worded(path: Path, part: str) -> AbstractContextManager[None]:
    """Return a block in which any error about `part` of the file becomes one sentence."""
    return replace_library_errors(path, f": {part} cannot be read", logger="pydicom")


def read_header(path: Path) -> FileDataset:
    """Return the elements of a file that a reader needs.

    Raises:
        DataError: The file is missing, too large, damaged, or no DICOM file.
    """
    try:
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
    except ImportError as error:
        raise DataError(
            "reading DICOM files needs a package; pip install 'cohortium[dicom]'."
        ) from error
    content = _content(path)
    with worded(path, "its header"):
        try:
            _require_few_items(_num_items(content), path)
            _require_bounded_inflation(content, path)
            dataset = dcmread(BytesIO(content), specific_tags=[*_PIXELS, *_VALUES, *_PLACES])
        except InvalidDicomError:
            raise DataError(
                f"{path} is no DICOM file; give files that begin with DICOM's preamble."
            ) from None
        if not dataset.file_meta.get("TransferSyntaxUID"):
            raise DataError(
                f"{path} names no transfer syntax; write it anew with the tool that made it."
            )
    return dataset


def _content(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path} is no file; give DICOM files.")
        if status.st_size > MAX_BYTES:
            raise DataError(
                f"{path} has {status.st_size:,} bytes, and at most {MAX_BYTES:,} are read; split "
                "it."
            )
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}.") from error


def _require_bounded_inflation(content: bytes, path: Path) -> None:
    """Refuse a deflated file that inflates beyond the bound, in little memory."""
    from pydicom.filereader import read_dataset, read_preamble

    file = BytesIO(content)
    read_preamble(file, force=False)
    meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=_is_after_meta)
    if meta.get("TransferSyntaxUID") != _DEFLATED:
        return
    inflation, size, items = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0
    while part := file.read(_INFLATION_STEP):
        inflated = inflation.decompress(part)
        size += len(inflated)
        items += _num_items(inflated)
        _require_few_items(items, path)
        if size > MAX_BYTES:
            raise DataError(
                f"{path} inflates to more than {MAX_BYTES:,} bytes, and no more are read; write it "
                "without compression, or leave it out."
            )


def _num_items(content: bytes) -> int:
    return sum(map(content.count, _ITEMS))


def _require_few_items(count: int, path: Path) -> None:
    if count > MAX_ITEMS:
        raise DataError(
            f"{path} has more than {MAX_ITEMS:,} items in its sequences; split it, or leave it out."
        )


def _is_after_meta(tag: Any, _representation: str | None, _length: int) -> bool:
    return bool(tag.group != 2)  # noqa: PLR2004 - the group of the file's meta information


def pixel_format(dataset: FileDataset, path: Path) -> PixelFormat:
    """Return the declared form of a file's pixels.

    Raises:
        DataError: There are no pixels, the form is not read, or it is beyond the bound.
    """
    if "PixelData" not in dataset:
        kind = "floating-point pixels" if _has_float_pixels(dataset) else "no pixels"
        raise DataError(f"{path} holds {kind}; leave it out.")
    photometric = shown(dataset.get("PhotometricInterpretation") or "")
    found = PixelFormat(
        rows=_number(dataset, "Rows", path),
        columns=_number(dataset, "Columns", path),
        frames=_number(dataset, "NumberOfFrames", path, default=1),
        samples=_number(dataset, "SamplesPerPixel", path, default=1),
        allocated=_number(dataset, "BitsAllocated", path),
        photometric=photometric,
    )
    stored = _number(dataset, "BitsStored", path, default=found.allocated)
    if found.allocated not in (8, MAX_BITS) or stored > found.allocated:
        raise DataError(
            f"{path} declares {stored} of {found.allocated} bits per value; only values of 8 or "
            f"{MAX_BITS} bits are read."
        )
    if _number(dataset, "HighBit", path, default=stored - 1) != stored - 1:
        raise DataError(
            f"{path} keeps its {stored} bits at the upper end of {found.allocated}; write it anew "
            f"with HighBit {stored - 1}."
        )
    if found.samples != (1 if _is_one_channel(photometric) else COLOURS):
        raise DataError(
            f"{path} declares {found.samples} values per pixel in {photometric or 'no'} colours; "
            "give grey or colour images."
        )
    if dataset.get("PixelRepresentation") not in (0, 1):
        raise DataError(f"{path} does not declare whether its values have a sign; correct it.")
    if found.frames * found.rows * found.columns * found.samples > MAX_VALUES:
        raise DataError(
            f"{path} declares {found}, more than {MAX_VALUES:,} values; split it, or leave it out."
        )
    return found


def shown(text: str) -> str:
    """Return a short text of a file on one line, for a sentence."""
    return escape_control_characters(str(text)[:MAX_SHOWN])


def _is_one_channel(photometric: str) -> bool:
    return photometric in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")


def _has_float_pixels(dataset: FileDataset) -> bool:
    return "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset


def _number(dataset: FileDataset, keyword: str, path: Path, default: int = 0) -> int:
    """Return a positive number of the header."""
    value = dataset.get(keyword)
    number = default if value is None or value == "" else value
    if not isinstance(number, int) or number < 1:
        raise DataError(f"{path} declares no usable {keyword}; correct it, or leave the file out.")
    return int(number)
