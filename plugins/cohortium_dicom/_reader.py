"""One DICOM file as grey or colour values, with its place in a series.

    from cohortium_dicom._reader import Window, read_dicom

    image = read_dicom(Path("slice.dcm"), window=Window(center=40, width=400))

The file may come from anyone. Its sizes are compared with its bytes before any pixel is decoded.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import numpy as np
from attrs import field, frozen

from cohortium.plugin import DataError
from cohortium_dicom._codestream import image_size, run_lengths
from cohortium_dicom._functional_groups import flatten_functional_groups
from cohortium_dicom._header import COLOURS, PixelFormat, pixel_format, read_header, shown, worded
from cohortium_dicom._windows import (
    StoredValues,
    Window,
    Windowing,
    modality_values,
    stored_type,
    windowed,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset, FileDataset
    from pydicom.pixels.decoders.base import Decoder

__all__ = ["DicomImage", "StoredValues", "Window", "Windowing", "read_dicom"]


@frozen(kw_only=True, eq=False)
class DicomImage:
    """Content of one DICOM file.

    Attributes:
        path: The file.
        kind: "grey" or "colour".
        pixels: Grey values, shape (frames, H, W), or colours in the order red, green and blue,
            shape (frames, H, W, 3). The type is the declared one. Frames are in the file's order.
        patient_id: The patient's identifier, or "". It is in no text of this value.
        series_uid: Identifier of the series, or "".
        position: Place of the first pixel's centre in mm (x, y, z), or None.
        orientation: Directions of a row and of a column, two unit vectors (6 numbers), or None.
        spacing: Distance of rows and of columns in mm, or None.
        notes: The file's own window and its stored bits, as kind and value.
    """

    path: Path
    kind: Literal["grey", "colour"]
    pixels: NDArray[Any] = field(repr=False)
    patient_id: str = field(repr=False)
    series_uid: str = field(repr=False)
    position: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    spacing: tuple[float, ...] | None = None
    notes: tuple[tuple[str, str], ...] = ()


def read_dicom(path: Path, *, window: Windowing) -> DicomImage:
    """Read the pixels of a file, with all frames.

    Grey values pass through the file's modality LUT or rescaling, and then through the window.
    MONOCHROME1 is inverted, so that a higher value is always brighter. Padding (PixelPaddingValue)
    is kept like any other value. Colours become RGB. They have no window, and must be of the
    declared type.

    Args:
        path: The file.
        window: The declared window, "file" for the file's own, or values without a window.

    Raises:
        DataError: The file is missing, damaged or larger than the bound, or no image. Or its form
            is not read, or no decoder for its compression is installed.

    Guarantees:
        No value of the file's patient is in an error.
        pydicom prints and logs nothing meanwhile.
    """
    dataset = read_header(path)
    with worded(path, "its header"):
        flatten_functional_groups(dataset, path)
        form = pixel_format(dataset, path)
        _complete_rescaling(dataset, path)
        decoder = _decoder(dataset, path)
        _require_bytes(dataset, form, path)
    with worded(path, "its pixels"):
        pixels = _pixels(dataset, form, decoder, window, path)
    with worded(path, "its header"):
        return DicomImage(
            path=path,
            kind="colour" if pixels.ndim > 3 else "grey",  # noqa: PLR2004 - (frames, H, W)
            pixels=pixels,
            patient_id=str(dataset.get("PatientID") or ""),
            series_uid=str(dataset.get("SeriesInstanceUID") or ""),
            position=_numbers(dataset, "ImagePositionPatient", 3),
            orientation=_numbers(dataset, "ImageOrientationPatient", 6),
            spacing=_numbers(dataset, "PixelSpacing", 2),
            notes=(
                ("window of the file", _own_window(dataset)),
                ("stored bits", str(dataset.get("BitsStored") or form.allocated)),
            ),
        )


def _own_window(dataset: Dataset) -> str:
    """Return the file's first window in words, for people alone."""
    values = (dataset.get("WindowCenter"), dataset.get("WindowWidth"))
    if None in values:
        return "a table" if dataset.get("VOILUTSequence") else "none"
    try:
        center, width = (float(v if isinstance(v, (int, float)) else v[0]) for v in values)
    except (IndexError, TypeError, ValueError):
        return "unreadable"
    return f"center {center:g}, width {width:g}"


def _complete_rescaling(dataset: Dataset, path: Path) -> None:
    """Give a lone slope or intercept its partner, without which pydicom ignores it."""
    slope, intercept = (dataset.get(name) for name in ("RescaleSlope", "RescaleIntercept"))
    if slope is None and intercept is None:
        return
    numbers = (float(1 if slope is None else slope), float(0 if intercept is None else intercept))
    if not all(map(math.isfinite, numbers)) or numbers[0] == 0:
        raise DataError(f"{path} has a rescale slope that is zero or no number; correct it.")
    dataset.RescaleSlope, dataset.RescaleIntercept = numbers


def _decoder(dataset: FileDataset, path: Path) -> Decoder:
    from pydicom.pixels.decoders.base import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DataError(
            f"{path} has the transfer syntax {shown(syntax.name)}, which is not read; convert it "
            "to an uncompressed one."
        ) from None
    if not decoder.is_available:
        raise DataError(f"{path} is compressed as {shown(syntax.name)}{_MISSING}")
    return decoder


_MISSING: Final = (
    ", and no installed decoder can read it; pip install 'pylibjpeg[all]', or convert it to an "
    "uncompressed transfer syntax."
)


