"""A page for its owner alone, which replaces no other file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.errors import RequestError, RunError
from cohortium.storage.atomic import atomic_write
from cohortium.storage.writable import check_file_writable

if TYPE_CHECKING:
    from pathlib import Path


def check_local_page(out: Path, mark: bytes, kind: str) -> None:
    """Refuse a path that cannot be written, or holds another file than such a page.

    Args:
        out: Path of the page.
        mark: Bytes that every page of this kind has.
        kind: The kind and the remedy, after "exists and is no page of".

    Raises:
        RequestError: It is such a path.
    """
    check_file_writable(out)
    try:
        if out.exists() and mark not in out.read_bytes():
            raise RequestError(f"{out} exists and is no page of {kind}.")
    except OSError as error:
        raise RequestError(f"cannot write {out}: {error.strerror}.") from error


def write_local_page(out: Path, page: str) -> None:
    """Write a page that only its owner can read.

    Raises:
        RunError: The file cannot be written.
    """
    try:
        atomic_write(out, page.encode())
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}.") from error
