"""Who may connect to a site's socket is decided by the file system, from its first moment on."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cohortium.deployment import socket_access
from cohortium.deployment.socket_access import AllowedUsers, listening_socket
from cohortium.deployment.unix_socket import SiteSocketServer, call_site
from cohortium.errors import RequestError, RunError, StudyError

as_root = pytest.mark.skipif(
    not hasattr(os, "fork") or os.getuid() != 0, reason="only root can become other users"
)

CALLER, STRANGER, GROUP = 61001, 61002, 61003
"""Numbers that no user and no group of a usual machine has."""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user can pass through, whatever the test's own is."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        yield Path(folder) / "s"


def as_user(user: int, groups: list[int], act: Callable[[], int]) -> int:
    """What `act` returns in a process of another user."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setgroups(groups)
            os.setgid(user)
            os.setuid(user)
            code = act()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def connected(path: Path) -> int:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(path))


@as_root
def test_users_outside_group_cannot_connect(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    heard = list[bytes]()

    def answer(broadcast: bytes, own: bytes) -> bytes:
        heard.append(broadcast)
        return own

    door = SiteSocketServer(place, answer, {0, CALLER}, GROUP)
    with door.open() as listener:
        thread = threading.Thread(target=door.serve, args=(listener,))
        thread.start()
        assert as_user(STRANGER, [], lambda: connected(place)) == errno.EACCES
        assert as_user(STRANGER, [STRANGER], lambda: connected(place)) == errno.EACCES
        assert caplog.messages == []
        # A member of the group who is not the caller connects, and is turned away at once.
        assert as_user(STRANGER, [GROUP], lambda: _asked(place)) == 7
        assert caplog.messages == [f"user {STRANGER} of this machine tried to speak to the site."]
        assert heard == []
        assert as_user(CALLER, [GROUP], lambda: _asked(place)) == 0
        assert heard == [b"x"]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _asked(path: Path) -> int:
    try:
        return 0 if call_site(path, b"x", b"y", user=0) == b"y" else 1
    except RunError:
        return 7


@as_root
def test_group_member_other_than_caller_is_refused(place: Path) -> None:
    door = SiteSocketServer(place, lambda _, own: own, {0, CALLER}, GROUP)
    with door.open() as listener:
        thread = threading.Thread(target=door.serve, args=(listener,))
        thread.start()

        def flood() -> int:
            idle = [socket.socket(socket.AF_UNIX) for _ in range(100)]
            for connection in idle:
                connection.connect(str(place))
            return _as_caller_meanwhile(place)

        # The flood's connections are open while the owner calls.
        assert as_user(STRANGER, [GROUP], flood) == 0
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _as_caller_meanwhile(path: Path) -> int:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        # Turned away, and not left waiting.
        return len(connection.recv(1))


@as_root
def test_socket_mode_is_never_wider_than_final(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def look(name: str) -> None:
        whole = getattr(os, name)

        def watched(*args: object, **kwargs: object) -> object:
            before = place.lstat()
            seen.append((stat.S_IMODE(before.st_mode), before.st_gid))
            return whole(*args, **kwargs)

        monkeypatch.setattr(os, name, watched)

    look("chown")
    look("chmod")
    before = os.umask(0)
    try:
        with listening_socket(place, GROUP):
            final = place.lstat()
    finally:
        os.umask(before)
    assert (stat.S_IMODE(final.st_mode), final.st_gid) == (0o660, GROUP)
    assert [mode for mode, _ in seen] == [0o600, 0o600]
    assert seen[-1][1] == GROUP


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
def test_socket_without_group_is_owner_only(place: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with listening_socket(place, None):
            assert stat.S_IMODE(place.lstat().st_mode) == 0o600
        assert os.umask(mask) == mask
    finally:
        os.umask(before)


@as_root
def test_site_outside_group_is_refused(place: Path) -> None:
    def act() -> int:
        try:
            with listening_socket(place, GROUP):
                return 1
        except RequestError as error:
            return 0 if "is not in it" in str(error) and not place.exists() else 2

    os.chown(place.parent, CALLER, -1)
    assert as_user(CALLER, [], act) == 0
    assert as_user(CALLER, [GROUP], act) == 1


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_folder_writable_by_others_is_refused(place: Path, mode: int) -> None:
    place.parent.chmod(mode)
    with (
        pytest.raises(RequestError, match="may be written to by other users"),
        listening_socket(place, None),
    ):
        pass
    assert not place.exists()


@as_root
def test_group_writable_or_foreign_folder_is_refused(place: Path) -> None:
    os.chown(place.parent, -1, GROUP)
    place.parent.chmod(0o2750)
    with listening_socket(place, GROUP):
        assert place.lstat().st_gid == GROUP
    place.parent.chmod(0o2770)
    with (
        pytest.raises(RequestError, match="may be written to by other users"),
        listening_socket(place, GROUP),
    ):
        pass
    place.parent.chmod(0o750)
    os.chown(place.parent, STRANGER, -1)
    with (
        pytest.raises(RequestError, match="belongs to another user"),
        listening_socket(place, None),
    ):
        pass


def test_symlink_at_socket_path_is_not_followed(place: Path) -> None:
    elsewhere = place.with_name("elsewhere")
    for target in (elsewhere, place.with_name("nowhere")):
        elsewhere.write_text("precious")
        place.symlink_to(target)
        with pytest.raises(RequestError, match="symbolic link"), listening_socket(place, None):
            pass
        assert elsewhere.read_text() == "precious"
        place.unlink()


def test_too_long_socket_path_is_refused(place: Path) -> None:
    path = place.with_name("s" * 120)
    with (
        pytest.raises(RequestError, match=r"cannot listen at .*too long"),
        listening_socket(path, None),
    ):
        pass
    # And at the other end at once, however patient the caller is.
    with pytest.raises(RunError, match=r"cannot be at .*too long"):
        call_site(path, b"", b"", patience=3600)


def test_busy_process_keeps_its_socket(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_access, "_CONNECT_TIMEOUT", 0.01)
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(place))
        busy.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        for connection in waiting:
            connection.settimeout(0)
            connection.connect_ex(str(place))
        with (
            pytest.raises(RequestError, match="a process listens at"),
            listening_socket(place, None),
        ):
            pass
        for connection in waiting:
            connection.close()
    assert place.exists()


def test_allowed_users_are_looked_up_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.getuid()
    assert AllowedUsers.named("") == AllowedUsers(frozenset({own}))
    with pytest.raises(StudyError, match="no caller is named"):
        AllowedUsers.named("", "root")
    for nobody in ("no such user", "a\0b"):
        with pytest.raises(StudyError, match="has no user"):
            AllowedUsers.named(nobody)
    with pytest.raises(StudyError, match="has no group"):
        AllowedUsers.named("root", "no such group")


@as_root
def test_allowed_users_include_caller_group(tmp_path: Path) -> None:
    import grp
    import pwd

    other = next(u for u in pwd.getpwall() if u.pw_uid != 0)
    theirs = set(os.getgrouplist(other.pw_name, other.pw_gid))
    assert AllowedUsers.named(other.pw_name) == AllowedUsers(
        frozenset({0, other.pw_uid}), other.pw_gid
    )
    strange = next(g.gr_name for g in grp.getgrall() if g.gr_gid not in theirs)
    with pytest.raises(StudyError, match="is not in the group"):
        AllowedUsers.named(other.pw_name, strange)
    assert AllowedUsers.named("root") == AllowedUsers(frozenset({0}))
