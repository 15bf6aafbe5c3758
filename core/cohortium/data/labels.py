"""Columns of labels as people save them, checked and converted.

A label is a whole number, which names one class that occurs. A code for "ungraded" is not a class,
nor is a number that no image has: either would appear in every table. So the module refuses labels
that begin at 1, or leave most numbers without an image. It does not if the classes are named.
`Splits.require_learnable` makes the other checks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cohortium.errors import DataError
from cohortium.text import is_printable, truncate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

MAX_CLASSES: Final = 10_000

MAX_NAME_LENGTH: Final = 200
"""Largest number of characters in a class' name."""

MAX_SHOWN: Final = 6
"""Largest number of labels that an error lists."""


def valid_names(_: object, __: object, names: tuple[str, ...]) -> None:
    """Refuse names of classes that cannot be shown, or are too many.

    A validator of attrs.

    Args:
        _: The instance.
        __: The attribute.
        names: Names of the classes.

    Raises:
        ValueError: There is such a name.
    """
    if len(names) > MAX_CLASSES:
        raise ValueError(f"there are {len(names):,} class names, and at most {MAX_CLASSES:,} fit")
    for name in names:
        if not is_printable(name) or len(name) > MAX_NAME_LENGTH:
            raise ValueError(
                f"the class name {truncate(name)} cannot be shown: it is longer than "
                f"{MAX_NAME_LENGTH} characters, or has some that do not show themselves; rename it"
            )


def integer_column(values: NDArray[Any], length: int, where: str) -> NDArray[np.int64]:
    """Return integers of shape (N,) or (N, 1) as (N,).

    Raises:
        DataError: The values are not integers of such a shape.
    """
    if values.dtype.kind not in "iu":
        raise DataError(
            f"{where} is {values.dtype}; save whole numbers, such as "
            f"uint8{_dtype_advice(values, where)}."
        )
    if values.shape not in {(length,), (length, 1)}:
        flat = ": reshape(-1)" if values.size == length else ""
        raise DataError(
            f"{where} has shape {values.shape}, but there are {length} images; save one value for "
            f"each image{flat}."
        )
    if values.max(initial=0) > np.iinfo(np.int64).max:
        raise DataError(f"{where} has values beyond 64 signed bits; number them from 0.")
    return values.reshape(length).astype(np.int64)


def label_column(values: NDArray[Any], length: int, where: str) -> NDArray[np.int64]:
    """Return labels of shape (N,) or (N, 1) as (N,).

    Raises:
        DataError: The values are not integers of such a shape, or not numbers of classes.
    """
    if values.ndim == 2 and values.shape[1] > 1 and len(values) == length:  # noqa: PLR2004 - (N, K)
        raise DataError(
            f"{where} has shape {values.shape}, several values for each "
            f"image{_multilabel_advice(values)}."
        )
    labels = integer_column(values, length, where)
    low, high = labels.min(initial=0), labels.max(initial=0)
    if low < 0 or high >= MAX_CLASSES:
        marks = "; a negative one often marks an image without a class: leave those out"
        raise DataError(
            f"{where} has values from {labels.min()} to {labels.max()}; number the classes from 0, "
            f"at most {MAX_CLASSES} of them{marks if low < 0 else ''}."
        )
    return labels


