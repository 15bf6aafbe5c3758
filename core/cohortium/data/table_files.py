"""Files that a table lists, none of which lies outside its root folder."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cohortium.data.image_file import IMAGE_SUFFIXES
from cohortium.errors import DataError
from cohortium.text import escape_control_characters, quote_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cohortium.data.survey import DataSurvey
    from cohortium.data.table import Table

_ABSOLUTE: Final = re.compile(r"[/\\]|[A-Za-z]:")
"""Begin of a path that does not depend on a folder, on any operating system."""


def listed_files(
    table: Table,
    column: str,
    root: Path,
    *,
    allow_repeats: bool = False,
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
    allow_folders: bool = False,
) -> tuple[Path, ...]:
    """Return the file of each row.

    Args:
        table: The table.
        column: Name of the column of paths, which are relative to `root`.
        root: Folder that has all files.
        allow_repeats: Whether several rows may list one file.
        suffixes: Endings of the files, in lower case. Without any, all names are accepted.
        allow_folders: Whether a row may list a folder, none of whose files is listed as well.

    Guarantees:
        Each file lies in `root` after all symbolic links are followed.

    Raises:
        DataError: A path is empty, leaves the folder, is of another kind or names no file. Or a
            file is listed twice. The sentence names the row.
    """
    found = listed_rows(
        table,
        column,
        root,
        allow_repeats=allow_repeats,
        suffixes=suffixes,
        allow_folders=allow_folders,
    )
    return tuple(found[row] for row in range(len(table)))


def listed_rows(
    table: Table,
    column: str,
    root: Path,
    *,
    allow_repeats: bool = False,
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
    allow_folders: bool = False,
    survey: DataSurvey | None = None,
) -> dict[int, Path]:
    """Return the file of each row, by its number from 0, as `listed_files` does.

    Args:
        table: The table.
        column: Name of the column of paths.
        root: Folder that has all files.
        allow_repeats: Whether several rows may list one file.
        suffixes: Endings of the files.
        allow_folders: Whether a row may list a folder.
        survey: Takes the reason of each row that is refused, which is then left out. Without it,
            the first such row is an error.

    Guarantees:
        As for `listed_files`.

    Raises:
        DataError: As for `listed_files`, if there is no survey. Or no listed file exists.
    """
    inside = Path(os.path.realpath(root))
    folders: dict[str, Path] = {}
    listed: dict[Path, int] = {}
    files: dict[int, Path] = {}
    texts = table.complete(column, "name an image, or leave the row out")
    if not suffixes or all(text.lower().endswith(tuple(suffixes)) for text in texts):
        _require_any(table, column, texts, inside)
    for row, text in enumerate(texts):
        with _noted(survey):
            path = _resolve(text, inside, folders, table.where(row), tuple(suffixes))
            is_folder = allow_folders and os.path.isdir(path)  # noqa: PTH112 - see `_require_file`
            if not is_folder:
                _require_file(text, path, table.where(row), allow_folders=allow_folders)
            first = listed.setdefault(path, row)
            if first != row and not allow_repeats:
                raise DataError(
                    f"{table.where(row)}: {path} is listed in {table.unit} "
                    f"{table.numbers[first]} too; leave one row out, or declare repeats = true of "
                    "the data set."
                )
            files[row] = path
    if allow_folders:
        for row, path in [*files.items()]:
            with _noted(survey):
                del files[row]
                _require_apart(table, row, path, listed)
                files[row] = path
        files = dict(sorted(files.items()))
    return files


def _require_any(table: Table, column: str, texts: Sequence[str], inside: Path) -> None:
    """Refuse a wrong root in one sentence, instead of one for each row.

    Raises:
        DataError: The root has none of several files. A path that leaves it is left to its row.
    """
    if len(texts) > 1 and not any(_leaves(t) or os.path.lexists(inside / t) for t in texts):
        slashes = ", and write / between folders" if any("\\" in text for text in texts) else ""
        raise DataError(
            f"{table.path}: all {len(texts):,} files of the column {quote_key(column)} are missing "
            f"in {inside}; set root of the data set to the folder that has them{slashes}."
        )


def _leaves(text: str) -> bool:
    """Return whether a path is not written relative to the root, or leaves it."""
    is_outside = _ABSOLUTE.match(text) or ".." in re.split(r"[/\\]", text)
    return bool(is_outside) or "\0" in text


@contextlib.contextmanager
def _noted(survey: DataSurvey | None) -> Iterator[None]:
    """Leave an error of the body to a survey, if there is one."""
    try:
        yield
    except DataError as error:
        if survey is None:
            raise
        survey.refuse(str(error))


def _require_apart(table: Table, row: int, path: Path, listed: Mapping[Path, int]) -> None:
    """Refuse a file that lies in a listed folder, which holds it already."""
    if path.parent in listed:
        raise DataError(
            f"{table.where(row)}: {path} lies in the folder that {table.unit} "
            f"{table.numbers[listed[path.parent]]} lists; leave one row out."
        )


def _resolve(
    text: str, root: Path, folders: dict[str, Path], where: str, suffixes: tuple[str, ...]
) -> Path:
    """Return the path that `text` names in `root`, without symbolic links.

    Folders whose links have been followed are kept in `folders`.
    """
    leaves = f"leaves the folder {root}"
    if _leaves(text):
        raise DataError(
            f"{where}: the path {_shown(text)} {leaves}; write it relative to that folder, which "
            "root declares, and without '..'."
        )
    if suffixes and not text.lower().endswith(suffixes):
        raise DataError(
            f"{where}: {_shown(text)} is of no kind that can be read; the kinds are "
            f"{', '.join(suffixes)}."
        )
    parent, name = os.path.split(text)
    if parent not in folders:
        folders[parent] = Path(os.path.realpath(root / parent))
    path = folders[parent] / name
    # Methods of Path raise if a folder may not be searched, or a name is too long.
    if os.path.islink(path):  # noqa: PTH114 - see above
        path = Path(os.path.realpath(path))
    if not path.is_relative_to(root):
        raise DataError(
            f"{where}: the path {_shown(text)} {leaves} by a symbolic link; put the file into that "
            "folder."
        )
    return path


def _require_file(text: str, path: Path, where: str, *, allow_folders: bool) -> None:
    # Methods of Path raise if a folder may not be searched.
    if not os.path.isfile(path):  # noqa: PTH113 - see above
        slashes = ", with / between folders" if "\\" in text else ""
        kind = "file or folder" if allow_folders else "file"
        raise DataError(
            f"{where}: there is no {kind} {path}; correct the path{slashes}, or leave the row out."
        )


def _shown(text: str) -> str:
    return escape_control_characters(text)[:200]
