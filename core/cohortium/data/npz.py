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

The file may come from anyone: `npz_archive` reads its arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast, get_args

from cohortium.data.examples import MAX_INTENSITY, Examples
from cohortium.data.groups import MAX_COLUMNS, MAX_VALUES, GroupColumn, group_codes
from cohortium.data.labels import integer_column
from cohortium.data.multiclass import Multiclass
from cohortium.data.npz_archive import read_arrays, reworded_faults
from cohortium.data.pixels import Layout, to_channels_first
from cohortium.data.splits import Splits
from cohortium.errors import DataError
from cohortium.text import is_printable, truncate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cohortium.data.task import Task

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
    arrays = read_arrays(path, _ARRAYS)
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
    arrays = read_arrays(path, names)
    for name in names:
        if name in arrays:
            return to_channels_first(arrays[name], f"{path}: {name}", shape=shape)
    raise DataError(f"{path} holds neither an array 'images' nor '{split}_images'; save one.")


_LAYOUT: Final = "MedMNIST's layout has images and labels together: train_images, train_labels, …"


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
        with reworded_faults(path):
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
    with reworded_faults(path):
        texts = tuple(str(name) for name in names)
    for text in texts:
        if not is_printable(text):
            raise DataError(
                f"{path}: {key} holds {truncate(text)}, which cannot be shown; rename it."
            )
    return texts
