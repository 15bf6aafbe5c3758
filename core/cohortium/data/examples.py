"""Labelled images as values: a data set's content and public facts."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen
from attrs.validators import and_, ge, le, max_len, min_len, optional

from cohortium.errors import DataError
from cohortium.text import is_printable, truncate

if TYPE_CHECKING:
    from numpy.typing import NDArray


MAX_EXAMPLES = 10_000_000_000
"""Largest number of examples that all sites together may declare.

A larger number is surely a mistake.
"""


MAX_CLASSES = 10_000

MAX_NAME_LENGTH = 200
"""Largest number of characters in a class' name."""

MAX_PIXELS = 1 << 27
"""Largest number of values of one image.

They take half a gibibyte as the numbers with which torch computes.
"""


def _can_be_shown(_: object, __: object, names: tuple[str, ...]) -> None:
    for name in names:
        if not is_printable(name) or len(name) > MAX_NAME_LENGTH:
            raise ValueError(
                f"the class name {truncate(name)} cannot be shown: it is longer than "
                f"{MAX_NAME_LENGTH} "
                "characters, or has some that do not show themselves; rename it"
            )


def to_c_order(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the same images in C order, with its strides alone.

    If there is one channel, NumPy calls every stride of it C order. Torch reads the stride. It may
    take the images for channels-last, convolve them along another path and compute other last bits.
    So equal images must have equal strides, regardless of their source.
    """
    # A view of flat memory derives its strides from the shape, those of length 1 too.
    return np.ascontiguousarray(images).reshape(-1).reshape(np.shape(images))


@frozen(kw_only=True)
class DataSpec:
    """Public facts about the data: shapes, classes and the *declared* size.

    Attributes:
        channels: Number of channels of an image, C. 1 for grey.
        height: Height in pixels, H.
        width: Width in pixels, W.
        classes: Names of the classes, which labels index.
        examples: Declared number of training examples over all sites. It is public, it scales
            weights and noise, and is never counted from one site's data.
        patients: Declared number of patients over all sites, or None if examples name none.
    """

    channels: int = field(validator=[ge(1), le(1 << 10)])
    height: int = field(validator=[ge(1), le(1 << 15)])
    width: int = field(validator=[ge(1), le(1 << 15)])
    classes: tuple[str, ...] = field(validator=[min_len(1), max_len(MAX_CLASSES), _can_be_shown])
    examples: int = field(validator=[ge(1), le(MAX_EXAMPLES)])
    patients: int | None = field(default=None, validator=optional(and_(ge(1), le(MAX_EXAMPLES))))

    def __attrs_post_init__(self) -> None:
        """Refuse images that no network could take."""
        if self.channels * self.height * self.width > MAX_PIXELS:
            raise ValueError(
                f"an image of shape {self.shape} has more than {MAX_PIXELS:,} values; cut it into "
                "smaller ones"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image: (C, H, W)."""
        return self.channels, self.height, self.width


@frozen(eq=False)
class Examples:
    """Labelled images of a data set.

    Attributes:
        images: Images, shape (N, C, H, W), `uint8`. They are stored in C order, regardless of their
            original order, so that equal images give equal bits.
        labels: Labels, shape (N,), `int64`, from 0.
        clients: The data's own grouping (hospital, scanner, …), shape (N,), or None.
        patients: Patient of each image, shape (N,), or None.

    Raises:
        DataError: The arrays do not match one another.
    """

    images: NDArray[np.uint8] = field(repr=False, converter=to_c_order)
    labels: NDArray[np.int64] = field(repr=False)
    clients: NDArray[np.int64] | None = field(default=None, repr=False)
    patients: NDArray[np.int64] | None = field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        """Refuse arrays that do not belong together."""
        if self.images.ndim != 4 or self.images.dtype != np.uint8:  # noqa: PLR2004
            raise DataError(
                f"images must be uint8 of shape (N, C, H, W), not {self.images.dtype} "
                f"of shape {self.images.shape}."
            )
        for name in ("labels", "clients", "patients"):
            column: NDArray[np.int64] | None = getattr(self, name)
            if column is not None and column.shape != (len(self.images),):
                raise DataError(
                    f"{name} has shape {column.shape}, but there are {len(self.images)} images."
                )

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 of all data, with which a hospital detects changes."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        for column in (self.images, self.labels, self.clients, self.patients):
            digest.update(b"-" if column is None else b"+" + np.ascontiguousarray(column).tobytes())
        return digest.digest()

    def select(self, index: NDArray[np.int64]) -> Examples:
        """Return the examples at `index`, copied."""
        clients = None if self.clients is None else self.clients[index]
        patients = None if self.patients is None else self.patients[index]
        return Examples(self.images[index], self.labels[index], clients, patients)


@frozen(eq=False, kw_only=True)
class Splits:
    """A data set: examples for training, for choices and for scores.

    Attributes:
        name: Name of the data that figures are reported with.
        classes: Names of the classes.
        train: Examples that are partitioned among the sites.
        validation: Public images for scores during a run, or None.
        test: Public images for the scores of the result, or None.
        source: Work to cite.

    Raises:
        DataError: A split is empty, differs in shape, or has a label without a class. Or a name has
            characters that cannot be shown.
    """

    name: str
    classes: tuple[str, ...]
    train: Examples
    validation: Examples | None = None
    test: Examples | None = None
    source: str = ""

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
            if part.labels.min() < 0 or part.labels.max() >= len(self.classes):
                raise DataError(
                    f"{self.name}: {name} labels must lie in 0…{len(self.classes) - 1}, "
                    f"found {part.labels.min()}…{part.labels.max()}."
                )
        try:
            _ = self.spec
        except ValueError as error:
            raise DataError(f"{self.name}: {error}.") from error

    def require_learnable(self) -> None:
        """Refuse data on which no training is distinguishable from guessing.

        Raises:
            DataError: All training images are of one class. Or there is no training image of a
                class that is scored, or that has no name.
        """
        known = set(np.unique(self.train.labels).tolist())
        if len(known) == 1:
            raise DataError(
                f"{self.name}: all training images are of class {self.classes[min(known)]!r}, and "
                "of one class alone every answer is right; there must be two or more."
            )
        # Numbers are not names that a person has given: each is a class only if some image has it.
        is_named = self.classes != tuple(map(str, range(len(self.classes))))
        if not is_named and len(known) < len(self.classes):
            empty = min(set(range(len(self.classes))) - known)
            raise DataError(
                f"{self.name}: no training image is of class {empty}; number the classes from 0 "
                "without gaps, or name them where that is a class."
            )
        for name, part in (("validation", self.validation), ("test", self.test)):
            extra = set() if part is None else {*np.unique(part.labels).tolist()} - known
            if extra:
                raise DataError(
                    f"{self.name}: {name} images are of class {self.classes[min(extra)]!r}, of "
                    "which there is no training image; add some, or leave those images out."
                )

    @property
    def spec(self) -> DataSpec:
        """Public facts about the training examples."""
        _, channels, height, width = self.train.images.shape
        return DataSpec(
            channels=channels,
            height=height,
            width=width,
            classes=self.classes,
            examples=len(self.train),
            patients=None if self.train.patients is None else len(np.unique(self.train.patients)),
        )
