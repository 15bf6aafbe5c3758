"""Arrays of an npz file.

A large array that was stored without compression (`numpy.savez`) is mapped from the file, and not
read into memory. The file must not change while it is used.

The file may come from anyone. Nothing in it is ever unpickled, and its size is checked before it is
unpacked.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from cohortium.data.location import other_reader
from cohortium.data.memory import available
from cohortium.data.npy import UNREADABLE, check_header, read_header
from cohortium.data.scratch import MAX_MEMORY_BYTES
from cohortium.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MAX_ARRAY_BYTES: Final = 1 << 34
"""Largest unpacked size of a file in bytes: 16 GiB.

It is just above the largest set of MedMNIST.
"""

_UNREADABLE: Final = (
    *UNREADABLE,
    RuntimeError,  # the archive is encrypted, or packed in a way that zipfile does not know
    zipfile.BadZipFile,
    zlib.error,
)
"""Errors that zipfile and numpy raise over damaged files.

They are the known ones.
"""

_PACKINGS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Compression methods that NumPy writes.

Readers of other methods allocate as much memory as the file asks for.
"""

_DEFLATION: Final = 1032
"""Largest number of bytes that deflate makes of one.

It makes 258, its longest match, of every two bits.
"""


def map_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return every array of an npz file by its name. Large ones are mapped.

    Args:
        path: The file.

    Raises:
        DataError: The file is missing or damaged.
    """
    with reworded_faults(path), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
    return read_arrays(path, names)


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return those arrays of an npz file that are in `names`. Large ones are mapped.

    Args:
        path: The file.
        names: Names of the arrays.

    Raises:
        DataError: The file is missing or damaged, or is too large for the memory.
    """
    with reworded_faults(path), zipfile.ZipFile(path) as archive:
        held = {member.filename: member.file_size for member in archive.infolist()}
        found = {name: f"{name}.npy" for name in names if f"{name}.npy" in held}
        size = sum(held[member] for member in found.values() if not _is_mapped(archive, member))
        # Memory holds the images twice for a moment: as they were read, and in torch's order.
        most = min(MAX_ARRAY_BYTES, available() // 2)
        if size > most:
            raise DataError(
                f"{path} unpacks to {size / 2**30:.1f} GiB, and at most {most / 2**30:.1f} GiB can "
                "be read in the memory there is; split it, or make its images smaller."
            )
        return {name: _array(archive, member) for name, member in found.items()}


def _is_mapped(archive: zipfile.ZipFile, name: str) -> bool:
    """Return whether an array is mapped from the file instead of read.

    It is if it is large and was stored without compression, as `numpy.savez` does.
    """
    member = archive.getinfo(name)
    return member.compress_type == zipfile.ZIP_STORED and member.file_size > MAX_MEMORY_BYTES


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Return one array of `archive`, which cannot be written if it is mapped.

    Raises:
        ValueError: The array claims to be larger than its data can be.
    """
    member = archive.getinfo(name)
    if member.compress_type not in _PACKINGS:
        raise ValueError(f"{name} is packed in a way that NumPy does not use")
    assert archive.fp is not None
    there = min(member.compress_size, archive.fp.seek(0, os.SEEK_END))
    with archive.open(member) as file:
        check_header(file, name, min(member.file_size, _DEFLATION * there))
    if _is_mapped(archive, name):
        return _mapped(archive, member)
    with archive.open(member) as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _mapped(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Return the array of an uncompressed member, mapped from the file."""
    assert archive.fp is not None
    assert archive.filename is not None
    archive.fp.seek(member.header_offset)
    local = archive.fp.read(_LOCAL_HEADER.size)
    *_, name_length, extra_length = _LOCAL_HEADER.unpack(local)
    start = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    with archive.open(member) as file:
        shape, is_fortran, dtype = read_header(file)
        begin = start + file.tell()
    if dtype.hasobject or begin + math.prod(shape) * dtype.itemsize > start + member.file_size:
        raise ValueError(f"{member.filename} claims to hold more than there is")
    order: Literal["F", "C"] = "F" if is_fortran else "C"
    return np.memmap(archive.filename, dtype, "r", begin, shape, order)


_LOCAL_HEADER: Final = struct.Struct("<4s5H3I2H")
"""The header of a member within a zip archive, before its name and extra field."""


@contextmanager
def reworded_faults(path: Path) -> Iterator[None]:
    """Raise one sentence for any error of the libraries about damaged files."""
    try:
        yield
    except _UNREADABLE as error:
        advice = "" if path.suffix.lower() == ".npz" else other_reader(path)
        if advice and not zipfile.is_zipfile(path):
            raise DataError(f"{path} is no npz archive; {advice}.") from error
        reason = str(error).rstrip(".") or type(error).__name__
        raise DataError(
            f"{path} cannot be read as an npz archive ({reason}); copy it anew, or write it anew "
            "with numpy.savez_compressed and without Python objects."
        ) from error
