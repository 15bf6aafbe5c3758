"""Reading of single image files as a data set reads its own, with the way back for masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray


@frozen(kw_only=True, eq=False)
class MaskFormat:
    """A format of mask files that lie on their image in a viewer.

    Attributes:
        suffix: Ending of the files, such as ".nii.gz".
        encode: Returns the file's content for a mask, shape (H, W) or (D, H, W). The mask has a
            class for each pixel of the image before it was resized.
    """

    suffix: str
    encode: Callable[[NDArray[Any]], bytes] = field(repr=False)


@frozen(kw_only=True, eq=False)
class FileImage:
    """An image file as a data set reads it.

    Attributes:
        pixels: The image, shape (C, H, W) or (C, D, H, W), resized if the data set declares it.
        size: Height and width, or depth, height and width, before it was resized.
        mask_format: Format of a mask on it, or None for the usual ones.
    """

    pixels: NDArray[Any] = field(repr=False)
    size: tuple[int, ...]
    mask_format: MaskFormat | None = None


@frozen(kw_only=True)
class FileReader:
    """Reader of image files.

    Attributes:
        suffixes: Endings of the files, in lower case. Without any, all names are accepted.
        read: Returns the image of a file. It raises `DataError` with the path if it cannot.
    """

    suffixes: tuple[str, ...]
    read: Callable[[Path], FileImage]


@runtime_checkable
class ReadsFiles(Protocol):
    """A data set of files that can read single files as well."""

    def file_reader(self) -> FileReader | None:
        """Return the reader of files like those of the data set, or None."""
        ...
