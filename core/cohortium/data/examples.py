"""Labelled images as values: a data set's content and public facts."""

from __future__ import annotations

import hashlib
import math
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

import numpy as np
from attrs import Factory, evolve, field, frozen
from attrs.validators import and_, deep_iterable, ge, in_, le, max_len, min_len, optional

from cohortium.data.groups import MAX_COLUMNS, NOT_STATED, GroupColumn
from cohortium.data.scratch import copied, select
from cohortium.data.task import Task  # noqa: TC001 - the type is read to build a `DataSpec`
from cohortium.errors import DataError
from cohortium.text import is_printable, truncate

if TYPE_CHECKING:
    from numpy.typing import NDArray


MAX_EXAMPLES = 10_000_000_000
"""Largest number of examples that all sites together may declare.

A larger number is surely a mistake.
"""


MAX_INTENSITY: Final = 1e9
"""Largest absolute value of a declared intensity."""

MAX_PIXELS = 1 << 27
"""Largest number of values of one image.

They take half a gibibyte as the numbers with which torch computes.
"""


def to_c_order(images: NDArray[Any]) -> NDArray[Any]:
    """Return the same images in C order, with its strides alone.

    If there is one channel, NumPy calls every stride of it C order. Torch reads the stride. It may
    take the images for channels-last, convolve them along another path and compute other last bits.
    So equal images must have equal strides, regardless of their source.
    """
    held = images if images.flags.c_contiguous else copied(images)
    # A view of flat memory derives its strides from the shape, those of length 1 too.
    return np.asarray(held).reshape(-1).reshape(np.shape(images))


PixelType = Literal["uint8", "uint16", "int16", "float32"]
"""Type of stored intensities."""

RANKS: Final = (2, 3)
"""Numbers of axes of an image, without channels: height and width, or depth before them."""


def intensity_range_of(
    pixel_type: str, declared: tuple[float, float] | None
) -> tuple[float, float]:
    """Return the declared range of intensities, or that of 8 bits.

    Raises:
        ValueError: There is no declared range, and the type does not imply one.
    """
    if declared is not None:
        return declared
    if pixel_type == "uint8":
        return (0.0, 255.0)
    raise ValueError(
        f"'intensity_range' must be declared for {pixel_type} images: the two stored values that "
        "become 0 and 1, as in [-1000, 1000]"
    )


def valid_intensity_range(_: object, __: object, given: tuple[float, float] | None) -> None:
    """Refuse a range whose ends are no ascending numbers.  None is no range.

    A validator of attrs.

    Args:
        _: The instance.
        __: The attribute.
        given: The range.

    Raises:
        ValueError: It is no such range.
    """
    if given is not None and not -MAX_INTENSITY <= given[0] < given[1] <= MAX_INTENSITY:
        raise ValueError(
            f"'intensity_range' is {list(given)}; give two numbers, the lower one first"
        )


