"""Refusals of places that cannot be written, before the work whose outcome is for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.errors import StudyError
from cohortium.storage.atomic import check_path_writable

if TYPE_CHECKING:
    from pathlib import Path


def require_text(text: str, *, where: str) -> None:
    """Refuse what the operating system gave as bytes that are no text: no file could hold it.

    Raises:
        StudyError: It is such.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise StudyError(
            f"{where}: {text!r} is no text in this locale; rename the file or folder, or set the "
            "locale to one in UTF-8."
        ) from error


def check_directory_writable(path: Path) -> None:
    """Refuse early what making the folder `path`, if it is not there, and a file in it would.

    Raises:
        StudyError: Nothing can be written there, or its name is no text.
    """
    require_text(str(path), where="the folder")
    try:
        check_path_writable(path, is_folder=True)
    except OSError as error:
        raise StudyError(f"cannot write to {path}: {error.strerror}.") from error


def check_new_file(path: Path, *, remedy: str) -> None:
    """Refuse early what creating a file at `path` would, before the work whose outcome it is for.

    Args:
        path: The file to be.
        remedy: What to do where one is there.

    Raises:
        StudyError: Something is there, or nothing can be written there.
    """
    if path.exists():
        raise StudyError(f"{path} exists already; {remedy}.")
    check_file_writable(path)


def check_file_writable(path: Path) -> None:
    """Refuse early what writing a file at `path`, in place of one that is there, would.

    Raises:
        StudyError: Nothing can be written there.
    """
    try:
        check_path_writable(path)
    except OSError as error:
        raise StudyError(f"cannot write {path}: {error.strerror}.") from error
