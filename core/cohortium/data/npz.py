"""Files in MedMNIST's array layout, read as a data set's splits.

    from cohortium.plugin import read_npz_splits

    splits = read_npz_splits(Path("pneumoniamnist.npz"), name="PneumoniaMNIST")

Such a file is an npz archive with these arrays:

- `train_images` of shape (N, H, W) or (N, H, W, C), or of volumes,
- `train_labels` in the form of the task: (N,) or (N, 1), integers from 0, for one class each,
- the same for `val_` and `test_`, if there is such a split,
- `train_clients` (N,), integers, if the data have a grouping of their own (by hospital, say), and
  the same for the other splits,
- `train_patients` (N,), if the patient of each image is known, and the same for the other splits,
- `train_groups` (N, G), integers, if the images have groups such as sex or scanner, and the same
  for the other splits. A number is a value of its column, from 0, or -1 if it is not stated,
- `group_names` (G,), the names of the columns of groups, as text,
- `group_values` (G, V), the names of their values in the order of the numbers, as text, with ""
  after the last value of a column,
- `centres`, the names of the centres that `train_clients` numbers from 0, as text,
- `classes`, the names of the classes, as text,
- `layout`, the order of the images' axes, and `intensity_range`, the two stored values that become
  0 and 1, where nothing else is declared.

See `to_channels_first` and `labels` for the refusals.

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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

import numpy as np

from cohortium.data.examples import MAX_INTENSITY, Examples
from cohortium.data.groups import MAX_COLUMNS, MAX_VALUES, GroupColumn, group_codes
from cohortium.data.labels import integer_column
from cohortium.data.memory import available
from cohortium.data.multiclass import Multiclass
from cohortium.data.npy import UNREADABLE, check_header, read_header
from cohortium.data.pixels import Layout, to_channels_first
from cohortium.data.scratch import MAX_MEMORY_BYTES
from cohortium.data.splits import Splits
from cohortium.errors import DataError
from cohortium.text import is_printable, truncate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from cohortium.data.task import Task

DATA_FOLDER: Final = "COHORTIUM_DATA"
"""The environment variable that names the folder of data files."""

MAX_ARRAY_BYTES: Final = 1 << 34
"""Largest unpacked size of a file in bytes: 16 GiB.

It is just above the largest set of MedMNIST.
"""

_ARRAYS: Final = (
    *(
        f"{split}_{what}"
        for split in ("train", "val", "test")
        for what in ("images", "labels", "clients", "patients", "groups")
    ),
    "classes",
    "group_names",
    "group_values",
    "centres",
    "layout",
    "intensity_range",
)

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


def data_dir() -> Path | None:
    """Return the folder that `COHORTIUM_DATA` names, or None."""
    named = os.environ.get(DATA_FOLDER, "")
    return Path(named).expanduser() if named else None


def first_existing(*places: Path) -> Path | None:
    """Return the first of `places` that is a file, or None."""
    for place in places:
        # Path.is_file raises if a parent folder may not be searched.
        if os.path.isfile(place):  # noqa: PTH113 - see above
            return place
    return None


def read_npz_splits(
    path: Path,
    *,
    name: str,
    task: Task | None = None,
    classes: Sequence[str] = (),
    source: str = "",
    layout: Layout = "auto",
    intensity_range: tuple[float, float] | None = None,
) -> Splits:
    """Read a file in MedMNIST's array layout.

    Args:
        path: The npz file.
        name: Name of the data that figures are reported with.
        task: Meaning of a label. By default, each image has one class.
        classes: Names of the classes. Without them, the names are the task's, the file's own
            `classes`, or "0", "1", ….
        source: Work to cite.
        layout: Order of the images' axes, if their shape is ambiguous. "auto" takes that of the
            file, if it names one.
        intensity_range: The stored values that become 0 and 1, which `uint8` images do not need.
            None takes those of the file, if it names some.

    Returns:
        The splits, with images of shape (N, C, …). The validation and the test split are None if
        the file has none.

    Raises:
        DataError: The file is missing or damaged, or lacks an array. Or an array has another form,
            or can be read in several ways.
    """
    task = Multiclass() if task is None else task
    arrays = _read(path)
    if layout == "auto":
        layout = _layout(arrays, path)
    if intensity_range is None:
        intensity_range = _intensity_range(arrays, path)
    parts = {
        split: _examples(arrays, split, path, task, layout) for split in ("train", "val", "test")
    }
    train = parts["train"]
    if train is None:
        raise DataError(f"{path} holds no array 'train_images'; {_LAYOUT}.")
    labels = {split: part.labels for split, part in parts.items() if part is not None}
    given = tuple(classes) or task.names or _names(arrays, path, "classes")
    names = (found := task.named(labels, given, str(path))).names
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two classes have one name ({', '.join(names)}); rename one.")
    return Splits(
        name=name,
        task=found,
        train=train,
        validation=parts["val"],
        test=parts["test"],
        source=source,
        intensity_range=intensity_range,
        groups=_columns(arrays, list(parts.values()), path),
        centres=_names(arrays, path, "centres"),
    )


def map_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return every array of an npz file by its name. Large ones are mapped.

    Args:
        path: The file.

    Raises:
        DataError: The file is missing or damaged.
    """
    with _worded(path), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
    return _read(path, names)


