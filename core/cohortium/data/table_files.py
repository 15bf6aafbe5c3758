"""Files that a table lists, none of which lies outside its root folder."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from cohortium.data.image_file import IMAGE_SUFFIXES
from cohortium.errors import DataError
from cohortium.text import escape_control_characters

if TYPE_CHECKING:
    from cohortium.data.table import Table


def listed_files(
    table: Table, column: str, root: Path, *, allow_repeats: bool = False
) -> tuple[Path, ...]:
    """Return the image file of each row.

    Args:
        table: The table.
        column: Name of the column of paths, which are relative to `root`.
        root: Folder that has all files.
        allow_repeats: Whether several rows may list one file.

    Guarantees:
        Each file lies in `root` after all symbolic links are followed.

    Raises:
        DataError: A path is empty, leaves the folder, is of another kind or names no file. Or a
            file is listed twice. The sentence names the row.
    """
    inside = Path(os.path.realpath(root))
    folders: dict[Path, Path] = {}
    listed: dict[Path, int] = {}
    files = []
    for row, text in enumerate(table.complete(column, "name an image, or leave the row out")):
        path = _resolve(text, inside, folders, table.where(row))
        first = listed.setdefault(path, row)
        if first != row and not allow_repeats:
            raise DataError(
                f"{table.where(row)}: {path} is listed in {table.unit} {table.numbers[first]} too; "
                "leave one row out, or declare repeats = true of the data set."
            )
        files.append(path)
    return tuple(files)


def _resolve(text: str, root: Path, folders: dict[Path, Path], where: str) -> Path:
    """Return the file that `text` names in `root`, without symbolic links.

    Folders whose links have been followed are kept in `folders`.
    """
    shown = escape_control_characters(text)[:200]
    is_absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).anchor
    if is_absolute or ".." in re.split(r"[/\\]", text) or "\0" in text:
        raise DataError(
            f"{where}: the path {shown} leaves the folder {root}; write it relative to that "
            "folder, which root declares, and without '..'."
        )
    if PurePosixPath(text).suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(
            f"{where}: {shown} is of no kind that can be read; the kinds are "
            f"{', '.join(IMAGE_SUFFIXES)}."
        )
    given = root / text
    folder = folders.get(given.parent)
    if folder is None:
        folder = folders[given.parent] = Path(os.path.realpath(given.parent))
    path = folder / given.name
    # Methods of Path raise if a folder may not be searched, or a name is too long.
    if os.path.islink(path):  # noqa: PTH114 - see above
        path = Path(os.path.realpath(path))
    if not path.is_relative_to(root):
        raise DataError(
            f"{where}: the path {shown} leaves the folder {root} by a symbolic link; put the "
            "file into that folder."
        )
    if not os.path.isfile(path):  # noqa: PTH113 - see above
        slashes = ", with / between folders" if "\\" in text else ""
        raise DataError(
            f"{where}: there is no file {path}; correct the path{slashes}, or leave the row out."
        )
    return path