@frozen(kw_only=True)
class DataSpec:
    """Public facts about the data: shapes, intensities, task and the *declared* size.

    Attributes:
        channels: Number of channels of an image, C. 1 for grey.
        size: Axes of an image in pixels: (H, W), or (D, H, W) for a volume.
        task: Meaning of a label, with the names of the classes.
        pixel_type: Type of the stored intensities.
        intensity_range: The stored values that become 0 and 1. Values beyond become 0 or 1 as well.
            By default (0, 255) for `uint8`. Every other type needs a declaration. It is never
            learned from the data of a site.
        examples: Declared number of training examples over all sites. It is public, it scales
            weights and noise, and is never counted from one site's data.
        patients: Declared number of patients over all sites, or None if examples name none.
        groups: Columns of groups by which an evaluation at the sites gives scores.  They are
            declared, because their values would otherwise tell of the training data.
    """

    channels: int = field(validator=[ge(1), le(1 << 10)])
    size: tuple[int, ...] = field(
        validator=deep_iterable(and_(ge(1), le(1 << 15)), and_(min_len(2), max_len(3)))
    )
    task: Task
    pixel_type: PixelType = field(default="uint8", validator=in_(get_args(PixelType)))
    intensity_range: tuple[float, float] = field(
        default=Factory(lambda self: intensity_range_of(self.pixel_type, None), takes_self=True),
        validator=valid_intensity_range,
    )
    examples: int = field(validator=[ge(1), le(MAX_EXAMPLES)])
    patients: int | None = field(default=None, validator=optional(and_(ge(1), le(MAX_EXAMPLES))))
    groups: tuple[GroupColumn, ...] = ()

    def __attrs_post_init__(self) -> None:
        """Refuse images that no network could take, and a task without names."""
        if math.prod(self.shape) > MAX_PIXELS:
            raise ValueError(
                f"an image of shape {self.shape} has more than {MAX_PIXELS:,} values; cut it into "
                "smaller ones"
            )
        if not self.classes:
            raise ValueError("the task has no names; give the names of its classes")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image: (C, H, W) or (C, D, H, W)."""
        return (self.channels, *self.size)

    def describes(self, other: DataSpec) -> bool:
        """Return whether both describe the same kind of images and labels.

        The number of examples and the groups may differ.

        Args:
            other: The other description.
        """
        same = ("shape", "pixel_type", "intensity_range", "task")
        return all(getattr(self, name) == getattr(other, name) for name in same)

    def group_codes(self, examples: Examples, groups: tuple[GroupColumn, ...]) -> Examples:
        """Return `examples` with the columns of groups that are declared here, in their order.

        Args:
            examples: Examples of data with the columns `groups`.
            groups: Those columns.

        Raises:
            DataError: A declared column is missing, or has other values.
        """
        places = []
        for column in self.groups:
            if column not in groups:
                raise DataError(
                    f"the data have no column of groups {column.name!r} with the values "
                    f"{', '.join(column.values)}; name it, with exactly these values."
                )
            places.append(groups.index(column))
        codes = None if examples.groups is None else examples.groups[:, places]
        return evolve(examples, groups=codes)

    def sample_images(self, count: int, rng: np.random.Generator) -> NDArray[Any]:
        """Return made-up images, shape (count, C, …), with each intensity of the range.

        Args:
            count: Number of images.
            rng: The only source of chance.
        """
        shape = (count, *self.shape)
        if self.pixel_type == "uint8":
            return rng.integers(0, 256, shape, dtype=np.uint8)
        drawn = rng.uniform(*self.intensity_range, shape)
        if self.pixel_type != "float32":
            limits = np.iinfo(self.pixel_type)
            drawn = drawn.clip(limits.min, limits.max)
        return drawn.astype(self.pixel_type)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the task's classes."""
        return self.task.names

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of a network's output for one image."""
        return self.task.output_shape(self.size)


@frozen(eq=False)
class Examples:
    """Labelled images of a data set.

    Attributes:
        images: Images, shape (N, C, H, W) or (N, C, D, H, W), of a `PixelType`. They are in C
            order, regardless of their original order, so that equal images give equal bits.
        labels: Labels, shape (N, …), in the form of the data set's task.
        clients: The data's own grouping (hospital, scanner, …), shape (N,), or None.
        patients: Patient of each image, shape (N,), or None.
        groups: Codes of each image in the declared columns of groups, shape (N, G), or None. -1
            means that a group is not stated.

    Raises:
        DataError: The arrays do not match one another.
    """

    images: NDArray[Any] = field(repr=False, converter=to_c_order)
    labels: NDArray[Any] = field(repr=False)
    clients: NDArray[np.int64] | None = field(default=None, repr=False)
    patients: NDArray[np.int64] | None = field(default=None, repr=False)
    groups: NDArray[np.int64] | None = field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        """Refuse arrays that do not belong together."""
        if self.images.ndim - 2 not in RANKS or self.images.dtype.name not in get_args(PixelType):
            raise DataError(
                "images must be uint8, uint16, int16 or float32 of shape (N, C, H, W) or "
                f"(N, C, D, H, W), not {self.images.dtype} of shape {self.images.shape}."
            )
        if self.labels.shape[:1] != (len(self.images),):
            raise DataError(
                f"labels has shape {self.labels.shape}, but there are {len(self.images)} images."
            )
        for name in ("clients", "patients"):
            column: NDArray[np.int64] | None = getattr(self, name)
            if column is not None and column.shape != (len(self.images),):
                raise DataError(
                    f"{name} has shape {column.shape}, but there are {len(self.images)} images."
                )
        groups = self.groups
        if groups is not None and (groups.ndim != 2 or len(groups) != len(self.images)):  # noqa: PLR2004 - (N, G)
            raise DataError(
                f"groups has shape {groups.shape}, but there are {len(self.images)} images; give a "
                "row for each."
            )

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 of all data that training reads, with which a hospital detects changes.

        Training reads no groups.
        """
        digest = hashlib.sha256(repr(self.images.shape).encode())
        for column in (self.images, self.labels, self.clients, self.patients):
            digest.update(b"-" if column is None else b"+")
            if column is not None:
                digest.update(np.ascontiguousarray(column).reshape(-1).view(np.uint8).data)
        return digest.digest()

    def select(self, index: NDArray[np.int64]) -> Examples:
        """Return the examples at `index`, copied."""
        clients = None if self.clients is None else self.clients[index]
        patients = None if self.patients is None else self.patients[index]
        groups = None if self.groups is None else self.groups[index]
        return Examples(select(self.images, index), self.labels[index], clients, patients, groups)


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
