"""Grey values for a network: a declared window, the file's own window, or values as they are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import numpy as np
from attrs import field, frozen

from cohortium.plugin import DataError

if TYPE_CHECKING:
    from attrs import Attribute
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

Depth = Literal["uint8", "uint16", "int16", "float32"]
"""Type of the values that a reader returns."""

_BRIGHTEST: Final = 255


def _finite(_: object, attribute: Attribute[float], value: float) -> None:
    if not math.isfinite(value):
        raise DataError(f"{attribute.name} is {value}; give a finite number.")


@frozen(kw_only=True)
class Window:
    """A declared window, which maps values to brightness from 0 to 255.

    The map is DICOM's linear function (PS3.3, C.11.2.1.2.1). Brightness is rounded to `uint8`.

    Attributes:
        center: Center of the window, in the unit of the file's modality (Hounsfield units in CT).
        width: Width of the window in the same unit, at least 1.
    """

    center: float = field(validator=_finite)
    width: float = field(validator=_finite)

    def __attrs_post_init__(self) -> None:
        """Refuse a window without width."""
        if self.width < 1:
            raise DataError(f"the window's width is {self.width:g}; give at least 1.")


@frozen(kw_only=True)
class StoredValues:
    """Values after the modality transform, without a window.

    Attributes:
        dtype: Type of the values. A file with a value that the type cannot hold is refused.
        intensity_range: Values that become 0 and 1 before a network. Values outside are kept.
            An inverted image (MONOCHROME1) is reflected within the range.
    """

    dtype: Depth
    intensity_range: tuple[float, float]

    def __attrs_post_init__(self) -> None:
        """Refuse a range that is none."""
        low, high = self.intensity_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise DataError(f"the intensity range is {low:g} to {high:g}; give low and high.")


Windowing = Window | StoredValues | Literal["file"]
"""Way from a file's grey values to the reader's.

The word "file" names the window or VOI LUT of each file, its first one if there are several.
"""


def stored_type(windowing: Windowing) -> np.dtype[Any]:
    """Return the type of the values under `windowing`."""
    return np.dtype(windowing.dtype if isinstance(windowing, StoredValues) else "uint8")


def modality_values(frame: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    """Return a frame after the modality LUT or the rescaling of its file (PS3.3, C.11.1)."""
    from pydicom.pixels.processing import apply_modality_lut

    # A LUT is indexed in the frame's type, which may be too narrow for the LUT's bounds.
    wide = frame.astype(np.int32) if dataset.get("ModalityLUTSequence") else frame
    return apply_modality_lut(wide, dataset)


def windowed(
    values: NDArray[Any], dataset: Dataset, windowing: Windowing, where: str
) -> NDArray[Any]:
    """Return grey values of a frame under `windowing`.

    Args:
        values: Values after the modality transform, shape (H, W).
        dataset: The file's header.
        windowing: The declared way.
        where: Name of the file in an error.

    Returns:
        Values of the type that `stored_type` names, of the same shape.

    Raises:
        DataError: The file has no usable window, or a value that the type cannot hold.
    """
    inverted = dataset.get("PhotometricInterpretation") == "MONOCHROME1"
    if isinstance(windowing, StoredValues):
        return _stored(values, windowing, where, inverted=inverted)
    if isinstance(windowing, Window):
        shown = _through_window(values, windowing.center, windowing.width, "LINEAR")
    else:
        shown = _through_own_window(values, dataset, where)
    brightness = np.rint(shown).astype(np.uint8)
    return np.subtract(_BRIGHTEST, brightness, dtype=np.uint8) if inverted else brightness


def _through_window(
    values: NDArray[Any], centre: float, width: float, function: str
) -> NDArray[np.float64]:
    """Return brightness from 0 to 255."""
    from pydicom.dataset import Dataset
    from pydicom.pixels.processing import apply_windowing

    # pydicom takes the range of its output from the header: here it is that of 8 bits.
    header = Dataset()
    header.PhotometricInterpretation = "MONOCHROME2"
    header.BitsStored = 8
    header.PixelRepresentation = 0
    header.WindowCenter = centre
    header.WindowWidth = width
    header.VOILUTFunction = function
    return cast("NDArray[np.float64]", apply_windowing(values, header))


def _through_own_window(values: NDArray[Any], dataset: Dataset, where: str) -> NDArray[np.float64]:
    if dataset.get("VOILUTSequence"):
        return _through_own_table(values, dataset)
    centre, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is not None and width is not None:
        if not (math.isfinite(centre) and math.isfinite(width) and width > 0):
            raise DataError(
                f"{where} has a window of centre {centre:g} and width {width:g}; declare another."
            )
        return _through_window(values, centre, width, _function(dataset))
    if values.dtype == np.uint8:
        return values.astype(np.float64)
    raise DataError(f"{where} has no window of its own; declare a window.")


def _through_own_table(values: NDArray[Any], dataset: Dataset) -> NDArray[np.float64]:
    from pydicom.pixels.processing import apply_voi

    descriptor = dataset.VOILUTSequence[0].LUTDescriptor
    num_entries, first, depth = descriptor[0] or 1 << 16, int(descriptor[1]), int(descriptor[2])
    # pydicom wraps indices that are too wide for the entries, so it gets wide entries and no
    # index outside the table.
    descriptor[2] = 16
    indices = np.rint(np.clip(values, first, first + num_entries - 1)).astype(np.int32)
    shown = apply_voi(indices, dataset)
    descriptor[2] = depth
    return np.clip(shown * (_BRIGHTEST / ((1 << depth) - 1)), 0, _BRIGHTEST)


def _first(value: Any) -> float | None:
    """Return a number of the header, the first one of several."""
    if value is None or value == "":
        return None
    return float(value if isinstance(value, (int, float)) else value[0])


def _function(dataset: Dataset) -> str:
    return str(dataset.get("VOILUTFunction") or "LINEAR")


def _stored(
    values: NDArray[Any], stored: StoredValues, where: str, *, inverted: bool
) -> NDArray[Any]:
    if inverted:
        low, high = stored.intensity_range
        values = (low + high) - values.astype(np.float64)
    if stored.dtype == "float32":
        narrow = values.astype(np.float32)
        if not np.isfinite(narrow).all():
            raise DataError(f"{where} has values beyond float32; correct its rescale slope.")
        return narrow
    limits = np.iinfo(stored.dtype)
    lowest, highest = values.min(), values.max()
    if lowest < limits.min or highest > limits.max:
        raise DataError(
            f"{where} has values from {lowest:g} to {highest:g}, and {stored.dtype} holds "
            f"{limits.min} to {limits.max}; declare another dtype or a window."
        )
    whole = values.astype(stored.dtype)
    if not np.array_equal(whole, values):
        raise DataError(
            f"{where} has fractions, and {stored.dtype} holds none; declare float32 or a window."
        )
    return whole
