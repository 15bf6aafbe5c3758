"""A page for its owner alone, which replaces no other file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import frozen

from cohortium.errors import RequestError, RunError
from cohortium.storage.atomic import atomic_write
from cohortium.storage.writable import check_file_writable

if TYPE_CHECKING:
    from pathlib import Path

HEAD_BYTES: Final = 1 << 12
"""Bytes at the beginning of a page, among which its mark is."""


@frozen
class LocalPage:
    """A kind of page.

    Attributes:
        generator: Name in the head of every page of this kind, by which a page is known.
        kind: The kind and the remedy, after "exists and is no".
    """

    generator: str
    kind: str

    def check(self, out: Path) -> None:
        """Refuse a path that cannot be written, or holds another file than such a page.

        Raises:
            RequestError: It is such a path.
        """
        check_file_writable(out)
        mark = f'<meta name="generator" content="{self.generator}">'.encode()
        try:
            # Only a regular file is opened: a pipe would be waited for.
            if out.exists() and not (out.is_file() and mark in _head(out)):
                raise RequestError(f"{out} exists and is no {self.kind}.")
        except OSError as error:
            raise RequestError(f"cannot write {out}: {error.strerror}.") from error

    def write(self, out: Path, page: str | bytes) -> None:
        """Write a page, or a picture in its place, that only its owner can read.

        Raises:
            RunError: The file cannot be written.
        """
        try:
            atomic_write(out, page.encode() if isinstance(page, str) else page)
        except OSError as error:
            raise RunError(f"cannot write {out}: {error.strerror}.") from error


def _head(page: Path) -> bytes:
    with page.open("rb") as file:
        return file.read(HEAD_BYTES)
