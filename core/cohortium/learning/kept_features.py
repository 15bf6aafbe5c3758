"""Features of images, kept in files between runs.

A model such as `pretrained` or `scatternet` computes the same features of the same images in every
run. A folder that the user names keeps them. A file's name is the key of all that determines its
content (`feature_key`).

The features are derived from the images. So the folder needs the protection of the images, and is
removed with them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import os
import re
import stat
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from attrs import define, field, frozen

from cohortium.data.scratch import MAX_MEMORY_BYTES, new_array
from cohortium.errors import RunError
from cohortium.storage.atomic import UNFINISHED, make_durable
from cohortium.text import escape_control_characters

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import IO

    from numpy.typing import DTypeLike, NDArray

_LOG = logging.getLogger(__name__)

VARIABLE: Final = "COHORTIUM_FEATURES"
"""Environment variable that names the folder of a simulation."""

MAX_FOLDER_GIB: Final = 16
"""Largest size of all files of a folder by default, in GiB."""

HEADER_BYTES: Final = 4096
"""Size of a file's header. The array after it begins on a page."""

MAGIC: Final = b"cohortium features 1"
SUFFIX: Final = ".features"
TYPES: Final = ("<f2", "<f4", "<f8")
"""Types of the numbers in a file."""

_NAME: Final = re.compile(rf"[0-9a-f]{{64}}{re.escape(SUFFIX)}")
_UNFINISHED_NAME: Final = re.compile(rf"\.[0-9a-f]{{64}}\..*{re.escape(SUFFIX + UNFINISHED)}")


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Header of a file."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str


@frozen
class FeatureFolder:
    """A folder of files, each with the features of one set of images.

    Guarantees:
        `read` returns an array only if the file is whole and belongs to this user.
        A whole file's header names the key, the form and the SHA-256 of its array.
        Any other file counts as missing, and `new_file` replaces it.
        A file appears under its name after all of its bytes are durable.
        A process that is killed leaves no file under its name. A later `new_file` removes the rest.
        Several processes may use the folder at a time.
        Files have mode 0600, and a folder that is created has mode 0700.

    Attributes:
        path: The folder.
        max_bytes: Largest size of all files. The least recently used ones are removed for a new
            one. Processes that write at the same time may exceed it by their own files.
    """

    path: Path
    max_bytes: int = MAX_FOLDER_GIB << 30

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> FeatureFolder | None:
        """Return the folder that `COHORTIUM_FEATURES` names, or None."""
        named = environ.get(VARIABLE, "")
        return cls(Path(named).absolute()) if named else None

    def read(self, key: str) -> NDArray[Any] | None:
        """Return the array of `key`, or None without a whole file.

        A large array is mapped. Changes of the array do not reach the file.
        """
        path = self._file(key)
        try:
            with _opened(path) as file:
                array = _checked(file, key)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as error:
            why = escape_control_characters(str(error))
            _LOG.warning("%s is damaged or foreign (%s), and is replaced.", path, why)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return array

    @contextlib.contextmanager
    def new_file(self, key: str, size: int) -> Iterator[FeatureFile]:
        """Yield a new file for an array of `size` bytes, and remove it unless it is finished.

        Raises:
            RunError: The folder cannot be written, or has no room. Nothing was computed.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._make_room(size)
            file, temporary = self._locked_file(key)
        except OSError as error:
            raise _unusable(self.path, error) from error
        try:
            with file:
                try:
                    os.posix_fallocate(file.fileno(), 0, HEADER_BYTES + size)
                except OSError as error:
                    raise _unusable(self.path, error) from error
                yield FeatureFile(file, key, temporary, self._file(key))
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return self.path / f"{key}{SUFFIX}"

    def _locked_file(self, key: str) -> tuple[IO[bytes], Path]:
        """Create and lock an unfinished file, so that no other process removes it."""
        while True:
            handle, name = tempfile.mkstemp(
                dir=self.path, prefix=f".{key}.", suffix=f"{SUFFIX}{UNFINISHED}"
            )
            file = os.fdopen(handle, "r+b")
            _lock(file, waits=True)
            if os.fstat(handle).st_nlink:
                return file, Path(name)
            file.close()  # another process has removed it before it was locked

    def _make_room(self, size: int) -> None:
        """Remove the rest of killed processes, and the oldest files beyond the limit."""
        held = []
        for path in self.path.iterdir():
            if _UNFINISHED_NAME.fullmatch(path.name):
                _remove_abandoned(path)
            elif _NAME.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode):
                        held.append((status.st_mtime_ns, status.st_size, path))
        total = size + HEADER_BYTES + sum(each for _, each, _ in held)
        for _, each, path in sorted(held):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= each


@define(eq=False)
class FeatureFile:
    """A new file, which has no name until it is finished."""

    _file: IO[bytes]
    _key: str
    _temporary: Path
    _target: Path
    _array: NDArray[Any] | None = field(default=None, init=False, repr=False)

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array with arbitrary content. A large one lies in the file."""
        if math.prod(shape) * np.dtype(dtype).itemsize <= MAX_MEMORY_BYTES:
            return new_array(shape, dtype)
        self._array = np.memmap(
            self._file, dtype=dtype, mode="r+", offset=HEADER_BYTES, shape=shape
        )
        return self._array

    def finish(self, array: NDArray[Any]) -> NDArray[Any]:
        """Give the file its name and content, and return the array.

        Args:
            array: The array, which may be the one that `allocate` returned.

        Raises:
            RunError: The file cannot be written.
        """
        try:
            return self._finish(array)
        except OSError as error:
            raise _unusable(self._target.parent, error) from error

    def _finish(self, array: NDArray[Any]) -> NDArray[Any]:
        file = self._file
        if isinstance(self._array, np.memmap):
            self._array.flush()
        else:
            file.seek(HEADER_BYTES)
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        file.truncate(HEADER_BYTES + array.nbytes)
        file.flush()
        header = _Header(self._key, array.shape, array.dtype.str, _digest(file))
        text = b"%s\n%s\n" % (MAGIC, msgspec.json.encode(header))
        file.seek(0)
        file.write(text.ljust(HEADER_BYTES, b"\0"))
        file.flush()
        os.fsync(file.fileno())
        self._temporary.replace(self._target)
        make_durable(self._target.parent)
        if self._array is None:
            return array
        # A private copy: what a trainer writes into its inputs must not reach the file.
        return np.memmap(file, dtype=array.dtype, mode="c", offset=HEADER_BYTES, shape=array.shape)