def read_images(path: Path, *, split: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the images of an npz file, without their labels.

    Args:
        path: The file: an array `images`, or a file in MedMNIST's layout.
        split: Name of the layout's split, if there is no array `images`.
        shape: The required shape of an image, (C, …). It decides between two ways of reading.

    Returns:
        Images of shape (N, C, …).

    Raises:
        DataError: The file is missing or damaged, or has no such array, or one of another form.
    """
    names = ("images", f"{split}_images")
    arrays = _read(path, names)
    for name in names:
        if name in arrays:
            return to_channels_first(arrays[name], f"{path}: {name}", shape=shape)
    raise DataError(f"{path} holds neither an array 'images' nor '{split}_images'; save one.")


_LAYOUT: Final = "MedMNIST's layout has images and labels together: train_images, train_labels, …"


def _read(path: Path, names: Sequence[str] = _ARRAYS) -> dict[str, NDArray[Any]]:
    """Return those arrays of the file that are in `names`."""
    with _worded(path), zipfile.ZipFile(path) as archive:
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
def _worded(path: Path) -> Iterator[None]:
    """Raise one sentence for any error of the libraries about damaged files."""
    try:
        yield
    except _UNREADABLE as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise DataError(
            f"{path} cannot be read as an npz archive ({reason}); copy it anew, or write it anew "
            "with numpy.savez_compressed and without Python objects."
        ) from error


def _examples(
    arrays: dict[str, NDArray[Any]], split: str, path: Path, task: Task, layout: Layout
) -> Examples | None:
    """Remove a split from `arrays`, and return it.

    The result is None if the file does not have the split.
    """
    images = arrays.pop(f"{split}_images", None)
    labels = arrays.pop(f"{split}_labels", None)
    numbers = {name: arrays.pop(f"{split}_{name}", None) for name in ("clients", "patients")}
    codes = arrays.pop(f"{split}_groups", None)
    if images is None and labels is None:
        return None
    for what, array in (("images", images), ("labels", labels)):
        if array is None:
            raise DataError(f"{path} holds no array '{split}_{what}'; {_LAYOUT}.")
    assert images is not None
    assert labels is not None
    taken = to_channels_first(images, f"{path}: {split}_images", layout=layout)
    columns = {
        name: None
        if column is None
        else integer_column(column, len(taken), f"{path}: {split}_{name}")
        for name, column in numbers.items()
    }
    found = task.read_labels(labels, taken.shape, f"{path}: {split}_labels")
    groups = None if codes is None else group_codes(codes, len(taken), f"{path}: {split}_groups")
    return Examples(taken, found, columns["clients"], columns["patients"], groups)


def _columns(
    arrays: dict[str, NDArray[Any]], parts: list[Examples | None], path: Path
) -> tuple[GroupColumn, ...]:
    """Return the columns of groups in the file, if any."""
    coded = [part.groups for part in parts if part is not None and part.groups is not None]
    if not coded:
        return ()
    names = _names(arrays, path, "group_names")
    if not 0 < len(names) <= MAX_COLUMNS or any(len(names) != codes.shape[1] for codes in coded):
        raise DataError(
            f"{path}: group_names has {len(names)} names, and the groups have "
            f"{coded[0].shape[1]} columns; save one name for each, at most {MAX_COLUMNS}."
        )
    values = arrays.pop("group_values", None)
    if values is None:
        most = [max(int(codes[:, k].max(initial=-1)) for codes in coded) for k in range(len(names))]
        texts = [tuple(map(str, range(highest + 1))) for highest in most]
    elif values.dtype.kind != "U" or values.ndim != 2 or len(values) != len(names):  # noqa: PLR2004
        raise DataError(
            f"{path}: group_values is {values.dtype} of shape {values.shape}; save text of shape "
            f'({len(names)}, V), a row for each of group_names, with "" after its last value.'
        )
    elif values.shape[1] > MAX_VALUES:
        raise DataError(
            f"{path}: group_values has {values.shape[1]} columns; a group has at most {MAX_VALUES} "
            "values."
        )
    else:
        with _worded(path):
            texts = [_without_padding(row) for row in values]
    try:
        return tuple(GroupColumn(*each) for each in zip(names, texts, strict=True))
    except ValueError as error:
        raise DataError(f"{path}: a column of groups has {error}.") from error


def _without_padding(row: NDArray[Any]) -> tuple[str, ...]:
    cells = [str(cell) for cell in row]
    while cells and not cells[-1]:
        cells.pop()
    return tuple(cells)


def _layout(arrays: dict[str, NDArray[Any]], path: Path) -> Layout:
    """Return the order of the axes that the file names, or "auto"."""
    found = arrays.pop("layout", None)
    if found is None:
        return "auto"
    text = str(found) if found.dtype.kind == "U" and not found.shape else ""
    if text not in get_args(Layout):
        raise DataError(
            f"{path}: layout is {found.dtype} of shape {found.shape}; save one text of "
            f"{', '.join(get_args(Layout))}, or none."
        )
    return cast("Layout", text)


def _intensity_range(arrays: dict[str, NDArray[Any]], path: Path) -> tuple[float, float] | None:
    """Return the stored values that become 0 and 1, if the file names them."""
    found = arrays.pop("intensity_range", None)
    if found is None:
        return None
    is_range = found.dtype.kind in "iuf" and found.shape == (2,)
    if not is_range or not -MAX_INTENSITY <= found[0] < found[1] <= MAX_INTENSITY:
        raise DataError(
            f"{path}: intensity_range is no range; save two numbers, the lower one first, or none."
        )
    return float(found[0]), float(found[1])


def _names(arrays: dict[str, NDArray[Any]], path: Path, key: str) -> tuple[str, ...]:
    """Return the names in the array `key` of the file, if any."""
    names = arrays.pop(key, None)
    if names is None:
        return ()
    if names.dtype.kind != "U" or names.ndim != 1:
        raise DataError(
            f"{path}: {key} is {names.dtype} of shape {names.shape}; save the names in the order "
            "of the numbers as text of shape (K,)."
        )
    with _worded(path):
        texts = tuple(str(name) for name in names)
    for text in texts:
        if not is_printable(text):
            raise DataError(
                f"{path}: {key} holds {truncate(text)}, which cannot be shown; rename it."
            )
    return texts
