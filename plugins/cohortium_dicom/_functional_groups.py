"""Values of an enhanced multi-frame file, moved to where single-frame files have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cohortium.plugin import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydicom.dataset import Dataset

_GROUPS: Final = {
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction"),
    "PixelMeasuresSequence": ("PixelSpacing",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
}
"""Elements of a functional group, by its name (PS3.3, C.7.6.16)."""


def flatten_functional_groups(dataset: Dataset, path: Path) -> None:
    """Copy the values that all frames of a file share into its header.

    Raises:
        DataError: The frames differ in their rescaling or their window.
    """
    for group, keywords in _GROUPS.items():
        found = list(_items(dataset, group))
        for keyword in keywords:
            values = [item.get(keyword) for item in found]
            if not values or all(value is None for value in values):
                continue
            if all(value == values[0] for value in values):
                setattr(dataset, keyword, values[0])
            elif group in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                raise DataError(
                    f"{path} has frames that differ in {keyword}; split it into files of one frame."
                )


def _items(dataset: Dataset, group: str) -> Iterator[Any]:
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for frame in dataset.get(name) or ():
            yield from frame.get(group) or ()