def _opened(path: Path) -> IO[bytes]:
    """Open a file for reading, without following a link or waiting for a pipe.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is no file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    handle = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError("it is no file")
    return os.fdopen(handle, "rb")


def _checked(file: IO[bytes], key: str) -> NDArray[Any]:
    """Return the array of a whole file.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not whole, or another user's.
        msgspec.MsgspecError: Its header has another form.
    """
    status = os.fstat(file.fileno())
    if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        raise ValueError("it belongs to another user")
    magic, _, rest = file.read(HEADER_BYTES).partition(b"\n")
    if magic != MAGIC:
        raise ValueError("it has another format")
    header = msgspec.json.decode(rest.partition(b"\n")[0], type=_Header)
    shape, dtype = header.shape, header.dtype
    if header.key != key:
        raise ValueError("its key is another one")
    if dtype not in TYPES or not shape or min(shape) < 1:
        raise ValueError("it has no array of features")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if status.st_size != HEADER_BYTES + size:
        raise ValueError("its size is another one")
    if _digest(file) != header.sha256:
        raise ValueError("its content has another SHA-256")
    if size > MAX_MEMORY_BYTES:
        return np.memmap(file, dtype=dtype, mode="c", offset=HEADER_BYTES, shape=shape)
    array = np.empty(shape, dtype)
    assert isinstance(file, io.BufferedIOBase)
    file.seek(HEADER_BYTES)
    if file.readinto(array.reshape(-1).view(np.uint8).data) != size:
        raise ValueError("it was truncated")
    return array


def _digest(file: IO[bytes]) -> str:
    """Return the SHA-256 of a file's array."""
    assert isinstance(file, io.BufferedIOBase)
    file.seek(HEADER_BYTES)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _unusable(folder: Path, error: OSError) -> RunError:
    why = escape_control_characters(str(error.strerror))
    return RunError(
        f"the folder of features {folder} cannot be used ({why}); correct 'features' in the site "
        f"file or the variable {VARIABLE}, or leave it out."
    )


def _lock(file: IO[bytes], *, waits: bool) -> None:
    """Lock a file that is being written, until it is closed or its process ends.

    Raises:
        OSError: Another process has the lock, and the call does not wait.
    """
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))


def _remove_abandoned(path: Path) -> None:
    """Remove an unfinished file, unless a process is writing it."""
    with contextlib.suppress(OSError), path.open("r+b") as file:
        _lock(file, waits=False)
        path.unlink(missing_ok=True)
