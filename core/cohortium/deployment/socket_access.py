"""Location of a site's socket, and the permission to connect.

The operating system lets a user connect to a Unix socket only with permission to write to it. So
the socket's mode is the first of the site's defences. With this defence alone, a stranger's call
costs the site nothing at all.

Guarantees:
    Without a caller, only the owner may connect (mode 0600). With a caller, the owner and one group
    may (0660). The mode is never wider than that, not even while the socket is being created.

    The socket is in a folder that no other user may write to. Nobody else can put another socket,
    or a link, in its place.

    Only a socket at which no process listens is ever removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

from attrs import frozen

from cohortium.errors import RequestError, StudyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BACKLOG = 128

_CONNECT_TIMEOUT = 5.0
"""Seconds to wait for an answer from a process already listening there."""


@frozen
class AllowedUsers:
    """Users that may connect to a site.

    Attributes:
        users: Numbers of the users whose calls are answered.
        group: Number of the group whose members may connect. None admits the owner alone.
    """

    users: frozenset[int]
    group: int | None = None

    @classmethod
    def named(cls, caller: str, group: str = "") -> AllowedUsers:
        """Return this process's user, and the user `caller` by way of `group`.

        Args:
            caller: A user's name. Empty for none.
            group: The group's name. Empty for the caller's own group.

        Raises:
            StudyError: This machine has no such user or group, or the user is not in the group.
        """
        import grp
        import pwd

        own = os.getuid()
        if not caller:
            if group:
                raise StudyError(
                    "[site] group: it lets the caller connect, and no caller is named; "
                    "name one, or take the group out."
                )
            return cls(frozenset({own}))
        try:
            user = pwd.getpwnam(caller)
        except (KeyError, ValueError):
            raise StudyError(f"[site] client_user: this machine has no user {caller!r}.") from None
        try:
            number = grp.getgrnam(group).gr_gid if group else user.pw_gid
        except (KeyError, ValueError):
            raise StudyError(f"[site] group: this machine has no group {group!r}.") from None
        if user.pw_uid == own:
            return cls(frozenset({own}))
        if number not in os.getgrouplist(caller, user.pw_gid):
            raise StudyError(
                f"[site] group: the user {caller!r} is not in the group {group!r}, so it could not "
                f"connect; usermod -aG {group} {caller} puts it there."
            )
        return cls(frozenset({own, user.pw_uid}), number)


@contextlib.contextmanager
def listening_socket(path: Path, group: int | None) -> Iterator[socket.socket]:
    """Yield a socket that listens at `path`, for its owner and `group`.

    Its file is removed afterwards.

    Raises:
        RequestError: It cannot be created, its folder is not safe, or a process listens there.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise RequestError("a site process needs Unix sockets, which this system has not.")
    _require_safe(path.parent)
    _remove_stale_socket(path)
    with socket.socket(socket.AF_UNIX) as listener:
        # The file must never have a wider mode than intended, not even for a moment.
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        except OSError as error:
            raise _cannot(path, error) from error
        finally:
            os.umask(before)
        try:
            _grant_group(path, group)
            listener.listen(_BACKLOG)
            yield listener
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def _cannot(path: Path, error: OSError) -> RequestError:
    return RequestError(f"cannot listen at {path}: {error.strerror or error}.")


def _require_safe(folder: Path) -> None:
    """Refuse a folder in which another user could replace the socket."""
    import pwd

    try:
        status = folder.stat()
    except OSError as error:
        raise _cannot(folder, error) from error
    if status.st_uid not in (0, os.geteuid()):
        raise RequestError(
            f"the socket's folder {folder} belongs to another user, who could put a socket of "
            "their own there; name a folder of the site's own user."
        )
    try:
        private = pwd.getpwuid(os.geteuid()).pw_gid
    except KeyError:
        private = None
    # Many systems give each user a group of their own, and make its folders writable by it.
    if status.st_mode & stat.S_IWOTH or (
        status.st_mode & stat.S_IWGRP and status.st_gid != private
    ):
        raise RequestError(
            f"the socket's folder {folder} may be written to by other users, who could put a "
            "socket of their own there; take that from them (chmod go-w), or name another folder."
        )


def _grant_group(path: Path, group: int | None) -> None:
    """Open a new socket, so far its owner's alone, to `group`."""
    if group is None:
        return
    try:
        if path.lstat().st_gid != group:
            os.chown(path, -1, group, follow_symlinks=False)
    except PermissionError:
        raise RequestError(
            f"the socket {path} cannot be given to the group {group} of the site's caller: the "
            "site's user is not in it; start the site with that group (Group= of its unit)."
        ) from None
    path.chmod(0o660)


def _remove_stale_socket(path: Path) -> None:
    """Remove a socket that a process has left behind.

    Raises:
        RequestError: A process listens there or may listen there, or the file is no socket.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot(path, error) from error
    if stat.S_ISLNK(mode):
        raise RequestError(f"{path} is a symbolic link, and the site follows none; name another.")
    if not stat.S_ISSOCK(mode):
        raise RequestError(f"{path} is there already and is no socket; name another.")
    with socket.socket(socket.AF_UNIX) as trial:
        trial.settimeout(_CONNECT_TIMEOUT)
        try:
            found = trial.connect_ex(str(path))
        except OSError as error:
            raise _cannot(path, error) from error
    # Only a refusal is certain. A process too busy to take another call gives other errors.
    if found != errno.ECONNREFUSED:
        raise RequestError(f"a process listens at {path} already.")
    path.unlink(missing_ok=True)
