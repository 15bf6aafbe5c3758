"""Labelled images as values: a data set's content and public facts."""

from __future__ import annotations

import hashlib
import math
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
from attrs import Factory, evolve, field, frozen
from attrs.validators import and_, deep_iterable, ge, in_, le, max_len, min_len, optional

from cohortium.data.groups import GroupColumn  # noqa: TC001 - as for `Task`
from cohortium.data.scratch import copied, select
from cohortium.data.task import Task  # noqa: TC001 - the type is read to build a `DataSpec`
from cohortium.errors import DataError

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

    def difference(self, other: DataSpec) -> str:
        """Return the first difference between two kinds of images, in words.

        Args:
            other: A description for which `describes` is false.
        """
        if other.classes != self.classes:
            unknown = [name for name in other.classes if name not in self.classes]
            if unknown:
                return f"the label {unknown[0]!r} is none of {', '.join(self.classes)}"
            return f"their classes are {', '.join(other.classes)}, not {', '.join(self.classes)}"
        if type(other.task) is not type(self.task):
            return f"their task is {type(other.task).__name__}, not {type(self.task).__name__}"
        if other.task != self.task:
            return f"their task is {other.task}, not {self.task}"
        if other.shape != self.shape or other.pixel_type != self.pixel_type:
            return (
                f"they are {other.pixel_type} of shape {other.shape}, not {self.pixel_type} of "
                f"shape {self.shape}"
            )
        return f"their intensities are {other.intensity_range}, not {self.intensity_range}"

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
