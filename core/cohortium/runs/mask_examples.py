"""A few test images with their true and predicted masks, for a report.

Test images are public by the data set's contract. The images of sites never get here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cohortium.data.intensity import to_unit_range
from cohortium.data.pixels import FLAT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cohortium.data.examples import DataSpec, Examples
    from cohortium.data.predictions import Predictions

MASK_EXAMPLES: Final = "simulation/mask_examples.npz"
"""Path in the folder of facts that only a simulator knows."""

MAX_EXAMPLES: Final = 4
"""Largest number of images."""

MAX_SIDE: Final = 256
"""Largest height and width in pixels."""

COLOURS: Final = 3
"""Number of channels: red, green and blue."""


def choose_mask_examples(
    test: Examples, predictions: Predictions, spec: DataSpec
) -> dict[str, NDArray[np.uint8]] | None:
    """Return images with masks as arrays of bytes, or None if labels are no masks.

    A volume is shown by its middle slice. Larger images lose rows and columns, as their masks do.

    Args:
        test: Public test images.
        predictions: Predictions for all of them.
        spec: Public facts about the data.

    Returns:
        `images` of shape (N, H, W, 3), and `truth` and `called` of shape (N, H, W).
    """
    shape = (len(test), *spec.size)
    if test.labels.shape != shape or predictions.values.shape != shape:
        return None
    chosen = np.unique(np.linspace(0, len(test) - 1, MAX_EXAMPLES).round().astype(np.int64))
    grey = to_unit_range(np.asarray(test.images[chosen]), spec).numpy()
    bytes_of = (255 * grey).round().astype(np.uint8)
    found = {"truth": test.labels[chosen], "called": predictions.values[chosen]}
    if len(spec.size) > FLAT:
        middle = spec.size[0] // 2
        bytes_of = bytes_of[:, :, middle]
        found = {name: masks[:, middle] for name, masks in found.items()}
    step = -(-max(bytes_of.shape[2:]) // MAX_SIDE)
    shown = _with_colours(bytes_of)[:, ::step, ::step]
    masks: dict[str, Any] = {name: part[:, ::step, ::step] for name, part in found.items()}
    return {"images": shown, **{name: part.astype(np.uint8) for name, part in masks.items()}}


def _with_colours(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images of shape (N, H, W, 3), grey ones from the first channel."""
    channels = images if images.shape[1] == COLOURS else images[:, :1].repeat(COLOURS, 1)
    return np.ascontiguousarray(channels.transpose(0, 2, 3, 1))
