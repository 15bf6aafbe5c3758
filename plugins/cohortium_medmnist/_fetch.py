"""Download of one published file, whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import urllib.request
import uuid
from typing import IO, TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from http.client import HTTPMessage
    from pathlib import Path

PATIENCE: Final = 30.0
"""Seconds without a byte after which a connection counts as lost."""

MAX_REDIRECTIONS: Final = 3
"""Most redirections from the published address."""

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
        max_bytes: Most bytes that it can have.
    """

    name: str
    url: str
    md5: str
    max_bytes: int

    def matches(self, path: Path) -> bool:
        """Return whether `path` holds exactly this file."""
        with path.open("rb") as file:
            return hashlib.file_digest(file, _md5).hexdigest() == self.md5

    def fetch(self, folder: Path) -> Path:
        """Download the file into `folder`.

        Guarantees:
            A file of the final name is whole and has passed its checksum, however the download
            ends.  The file is written under another name, checked, and then renamed in one step.

            Every address is an https one, also after a redirection, of which there are at most
            `MAX_REDIRECTIONS`.  No more than `max_bytes` and one block are read.

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
        if not _is_https(self.url):
            raise FetchError("its address is not an https one")
        digest, num_bytes = _md5(), 0
        answer = urllib.request.build_opener(_FewRedirections).open(self.url, timeout=PATIENCE)
        with answer, part.open("wb") as file:
            while piece := answer.read(_PIECE):
                num_bytes += len(piece)
                if num_bytes > self.max_bytes:
                    raise FetchError(
                        f"more than {self.max_bytes:,} bytes came, and the file cannot have as many"
                    )
                digest.update(piece)
                file.write(piece)
        return digest.hexdigest()


class _FewRedirections(urllib.request.HTTPRedirectHandler):
    """Redirections to https addresses, and few of them.

    The library's own handler follows ten, also to addresses without TLS.
    """

    def redirect_request(  # noqa: PLR0917 - as the library calls it
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the next request."""
        visited: dict[str, int] = getattr(req, "redirect_dict", {})
        if sum(visited.values()) >= MAX_REDIRECTIONS:
            raise FetchError(f"its address redirects more than {MAX_REDIRECTIONS} times")
        if not _is_https(newurl):
            raise FetchError("its address redirects to one that is not an https one")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_https(url: str) -> bool:
    return url.lower().startswith("https://")


def _md5() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)
