"""A data set as a value: its splits, which fit each other, and their public facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from attrs import field, frozen

from cohortium.data.examples import (
    DataSpec,
    Examples,
    intensity_range_of,
    valid_intensity_range,
)
from cohortium.data.groups import MAX_COLUMNS, NOT_STATED, GroupColumn
from cohortium.data.task import Task  # noqa: TC001 - the type is read to build a value
from cohortium.errors import DataError
from cohortium.text import is_printable, truncate

if TYPE_CHECKING:
    from cohortium.data.examples import PixelType


def _distinct_columns(splits: Splits, _: object, columns: tuple[GroupColumn, ...]) -> None:
    names = [column.name for column in columns]
    if len(names) > MAX_COLUMNS or len(set(names)) < len(names):
        raise DataError(
            f"{splits.name}: there are {len(names)} columns of groups; declare at most "
            f"{MAX_COLUMNS}, each once."
        )


class UndeclaredRangeError(DataError):
    """Images whose type implies no range of intensities, and none is declared."""


@frozen(eq=False, kw_only=True)
class Splits:
    """A data set: examples for training, for choices and for scores.

    Attributes:
        name: Name of the data that figures are reported with.
        task: Meaning of a label, with the names of the classes.
        train: Examples that are partitioned among the sites.
        validation: Public images for scores during a run, or None.
        test: Public images for the scores of the result, or None.
        source: Work to cite.
        intensity_range: The stored values that become 0 and 1. None for `uint8` means (0, 255).
        groups: The declared columns of groups, which the columns of `Examples.groups` follow.
        centres: Names of the data's own centres, which `Examples.clients` indexes. Without them, a
            centre has its number.

    Raises:
        DataError: A split is empty, differs in shape or type, or has a label that is none of the
            task's. Or groups or centres do not fit their
            names. Or a name has characters that cannot be shown.
    """

    name: str
    task: Task
    train: Examples
    validation: Examples | None = None
    test: Examples | None = None
    source: str = ""
    intensity_range: tuple[float, float] | None = field(
        default=None, validator=valid_intensity_range
    )
    groups: tuple[GroupColumn, ...] = field(default=(), validator=_distinct_columns)
    centres: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        """Refuse splits that do not belong together."""
        for text in (self.name, self.source):
            if not is_printable(text):
                raise DataError(f"the title or source {truncate(text)} cannot be shown; rename it.")
        for name in ("train", "validation", "test"):
            part: Examples | None = getattr(self, name)
            if part is None:
                continue
            if len(part) == 0:
                raise DataError(f"{self.name}: the {name} split holds no images.")
            if part.images.shape[1:] != self.train.images.shape[1:]:
                raise DataError(
                    f"{self.name}: {name} images have shape {part.images.shape[1:]}, "
                    f"training images {self.train.images.shape[1:]}."
                )
            if part.images.dtype != self.train.images.dtype:
                raise DataError(
                    f"{self.name}: {name} images are {part.images.dtype}, training images "
                    f"{self.train.images.dtype}; save them alike."
                )
            if fault := self.task.check_labels(part.labels, part.images.shape[2:]):
                raise DataError(f"{self.name}: {name} labels {fault}.")
            self._check_groups(name, part)
        try:
            _ = self.spec
        except ValueError as error:
            is_undeclared = self.intensity_range is None and self.train.images.dtype != np.uint8
            kind = UndeclaredRangeError if is_undeclared else DataError
            raise kind(f"{self.name}: {error}.") from error

    def _check_groups(self, name: str, part: Examples) -> None:
        """Refuse codes of groups, or centres, that have no name."""
        codes, clients = part.groups, part.clients
        if codes is not None and codes.shape[1] != len(self.groups):
            raise DataError(
                f"{self.name}: the {name} split has {codes.shape[1]} columns of groups, and "
                f"{len(self.groups)} are named; name each."
            )
        for index, column in enumerate(self.groups if codes is not None else ()):
            assert codes is not None
            found = codes[:, index]
            if len(found) and not NOT_STATED <= found.min() <= found.max() < len(column.values):
                raise DataError(
                    f"{self.name}: {name} images have codes from {found.min()} to {found.max()} in "
                    f"the groups of {column.name!r}, which has {len(column.values)} values; number "
                    "them from 0, and write -1 if one is not stated."
                )
        if self.centres and clients is not None and len(clients):
            low, high = int(clients.min()), int(clients.max())
            if low < 0 or high >= len(self.centres):
                raise DataError(
                    f"{self.name}: {name} images are of centres {low} to {high}, and "
                    f"{len(self.centres)} centres have a name; name each."
                )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the task's classes."""
        return self.task.names

    def require_learnable(self) -> None:
        """Refuse data on which no training is distinguishable from guessing.

        Raises:
            DataError: All training images are of one class. Or there is no training image of a
                class that is scored, or that has no name.
        """
        known = self.task.counts(self.train.labels) > 0
        alike = self.task.strata(self.train.labels)
        if len(np.unique(alike)) == 1 and known.sum() <= 1:
            held = self.classes[int(known.argmax())] if known.any() else "none"
            raise DataError(
                f"{self.name}: all training images are of class {held!r}, and "
                "of one class alone every answer is right; there must be two or more."
            )
        # Numbers are not names that a person has given: each is a class only if some image has it.
        is_named = self.classes != tuple(map(str, range(len(self.classes))))
        if not is_named and not known.all():
            raise DataError(
                f"{self.name}: no training image is of class {int(known.argmin())}; number the "
                "classes from 0 without gaps, or name them where that is a class."
            )
        for name, part in (("validation", self.validation), ("test", self.test)):
            extra = np.zeros(0, int)
            if part is not None:
                extra = np.flatnonzero((self.task.counts(part.labels) > 0) & ~known)
            if len(extra):
                raise DataError(
                    f"{self.name}: {name} images are of class {self.classes[extra[0]]!r}, of "
                    "which there is no training image; add some, or leave those images out."
                )

    @property
    def spec(self) -> DataSpec:
        """Public facts about the training examples."""
        _, channels, *size = self.train.images.shape
        pixel_type = cast("PixelType", self.train.images.dtype.name)
        return DataSpec(
            channels=channels,
            size=tuple(size),
            task=self.task,
            pixel_type=pixel_type,
            intensity_range=intensity_range_of(pixel_type, self.intensity_range),
            examples=len(self.train),
            patients=None if self.train.patients is None else len(np.unique(self.train.patients)),
        )
