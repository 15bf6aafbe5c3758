"""Splits from one array of images, in which the splits follow one another."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from cohortium.data.examples import Examples
from cohortium.data.splits import Splits
from cohortium.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from cohortium.data.groups import GroupColumn
    from cohortium.data.task import Task


def build_splits(
    sizes: Mapping[str, int],
    images: NDArray[Any],
    labels: NDArray[Any],
    *,
    task: Task,
    names: Sequence[str],
    name: str,
    where: str,
    clients: NDArray[np.int64] | None = None,
    patients: NDArray[np.int64] | None = None,
    source: str = "",
    intensity_range: tuple[float, float] | None = None,
    groups: Sequence[GroupColumn] = (),
    codes: NDArray[np.int64] | None = None,
    centres: Sequence[str] = (),
) -> Splits:
    """Return the splits of arrays in which the splits follow one another.

    The splits share the memory of `images`.

    Args:
        sizes: Number of examples of "train", and perhaps of "validation" and "test", in the order
            of the arrays.
        images: All images, shape (N, C, …).
        labels: All labels, shape (N, …), of any form that the task reads.
        task: Meaning of a label.
        names: Names of the classes. Without them, the task derives them.
        name: Name of the data set.
        where: Name of the labels in an error.
        clients: The data's own grouping of all images, shape (N,), or None.
        patients: Patient of each image, shape (N,), or None.
        source: Work to cite.
        intensity_range: The stored values that become 0 and 1, which `uint8` images do not need.
        groups: The declared columns of groups.
        codes: Codes of all images in these columns, shape (N, G), or None.
        centres: Names of the centres that `clients` indexes.

    Raises:
        DataError: The labels are none of the task's, or two classes have one name. Or `Splits`
            refuses them.
    """
    stored = task.read_labels(labels, images.shape, where)
    ends = np.cumsum([0, *sizes.values()]).tolist()
    slices = dict(zip(sizes, (slice(*pair) for pair in pairwise(ends)), strict=True))
    named = task.named({split: stored[part] for split, part in slices.items()}, tuple(names), where)
    if len(set(named.names)) < len(named.names):
        raise DataError(f"{where}: two classes have one name; rename one.")
    parts = {
        split: Examples(
            images[part],
            stored[part],
            None if clients is None else clients[part],
            None if patients is None else patients[part],
            None if codes is None else codes[part],
        )
        for split, part in slices.items()
    }
    return Splits(
        name=name,
        task=named,
        train=parts["train"],
        validation=parts.get("validation"),
        test=parts.get("test"),
        source=source,
        intensity_range=intensity_range,
        groups=tuple(groups),
        centres=tuple(centres),
    )
