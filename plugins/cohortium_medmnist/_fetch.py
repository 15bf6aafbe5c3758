"""Download of one published file, whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import urllib.request
import uuid
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE: Final = 30.0
"""Seconds without a byte after which a connection counts as lost."""

_PIECE: Final = 1 << 20


class FetchError(Exception):
    """Reason for a failed download, as part of a sentence."""


@frozen
class RemoteFile:
    """A file as its publisher describes it.

    Attributes:
        name: The file's name.
        url: Its published address.
        md5: Its checksum, hexadecimal.  It detects a damaged file, not a forged one.
    """

    name: str
    url: str
    md5: str

    def matches(self, path: Path) -> bool:
        """Return whether `path` holds exactly this file."""
        with path.open("rb") as file:
            return hashlib.file_digest(file, _md5).hexdigest() == self.md5

    def fetch(self, folder: Path) -> Path:
        """Download the file into `folder`.

        Guarantees:
            A file of the final name is whole and has passed its checksum, however the download
            ends.  The file is written under another name, checked, and then renamed in one step.

        Raises:
            FetchError: It did not arrive, or not undamaged.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return self._fetch(folder)
        except (OSError, http.client.HTTPException) as error:
            raise FetchError(str(error) or type(error).__name__) from error

    def _fetch(self, folder: Path) -> Path:
        part = folder / f".{self.name}.{uuid.uuid4().hex}.part"
        try:
            if self._copy_to(part) != self.md5:
                raise FetchError("the download does not have its published MD5")
            return part.replace(folder / self.name)
        finally:
            part.unlink(missing_ok=True)

    def _copy_to(self, part: Path) -> str:
        """Copy the published file to `part`, and return the copy's MD5."""
        if not self.url.startswith("https://"):
            raise FetchError("its address is not an https one")
        digest = _md5()
        answer = urllib.request.urlopen(self.url, timeout=PATIENCE)  # noqa: S310 - https, as checked
        with answer, part.open("wb") as file:
            while piece := answer.read(_PIECE):
                digest.update(piece)
                file.write(piece)
        return digest.hexdigest()


def _md5() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)
