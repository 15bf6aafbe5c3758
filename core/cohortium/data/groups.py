"""Declared groups of images, such as sex, age or scanner, by which scores are reported.

A column of groups has few values. An image has one of them, or none is stated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import field, frozen

from cohortium.errors import DataError
from cohortium.text import is_printable, truncate

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOT_STATED: Final = -1
"""Code of an image whose group is not stated."""

MAX_COLUMNS: Final = 8
"""Largest number of columns of groups."""

MAX_VALUES: Final = 64
"""Largest number of different values of a column."""

MAX_VALUE_LENGTH: Final = 80
"""Largest number of characters in a value, or in the name of a column."""


def can_show(text: str) -> bool:
    """Return whether `text` can be the name of a value or column."""
    return 0 < len(text) <= MAX_VALUE_LENGTH and is_printable(text)


def _valid_values(_: object, __: object, values: tuple[str, ...]) -> None:
    if len(values) > MAX_VALUES:
        raise ValueError(f"{len(values):,} values, and at most {MAX_VALUES} {ADVICE}")
    if not all(map(can_show, values)):
        raise ValueError(
            "a value that is empty, cannot be shown, or has more than "
            f"{MAX_VALUE_LENGTH} characters; rename it"
        )
    if len(set(values)) < len(values):
        raise ValueError("one value twice; name each value once")


ADVICE: Final = (
    "can be scored one by one; write ranges, such as 60-69 in place of ages, or declare another "
    "column"
)
"""Remedy for too many values, as the end of an error's sentence."""


@frozen
class GroupColumn:
    """A declared column of groups.

    Attributes:
        name: Name of the column, such as "sex". A study declares the name, which is public.
        values: Names of its values, which codes index. A study that is to give scores of each
            declares them, too.
    """

    name: str
    values: tuple[str, ...] = field(validator=_valid_values)

    def __attrs_post_init__(self) -> None:
        """Refuse a name that cannot be shown."""
        if not can_show(self.name):
            raise ValueError(f"the name {truncate(self.name)}, which cannot be shown; rename it")


@frozen(eq=False, kw_only=True)
class Grouping:
    """Images by centre, or by the values of one column of groups.

    Attributes:
        name: Name of the column, or "centre".
        is_centre: Whether the values are the data's own centres.
        values: The values that images have, in the column's order. "" if it is not stated.
        codes: Position of each image's value in `values`, shape (N,).
    """

    name: str
    is_centre: bool
    values: tuple[str, ...]
    codes: NDArray[np.int64] = field(repr=False)

    @codes.validator
    def _valid_codes(self, _: object, codes: NDArray[np.int64]) -> None:
        if codes.ndim != 1 or codes.dtype.kind not in "iu":
            raise ValueError(f"the codes of {truncate(self.name)} are no row of whole numbers")
        if codes.size and not 0 <= codes.min() <= codes.max() < len(self.values):
            raise ValueError(f"the codes of {truncate(self.name)} exceed its values")

    def is_same(self, other: Grouping) -> bool:
        """Return whether both are one grouping of the same images."""
        return (self.name, self.is_centre, self.values) == (
            other.name,
            other.is_centre,
            other.values,
        ) and np.array_equal(self.codes, other.codes)


def group_codes(codes: NDArray[Any], length: int, where: str) -> NDArray[np.int64]:
    """Return codes of groups of shape (N, G), or (N,) for one column, as (N, G).

    Args:
        codes: Codes from 0, or -1 where the group is not stated.
        length: Number of images, N.
        where: Name of the array in an error.

    Raises:
        DataError: They are not integers of such a shape, or below -1, or 64 or more.
    """
    if codes.dtype.kind not in "iu":
        raise DataError(
            f"{where} is {codes.dtype}; save whole numbers from 0, and -1 if a group is not stated."
        )
    is_flat = codes.ndim == 1
    if codes.ndim not in (1, 2) or len(codes) != length:
        raise DataError(
            f"{where} has shape {codes.shape}, but there are {length} images; save one row for "
            "each image, with a column for each kind of group."
        )
    if codes.size and not NOT_STATED <= codes.min() <= codes.max() < MAX_VALUES:
        raise DataError(
            f"{where} has values from {codes.min()} to {codes.max()}; number the groups from 0, at "
            f"most {MAX_VALUES} of them, and write -1 if one is not stated."
        )
    return codes.reshape(length, 1 if is_flat else codes.shape[1]).astype(np.int64)
