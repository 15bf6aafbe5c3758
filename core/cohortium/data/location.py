"""Places where data of the user's own are looked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from cohortium.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

DATA_FOLDER: Final = "COHORTIUM_DATA"
"""The environment variable that names the folder of data files."""

_SYSTEM_FILES: Final = frozenset({"__macosx", "desktop.ini", "thumbs.db"})
"""Names, in lower case, that operating systems leave in folders of pictures."""


def data_dir() -> Path | None:
    """Return the folder that `COHORTIUM_DATA` names, or None."""
    named = os.environ.get(DATA_FOLDER, "")
    return Path(named).expanduser() if named else None


def first_existing(*places: Path) -> Path | None:
    """Return the first of `places` that is a file, or None."""
    for place in places:
        # Path.is_file raises if a parent folder may not be searched.
        if os.path.isfile(place):  # noqa: PTH113 - see above
            return place
    return None


def is_system_file(name: str) -> bool:
    """Return whether a file of a folder is hidden, or left there by an operating system.

    Args:
        name: Name of the file.

    Examples:
        >>> [is_system_file(name) for name in ("Thumbs.db", ".DS_Store", "1.dcm")]
        [True, True, False]
    """
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def other_reader(path: Path) -> str:
    """Return the data set that reads such a file or folder, as the end of a sentence, or "".

    Args:
        path: The file or folder. Its name and kind count, and its content is not read.
    """
    name = path.name.lower()
    if os.path.isdir(path):  # noqa: PTH112 - methods of Path raise, see `find_data`
        return 'it is a folder, which the data set "folder" reads: set name = "folder"'
    if name.endswith(".npz"):
        return 'the data set "npz" reads such files: set name = "npz"'
    if name.endswith((".csv", ".tsv", ".txt", ".parquet")):
        return (
            'it is a table, which the data set "table" reads, or "dicom" or "nifti" if it lists '
            'such files: set name = "table"'
        )
    for suffixes, kind in _LISTED.items():
        if name.endswith(suffixes):
            return f'it is one image: list all images in a table, and set name = "{kind}"'
    return ""


_LISTED: Final[Mapping[tuple[str, ...], str]] = {
    (".nii", ".nii.gz"): "nifti",
    (".dcm",): "dicom",
    (".png", ".jpg", ".jpeg", ".tif", ".tiff"): "table",
}
"""Data sets that read listed files, by the endings of these."""


def find_data(given: str, kind: Literal["file", "folder"] = "file") -> Path:
    """Return the path of data: as given, else in the folder that `COHORTIUM_DATA` names.

    Args:
        given: The path that a data set declares.
        kind: Whether it names a file or a folder.

    Raises:
        DataError: Neither place has it.
    """
    path, folder = Path(given).expanduser(), data_dir()
    # Methods of Path raise if a parent folder may not be searched.
    exists = os.path.isfile if kind == "file" else os.path.isdir
    for place in (path,) if folder is None else (path, folder / path):
        if exists(place):
            return place
    for place in (path,) if folder is None else (path, folder / path):
        if os.path.lexists(place) and (advice := other_reader(place)):
            raise DataError(f"{place} is no {kind}; {advice}.")
    if folder is None:
        beside = "COHORTIUM_DATA names no folder to look in besides"
    else:
        beside = f"it is not in {folder}, which COHORTIUM_DATA names, either"
    raise DataError(
        f"there is no {kind} {path.absolute()}, and {beside}; correct the data set's path, or "
        f"put the {kind} there."
    )
