"""A data set as one file that is mapped instead of read, with a digest of its content.

    digest = write_store(splits, Path("chest.npz"))
    assert stored_digest(Path("chest.npz")) == compute_digest(Path("chest.npz"))

The file is an npz archive in the layout of `npz`, without compression. It has three arrays more:
`layout` and `intensity_range`, which `read_npz_splits` takes where nothing else is declared, and
`sha256`. Every array begins at a multiple of 64 bytes.

The digest is the SHA-256 of all other arrays in the order of their names. Each array begins with a
line of its name, type and shape. Its bytes in C order follow.
"""

from __future__ import annotations

import hashlib
import zipfile
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

from cohortium.data.npz import read_npz_splits
from cohortium.data.npz_archive import map_arrays
from cohortium.data.pixels import FLAT
from cohortium.errors import DataError, RunError
from cohortium.storage.atomic import atomic_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from cohortium.data.examples import Examples
    from cohortium.data.splits import Splits

DIGEST: Final = "sha256"
"""Name of the array with the digest."""

_ALIGNMENT: Final = 64
_PART: Final = 1 << 24
"""Number of bytes that are written at a time."""

_DATE: Final = (1980, 1, 1, 0, 0, 0)
"""Date of every array, so that equal data give equal files."""

_PREFIXES: Final = {"train": "train", "validation": "val", "test": "test"}


def write_store(splits: Splits, path: Path) -> str:
    """Write the splits of a data set to a new file, readable by its owner alone.

    Args:
        splits: The data set. Its arrays may be larger than memory.
        path: The file, which must not exist.

    Returns:
        The digest, as hexadecimal text.

    Guarantees:
        The file exists only as a whole, and `read_npz_splits` returns equal splits from it.
        Memory does not grow with the number of images.

    Raises:
        RunError: The file cannot be written, or exists.
        DataError: The data have a form that the file cannot hold.
    """
    arrays = dict(sorted(_arrays(splits).items()))
    try:
        with atomic_path(path) as temporary:
            digest = hashlib.sha256()
            with (
                temporary.open("r+b") as file,
                zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
            ):
                for name, array in arrays.items():
                    digest.update(_line(name, array))
                    with _member(archive, file, name) as member:
                        member.write(_header(array))
                        for part in _parts(array):
                            digest.update(part)
                            member.write(part)
                with _member(archive, file, DIGEST) as member:
                    np.lib.format.write_array(member, np.array(digest.hexdigest()))
            _require_equal(splits, temporary)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}.") from error
    return digest.hexdigest()


def stored_digest(path: Path) -> str:
    """Return the digest that a store holds.

    Raises:
        DataError: The file is no store, or damaged.
    """
    found = map_arrays(path).get(DIGEST)
    if found is None or found.dtype.kind != "U" or found.shape:
        raise DataError(f"{path} holds no digest; write a store with `cohortium pack`.")
    return str(found)


def compute_digest(path: Path) -> str:
    """Return the digest of the arrays that a store holds.

    Raises:
        DataError: The file is damaged.
    """
    digest = hashlib.sha256()
    for name, array in sorted(map_arrays(path).items()):
        if name != DIGEST:
            digest.update(_line(name, array))
            for part in _parts(array):
                digest.update(part)
    return digest.hexdigest()


def _arrays(splits: Splits) -> dict[str, NDArray[Any]]:
    """Return the arrays of a store, of which none is copied."""
    channels, *size = splits.spec.shape
    is_grey = channels == 1
    arrays: dict[str, NDArray[Any]] = {"classes": np.array(splits.classes)}
    if not (is_grey and len(size) == FLAT):
        arrays["layout"] = np.array("volumes" if is_grey else "channels-first")
    if splits.intensity_range is not None:
        arrays["intensity_range"] = np.array(splits.intensity_range, dtype=np.float64)
    for split, prefix in _PREFIXES.items():
        part: Examples | None = getattr(splits, split)
        if part is None:
            continue
        arrays[f"{prefix}_images"] = part.images[:, 0] if is_grey else part.images
        arrays[f"{prefix}_labels"] = part.labels
        for name in ("clients", "patients", "groups"):
            column = getattr(part, name)
            if column is not None:
                arrays[f"{prefix}_{name}"] = column
    if splits.centres:
        arrays["centres"] = np.array(splits.centres)
    if splits.groups:
        most = max(1, *(len(column.values) for column in splits.groups))
        arrays["group_names"] = np.array([column.name for column in splits.groups])
        arrays["group_values"] = np.array(
            [[*column.values, *[""] * (most - len(column.values))] for column in splits.groups]
        )
    return arrays


def _line(name: str, array: NDArray[Any]) -> bytes:
    return f"{name} {array.dtype.str} {array.shape}\n".encode()


def _header(array: NDArray[Any]) -> bytes:
    file = BytesIO()
    np.lib.format.write_array_header_1_0(
        file,
        {
            "descr": np.lib.format.dtype_to_descr(array.dtype),
            "fortran_order": False,
            "shape": array.shape,
        },
    )
    return file.getvalue()


def _parts(array: NDArray[Any]) -> Iterator[bytes]:
    if not array.ndim:
        yield array.tobytes()
        return
    step = max(1, _PART // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        yield array[start : start + step].tobytes()


def _member(archive: zipfile.ZipFile, file: IO[bytes], name: str) -> IO[bytes]:
    """Return the next array of an archive, whose content begins at a multiple of 64 bytes."""
    info = zipfile.ZipInfo(f"{name}.npy", _DATE)
    # A local header has 30 bytes, the name, 20 bytes of sizes beyond 4 GiB, and the padding.
    used = file.tell() + 30 + len(info.filename) + 20 + 4
    padding = -used % _ALIGNMENT
    info.extra = b"\x35\xd9" + padding.to_bytes(2, "little") + bytes(padding)
    return archive.open(info, "w", force_zip64=True)


def _require_equal(splits: Splits, path: Path) -> None:
    """Refuse data that the store does not hold as they are."""
    again = read_npz_splits(path, name=splits.name, task=splits.task)
    parts: Mapping[str, tuple[Examples | None, Examples | None]] = {
        name: (getattr(splits, name), getattr(again, name)) for name in _PREFIXES
    }
    facts = ("spec", "groups", "centres")
    is_equal = all(getattr(again, name) == getattr(splits, name) for name in facts) and all(
        one is other is None
        or (
            one is not None
            and other is not None
            and one.fingerprint == other.fingerprint
            and _equal_groups(one.groups, other.groups)
        )
        for one, other in parts.values()
    )
    if not is_equal:
        raise DataError(
            f"{splits.name}: a store does not hold these data as they are; use them where they lie."
        )


def _equal_groups(one: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    """Return whether both have the same codes of groups, or none."""
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)