def class_names(
    parts: Mapping[str, NDArray[np.int64]], named: Sequence[str], where: str
) -> tuple[str, ...]:
    """Return the names of the classes, given or derived from the labels.

    Without given names, the names are the numbers of the labels.

    Args:
        parts: Labels by split, including those of `train`.
        named: Names of the classes, if they are given.
        where: Name of the file in an error.

    Raises:
        DataError: A label is beyond the names. Or, without names, the labels begin at 1, most
            numbers up to the greatest are no label, or all labels are equal.
    """
    held = {split: labels for split, labels in parts.items() if len(labels)}
    if named:
        for split, labels in held.items():
            if labels.max() >= len(named):
                raise DataError(
                    f"{where}: {split}_labels must lie in 0…{len(named) - 1}, found "
                    f"{labels.min()}…{labels.max()}; {_out_of_range_advice(labels, len(named))}."
                )
        return tuple(named)
    found = sorted({int(label) for labels in held.values() for label in np.unique(labels)})
    # One hospital may lack some classes. `Splits.require_learnable` checks a whole study.
    begins_at_one = found == list(range(1, len(found) + 1))
    if len(found) > 1 and (begins_at_one or found[-1] + 1 > 2 * len(found)):
        raise DataError(
            f"{where}: its labels are {_format_labels(found)}; {_numbering_advice(found)}."
        )
    if len(found) == 1 and "train" in held:
        raise DataError(
            f"{where}: all its labels are {found[0]}, and of one class alone every answer is "
            "right; save images of two or more."
        )
    return tuple(str(label) for label in range(max(found, default=0) + 1))


def _dtype_advice(values: NDArray[Any], where: str) -> str:
    """Return advice about a column that has values other than whole numbers."""
    kind = values.dtype.kind
    if kind == "b":
        return ": astype('uint8') gives 0 and 1"
    if kind in "US":
        numbered = ": numpy.unique(…, return_inverse=True) numbers them, over all splits at once"
        named = "; names of classes go into an array 'classes', in the order of their numbers"
        return numbered + (named if where.endswith("_labels") else "")
    if kind == "f" and values.size:
        if np.isnan(values).any():
            return ": nan is no class, so leave out examples that have none"
        if (values != np.round(values)).any():
            return ", for these are measurements; a class is one of a few numbers"
        return ": astype('int64') loses nothing here"
    return ""


def _multilabel_advice(values: NDArray[Any]) -> str:
    """Return advice about several values for each image."""
    single = "only one class for each image can be learned"
    if values.dtype.kind not in "biuf":
        return f"; {single}, so choose one column"
    is_binary = bool(((values == 0) | (values == 1)).all())
    sums = values.sum(1)
    if is_binary and (sums == 1).all():
        return ", of which one is 1 (one-hot); save labels.argmax(1)"
    if values.dtype.kind == "f" and (values >= 0).all() and np.allclose(sums, 1, atol=1e-3):
        return (
            " that add up to 1, as probabilities do; save one class for each, or labels.argmax(1)"
        )
    if is_binary:
        return (
            ': several findings may hold at once there; set task = "multilabel" of the data set, '
            "or choose one column"
        )
    return f"; {single}, so choose one column"


def _out_of_range_advice(labels: NDArray[np.int64], named: int) -> str:
    """Return advice about labels beyond the names."""
    beyond = np.unique(labels[labels >= named])
    if labels.min() > 0 and labels.max() == named:
        return "they begin at 1, so subtract 1, in all splits"
    if len(beyond) == 1 and beyond[0] > named:
        return f"{_sentinel_advice(int(beyond[0]))}, or name every class up to it"
    return "give as many names as there are classes"


def _numbering_advice(found: Sequence[int]) -> str:
    """Return advice about labels that are not numbered from 0 without gaps."""
    *others, top = found
    remedy = "number the classes from 0 without gaps, or name all of them ('classes')"
    if found == list(range(1, top + 1)):
        return (
            "they begin at 1, so that a class 0 would be empty: subtract 1, or name all classes "
            "('classes') where there is a class 0"
        )
    if others == list(range(len(others))) and len(others) > 1:
        return f"{_sentinel_advice(top)}; else {remedy}"
    return remedy


def _sentinel_advice(label: int) -> str:
    return (
        f"{label} lies apart, as a code for 'ungraded' would: leave those images out if it is one"
    )


def _format_labels(labels: Sequence[int]) -> str:
    shown = list(map(str, labels))
    if len(shown) > MAX_SHOWN:
        shown = [*shown[: MAX_SHOWN - 2], "…", shown[-1]]
    return ", ".join(shown)