def _require_bytes(dataset: FileDataset, form: PixelFormat, path: Path) -> None:
    """Refuse a header that declares other sizes than the pixels' bytes have."""
    data: bytes = dataset.PixelData
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        from pydicom.uid import RLELossless

        is_runs = dataset.file_meta.TransferSyntaxUID == RLELossless
        for frame in _compressed_frames(data, form, path):
            if not (_has_size_in_runs if is_runs else _has_size)(frame, form):
                raise DataError(f"{path} declares {form}, and its data are of another size{_AGAIN}")
        return
    expected = form.frames * form.frame_bytes
    if form.photometric == "YBR_FULL_422":  # two pixels share their colours
        expected = expected // 3 * 2
    excess = data[expected + expected % 2 :]  # an odd length is padded by a byte
    if len(data) < expected or len(excess) >= form.frame_bytes or any(excess):
        raise DataError(f"{path} declares {form}, and holds {len(data):,} bytes of them{_AGAIN}")


_AGAIN: Final = "; copy the file anew, or leave it out."


def _has_size(frame: bytes, form: PixelFormat) -> bool:
    return image_size(frame) == (form.rows, form.columns)


def _has_size_in_runs(frame: bytes, form: PixelFormat) -> bool:
    """Return whether each byte of the values has a segment of its own, of the declared size."""
    lengths, size = run_lengths(frame), form.rows * form.columns
    is_odd = size % 2  # some writers make the length even
    return len(lengths) * size == form.frame_bytes and all(
        length in (size, size + is_odd) for length in lengths
    )


def _compressed_frames(data: bytes, form: PixelFormat, path: Path) -> Iterator[bytes]:
    from pydicom.encaps import generate_frames, parse_fragments

    num_fragments, _ = parse_fragments(data)
    if form.frames > num_fragments:
        raise DataError(f"{path} declares {form.frames} frames, and holds fewer{_AGAIN}")
    return generate_frames(data, number_of_frames=form.frames)


def _pixels(
    dataset: FileDataset, form: PixelFormat, decoder: Decoder, window: Windowing, path: Path
) -> NDArray[Any]:
    """Return all frames under the window."""
    is_grey = form.photometric.startswith("MONOCHROME")
    shape = (form.frames, form.rows, form.columns) + (() if is_grey else (COLOURS,))
    pixels = np.empty(shape, stored_type(window))
    for number, (frame, colours) in enumerate(_decoded(dataset, form, decoder, path)):
        native = frame.astype(frame.dtype.newbyteorder("="), copy=False)
        if is_grey:
            values = modality_values(native, dataset)
            pixels[number] = windowed(values, dataset, window, str(path))
        else:
            pixels[number] = _colours(native, dataset, colours, pixels.dtype, path)
    return pixels


def _decoded(
    dataset: FileDataset, form: PixelFormat, decoder: Decoder, path: Path
) -> Iterator[tuple[NDArray[Any], str]]:
    """Yield each frame with DICOM's name of its colours."""
    try:
        for frame, facts in decoder.iter_array(dataset, indices=range(form.frames)):
            yield frame, str(facts["photometric_interpretation"])
    except RuntimeError:
        # Each installed decoder has failed, for instance at JPEG of 12 bits.
        name = shown(dataset.file_meta.TransferSyntaxUID.name)
        raise DataError(
            f"{path} is damaged, or compressed as {name} in a form that is rare{_MISSING}"
        ) from None


def _colours(
    frame: NDArray[Any], dataset: Dataset, colours: str, wanted: np.dtype[Any], path: Path
) -> NDArray[Any]:
    """Return a frame as red, green and blue, shape (H, W, 3)."""
    from pydicom.pixels.processing import apply_color_lut

    if colours == "PALETTE COLOR":
        first, last = _palette_bounds(dataset, path)
        # pydicom wraps indices outside the palette, which the standard clamps (PS3.3, C.7.6.3.1.5).
        frame = apply_color_lut(np.clip(frame.astype(np.int32), first, last), dataset)
        if frame.dtype == np.uint16 and wanted == np.uint8:
            # Palettes of 16 bits hold brightness in the upper byte.
            frame = (frame >> 8).astype(np.uint8)
    elif colours != "RGB":
        raise DataError(f"{path} has colours as {shown(colours)}, which are not read; convert it.")
    if frame.dtype != wanted:
        raise DataError(
            f"{path} has colours of type {frame.dtype}, and {wanted} is declared; declare stored "
            f"values of type {frame.dtype}, or convert it."
        )
    return frame


def _palette_bounds(dataset: Dataset, path: Path) -> tuple[int, int]:
    """Return the first and the last value that the palette maps."""
    if "SegmentedRedPaletteColorLookupTableData" in dataset:
        raise DataError(f"{path} has a palette in segments, which is not read; convert it to RGB.")
    if "AlphaPaletteColorLookupTableData" in dataset:
        raise DataError(f"{path} has a palette with transparency; convert it to RGB.")
    count, first, _ = (int(value) for value in dataset.RedPaletteColorLookupTableDescriptor)
    count = count or 1 << 16
    if count > 256 and len(dataset.RedPaletteColorLookupTableData) < 2 * count:  # noqa: PLR2004
        raise DataError(
            f"{path} has a palette of {count} colours with 8 bits each, at most 256 of which are "
            "read; convert it to RGB."
        )
    return first, first + count - 1


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return finite numbers of the header, or None if there are not exactly `count`."""
    value = dataset.get(keyword)
    if value is None or value == "" or isinstance(value, (int, float)):
        return None
    numbers = tuple(float(cast("Any", part)) for part in value)
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None
