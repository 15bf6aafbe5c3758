"""A site's records of its runs, so that a restart ends none."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from cohortium.errors import RefusalCode, RefusalError, RunError
from cohortium.storage.atomic import atomic_write, require_room, sweep

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

MAX_STORED_RUNS = 16
"""Most runs kept on disk. Older ones are deleted."""

DIGEST_BYTES = 32

INVITATION, REPLY = "invitation", "reply"
"""The files of a run."""

_NAME = re.compile(r"[0-9a-f]{32}")
"""Form of a run's folder name: its session."""

_BEYOND = 1 << 20
"""Most bytes of an answer in addition to its vector."""


@define
class Participation:
    """Record of one run: the invitation, and the last answer sent.

    It has a folder of its own.

    Guarantees:
        `save_reply` and `ParticipationStore.add` return only after their data are durable.
    """

    folder: Path
    _last: tuple[bytes, bytes] | None = field(default=None, init=False, repr=False)

    def invitation(self) -> bytes | None:
        """Return the invitation's bytes, or None."""
        return _content(self.folder / INVITATION)

    def reply(self, digest: bytes) -> bytes | None:
        """Return the answer to this request, if it was answered last.

        `digest` is the request's digest.
        """
        if self._last is None:
            kept = _content(self.folder / REPLY) or b""
            self._last = kept[:DIGEST_BYTES], kept[DIGEST_BYTES:]
        return self._last[1] if self._last[0] == digest else None

    def last_reply(self) -> tuple[bytes, float] | None:
        """Return the last answer, and the time of its file in seconds since 1970, or None."""
        path = self.folder / REPLY
        kept = _content(path)
        if kept is None:
            return None
        try:
            return kept[DIGEST_BYTES:], path.stat().st_mtime
        except OSError as error:
            raise _unusable() from error

    def save_reply(self, digest: bytes, reply: bytes) -> None:
        """Save an answer before it is sent, replacing the previous one.

        Raises:
            RefusalError: The answer could not be saved, so it must not be sent.
        """
        _put(self.folder / REPLY, digest + reply)
        self._last = digest, reply

    def require_room(self, size: int) -> None:
        """Refuse to continue without room for an answer of `size` bytes.

        Raises:
            RefusalError: An answer with such a vector could not be saved. Nothing is written.
        """
        try:
            require_room(self.folder, size + _BEYOND)
        except OSError as error:
            raise _unusable() from error

    def delete(self) -> None:
        """Remove the run's own files, and its folder if empty.

        Raises:
            OSError: They cannot be removed.
        """
        sweep(self.folder)
        for name in (INVITATION, REPLY):
            (self.folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # files of others remain
            self.folder.rmdir()


@frozen
class ParticipationStore:
    """The runs of a site, in a folder only for its owner.

    Guarantees:
        Only files of runs are removed. In a folder that is named by a session and holds an
        invitation, these are the invitation and the answer. Anything else in the folder remains.
    """

    folder: Path

    def require_usable(self) -> None:
        """Create the folder.

        Raises:
            RunError: It cannot be created, or cannot be written to.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            require_room(self.folder, 0)
        except OSError as error:
            raise RunError(f"cannot write to {self.folder}: {error.strerror}.") from error

    def for_session(self, session: bytes) -> Participation:
        """Return the record of a run, with or without files yet."""
        return Participation(self.folder / session.hex())

    def invitations(self) -> Iterator[bytes]:
        """Yield the invitation of each stored run, that of the last active one first."""
        for _, invitation in self.sessions():
            yield invitation

    def sessions(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield session and invitation of each stored run, the last active one first.

        A run that the site's own process removes meanwhile is left out.

        Raises:
            RefusalError: The folder cannot be read.
        """
        try:
            found = sorted(self._runs(), key=_last_change, reverse=True)
        except OSError as error:
            raise _unusable() from error
        for path in found:
            if (invitation := Participation(path).invitation()) is not None:
                yield bytes.fromhex(path.name), invitation

    def add(
        self, participation: Participation, invitation: bytes, *, keep: Collection[bytes]
    ) -> None:
        """Save an invitation, and delete the oldest runs outside `keep`.

        Raises:
            RefusalError: The invitation could not be saved.
        """
        try:
            participation.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            others = [path for path in self._runs() if path != participation.folder]
            others.sort(key=_last_change)
            names = {session.hex() for session in keep}
            for path in others[: max(0, len(others) + 1 - MAX_STORED_RUNS)]:
                if path.name not in names:
                    Participation(path).delete()
        except OSError as error:
            raise _unusable() from error
        _put(participation.folder / INVITATION, invitation)

    def _runs(self) -> Iterator[Path]:
        return filter(_is_run, self.folder.iterdir())


def _last_change(path: Path) -> float:
    """Return the time of the last change in a folder, 0 if it has been removed."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _is_run(path: Path) -> bool:
    """Return whether `path` is a folder that `ParticipationStore.add` has created."""
    return (
        _NAME.fullmatch(path.name) is not None
        and not path.is_symlink()
        and (path / INVITATION).is_file()
    )


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable() from error


def _put(path: Path, data: bytes) -> None:
    try:
        atomic_write(path, data)
    except OSError as error:
        raise _unusable() from error


def _unusable() -> RefusalError:
    return RefusalError(RefusalCode.DISK, "the site's folder of runs cannot be used.")
