"""Refusals of paths that cannot be written, before the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.errors import RequestError
from cohortium.storage.atomic import check_path_writable

if TYPE_CHECKING:
    from pathlib import Path


def require_text(text: str, *, where: str) -> None:
    """Refuse a name from the operating system whose bytes are not text.

    No file could store such a name.

    Raises:
        RequestError: The name is not text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{where}: {text!r} is no text in this locale; rename the file or folder, or set the "
            "locale to one in UTF-8."
        ) from error


def check_directory_writable(path: Path) -> None:
    """Refuse early a folder `path` that cannot be created or written.

    Raises:
        RequestError: The folder cannot be written, or its name is not text.
    """
    require_text(str(path), where="the folder")
    try:
        check_path_writable(path, is_folder=True)
    except OSError as error:
        raise RequestError(f"cannot write to {path}: {error.strerror}.") from error


def check_new_file(path: Path, *, remedy: str) -> None:
    """Refuse a file `path` that cannot be created, before the work.

    Args:
        path: The future file.
        remedy: Advice to the user if a file exists.

    Raises:
        RequestError: A file exists, or the path cannot be written.
    """
    if path.exists():
        raise RequestError(f"{path} exists already; {remedy}.")
    check_file_writable(path)


def check_file_writable(path: Path) -> None:
    """Refuse early a file `path` that cannot be written or replaced.

    Raises:
        RequestError: The path cannot be written.
    """
    try:
        check_path_writable(path)
    except OSError as error:
        raise RequestError(f"cannot write {path}: {_why_unwritable(path, error)}.") from error


def _why_unwritable(path: Path, error: OSError) -> str:
    if path.is_dir():
        return "it is a folder; name a file in it"
    if not path.parent.exists():
        return f"there is no folder {path.parent}; make it first"
    return str(error.strerror)
