"""Data sets of the files that a table lists: one mechanism for every format of the files."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import numpy as np
from attrs import Attribute, field, frozen

from cohortium.data.build import build_splits
from cohortium.data.csv_table import Delimiter
from cohortium.data.examples import valid_intensity_range
from cohortium.data.file_reader import FileImage, FileReader
from cohortium.data.groups import MAX_COLUMNS
from cohortium.data.image_file import ImageFileOptions, resize_image
from cohortium.data.location import find_data
from cohortium.data.multiclass import Multiclass
from cohortium.data.postponed_faults import PostponedFaults
from cohortium.data.pseudonyms import pseudonyms, read_patient_key
from cohortium.data.resize import Resize  # noqa: TC001 - the type is read to build a data set
from cohortium.data.table import MISSING_NAMES, read_table
from cohortium.data.table_examples import read_listed
from cohortium.data.table_files import listed_rows
from cohortium.data.table_groups import read_group
from cohortium.data.table_labels import class_labels, finding_labels
from cohortium.data.table_splits import require_disjoint, rows_by_split
from cohortium.data.task import Task  # noqa: TC001 - the type is read to build a data set
from cohortium.errors import DataError, StudyError
from cohortium.text import is_printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from cohortium.data.groups import GroupColumn
    from cohortium.data.splits import Splits
    from cohortium.data.survey import DataSurvey
    from cohortium.data.table import Table
    from cohortium.data.table_examples import ListedFormat


def _text(self: FileTable, attribute: Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not value:
        raise StudyError(f"{self.kind}: {attribute.name} is {value!r}; give a name as text.")


def _names(self: FileTable, attribute: Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    is_texts = isinstance(value, tuple) and all(isinstance(name, str) for name in value)
    if not is_texts or len(set(value)) < len(value):
        raise StudyError(
            f"{self.kind}: {attribute.name} is {value!r}; give the names in their order as a tuple "
            "of different texts, such as ('benign', 'malignant')."
        )


def _delimiter(self: FileTable, attribute: Attribute[str], value: object) -> None:
    if value not in get_args(Delimiter):
        raise StudyError(
            f"{self.kind}: {attribute.name} is {value!r}; let it be one of "
            f"{', '.join(map(repr, get_args(Delimiter)))}."
        )


@frozen(kw_only=True)
class FileTable:
    """Files of the user's own, listed in a CSV or Parquet file.

    The table has a row for each image, and its first line names the columns. Files are read in the
    order of the rows. A data set of a file format is a subclass, which defines `file_format`.

    Attributes:
        path: The table: as given, else under the folder that `COHORTIUM_DATA` names.
        root: The folder of the files, from which no path may lead out. By default the table's own
            folder.
        title: Name of the data set in figures. By default the table's own name.
        classes: Names of the classes. By default the different labels, sorted.
        source: Citation.
        image: Column of the paths, relative to `root`.
        label: Column of the classes, by name or by number from 0. By default "label", without
            `labels` and `mask`.
        labels: Columns of findings instead, of which several may hold at once. Their cells are 1,
            0, or -1 or empty if unknown.
        mask: Column of the paths of masks instead, which have a class for each pixel.
        patient: Column that names the patient of each image, or "".
        patient_key: File of the site's secret key, with which patients become numbers, relative to
            the table's folder. A missing file is created. Without one, patients are numbered in
            the order of the table.
        site: Column of the data's own grouping (hospital, scanner, …), or "".
        groups: Columns of groups, such as sex, age range or scanner, by which test scores are
            reported. An empty cell is not stated.
        split: Column of the splits, "train", "val" or "validation", and "test". By default all rows
            are for training.
        delimiter: The character between the cells of a CSV file. "auto" takes the only possible one
            of the comma, the semicolon and the tab.
        repeats: Whether several rows of one split may list the same file.
        size: Height and width in pixels to which each image is resized. Without it, all files must
            have one size.
        resize: Method of resizing: "bilinear" or "bicubic", both with antialiasing, or "nearest".
        task: Meaning of a label. `labels` need a task of several findings, such as "multilabel". A
            `mask` needs "segmentation".
        intensity_range: The stored values that become 0 and 1. `uint8` images have 0 and 255.
            Images of every other type need a declaration.
    """

    kind: ClassVar[str] = "table"
    """Name of the data set in an error."""

    path: str = field(validator=_text)
    root: str = ""
    title: str = ""
    classes: tuple[str, ...] = field(default=(), validator=_names)
    source: str = ""
    image: str = field(default="path", validator=_text)
    label: str = ""
    labels: tuple[str, ...] = field(default=(), validator=_names)
    mask: str = ""
    patient: str = ""
    patient_key: str = ""
    site: str = ""
    groups: tuple[str, ...] = field(default=(), validator=_names)
    split: str = ""
    delimiter: Delimiter = field(default="auto", validator=_delimiter)
    repeats: bool = False
    size: tuple[int, int] | None = None
    resize: Resize = "bilinear"
    task: Task = field(factory=Multiclass)
    intensity_range: tuple[float, float] | None = field(
        default=None, validator=valid_intensity_range
    )

    def __attrs_post_init__(self) -> None:
        """Refuse a size that no image can have, and labels of two kinds."""
        _ = self._resizing
        if (self.label != "") + (self.labels != ()) + (self.mask != "") > 1:
            raise StudyError(
                f"{self.kind}: label, labels and mask are three kinds of labels; give one of them."
            )
        if len(self.groups) > MAX_COLUMNS or (self.patient and self.patient in self.groups):
            raise StudyError(
                f"{self.kind}: groups names {len(self.groups)} columns; declare at most "
                f"{MAX_COLUMNS}, and not that of the patients."
            )

    @property
    def _resizing(self) -> ImageFileOptions:
        return ImageFileOptions(size=self.size, resize=self.resize)

    @property
    def _label_columns(self) -> tuple[str, ...]:
        return self.labels or (self.mask or self.label or "label",)

    @property
    def _keys_of_columns(self) -> dict[str, str]:
        """Each column to read, with the key that names it."""
        kind = "labels" if self.labels else "mask" if self.mask else "label"
        named = [(self.image, "image"), *((column, kind) for column in self._label_columns)]
        named += [(getattr(self, key), key) for key in ("patient", "site", "split")]
        named += [(column, "groups") for column in self.groups]
        keys: dict[str, str] = {}
        for column, key in named:
            if column:
                keys.setdefault(column, key)
        return keys

    @property
    def file_format(self) -> ListedFormat | None:
        """The format of the files, or None if a subclass has a `load` of its own."""
        return None

    def load(self) -> Splits:
        """Read the table and the files that it lists.

        Raises:
            DataError: The table is missing or damaged, or a row or a file cannot be read.
        """
        return self.read_splits(self._required_format)

    def load_readable(self, survey: DataSurvey) -> Splits:
        """Read the files that can be read, and note the others.

        Args:
            survey: Takes the reason of each row whose file is refused.

        Raises:
            DataError: The table is missing or damaged, or no training file can be read.
        """
        return self.read_splits(self._required_format, survey)

    def file_reader(self) -> FileReader | None:
        """Return the reader of single files like those that the table lists."""
        file_format = self.file_format
        if file_format is None:
            return None

        def read(path: Path) -> FileImage:
            with warnings.catch_warnings(action="ignore"):
                example = file_format.read(path, None)
            return FileImage(
                pixels=resize_image(example.image, path, self._resizing),
                size=example.image.shape[1:],
                mask_format=example.mask_format,
            )

        return FileReader(suffixes=file_format.suffixes, read=read)

    @property
    def _required_format(self) -> ListedFormat:
        file_format = self.file_format
        if file_format is None:
            raise NotImplementedError(f"{type(self).__name__} defines no file_format and no load")
        return file_format

    def read_splits(self, file_format: ListedFormat, survey: DataSurvey | None = None) -> Splits:
        """Read the table and the files that it lists.

        Args:
            file_format: The format of the files.
            survey: Takes the reason of each row whose file is refused. The row is then left out.
                Without it, the first such row is an error.

        Raises:
            DataError: The table is missing or damaged, or a row or a file cannot be read.
        """
        path = find_data(self.path)
        root = find_data(self.root, "folder") if self.root else path.parent
        keys = self._keys_of_columns
        table = read_table(path, list(keys), delimiter=self.delimiter, keys=keys)
        key = None
        if self.patient_key:
            key = read_patient_key(path.parent / Path(self.patient_key).expanduser())
        # A look tells faults of the table and of the files in one go.
        faults = PostponedFaults(is_look=survey is not None)
        clients, centres = faults.attempt(lambda: self._clients(table)) or (None, ())
        patients = faults.attempt(lambda: self._patients(table, key))
        groups = [faults.attempt(partial(read_group, table, column)) for column in self.groups]
        rows = rows_by_split(table, self.split)
        files = listed_rows(
            table,
            self.image,
            root,
            allow_repeats=self.repeats,
            suffixes=file_format.suffixes,
            allow_folders=file_format.has_folders,
            survey=survey,
        )
        masks = self._masks(table, root, file_format, survey)
        is_listed = np.array(
            [row in files and (masks is None or row in masks) for row in range(len(table))]
        )
        rows = {split: found[is_listed[found]] for split, found in rows.items()}
        faults.attempt(lambda: require_disjoint(table, files, rows))
        order = np.concatenate(list(rows.values()))
        labelled = faults.attempt(lambda: self._labels(table))
        if not len(order):
            faults.raise_all()
            raise DataError(f"{path}: no row lists a file; see the reason of each.")
        # All splits share one array, so that no image is copied, and any two files are compared.
        read = faults.attempt(
            lambda: read_listed(
                file_format,
                [files[row] for row in order],
                None if masks is None else [masks[row] for row in order],
                self._resizing,
                where=lambda index: table.where(int(order[index])),
                survey=survey,
            )
        )
        faults.raise_all()
        assert labelled is not None
        assert read is not None
        labels, names = labelled
        order = order[read.rows]
        rows = {split: found[np.isin(found, order)] for split, found in rows.items()}
        if not len(rows["train"]):
            raise DataError(f"{path}: no training file can be read; see the reason of each.")
        if patients is not None:
            patients = patients[order]
        elif read.patients is not None:
            patients = pseudonyms(read.patients, key)
        return build_splits(
            {split: len(found) for split, found in rows.items() if len(found)},
            read.images,
            labels[order] if read.masks is None else read.masks,
            task=self.task,
            names=names,
            name=self.title or path.stem,
            where=f"{path}: {', '.join(self._label_columns)[:200]}",
            clients=None if clients is None else clients[order],
            patients=patients,
            source=self.source,
            intensity_range=self.intensity_range,
            groups=[group[0] for group in groups if group is not None],
            codes=_codes(groups)[order] if groups else None,
            centres=centres,
        )

    def _labels(self, table: Table) -> tuple[NDArray[Any], tuple[str, ...]]:
        """Return the labels of all rows, none for masks, with the names of the classes if known."""
        classes = self.classes or self.task.names
        if self.labels:
            return finding_labels(table, self.labels), classes or self.labels
        if self.mask:
            return np.empty(0), classes
        return class_labels(table, self._label_columns[0], classes)

    def _masks(
        self, table: Table, root: Path, file_format: ListedFormat, survey: DataSurvey | None
    ) -> dict[int, Path] | None:
        if not self.mask:
            return None
        # Images may share a mask, such as an empty one.
        return listed_rows(
            table,
            self.mask,
            root,
            allow_repeats=True,
            suffixes=file_format.mask_suffixes,
            survey=survey,
        )

    def _clients(self, table: Table) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
        """Return the centre of each row, and their names if all of them can be shown."""
        if not self.site:
            return None, ()
        advice = "name the site of each image, or declare no site"
        clients, names = table.categories(self.site, advice)
        return clients, names if all(map(is_printable, names)) else ()

    def _patients(self, table: Table, key: bytes | None) -> NDArray[np.int64] | None:
        """Return the patients of the column, numbered in the order of the table without a key."""
        if not self.patient:
            return None
        advice = "name the patient of each image, or declare no patient"
        # Unknown patients would be one, and the guarantee for each of them would not hold.
        return pseudonyms(table.complete(self.patient, advice, MISSING_NAMES), key)


def _codes(
    groups: Sequence[tuple[GroupColumn, NDArray[np.int64]] | None],
) -> NDArray[np.int64]:
    """Return the codes of each row, shape (N, K)."""
    return np.stack([group[1] for group in groups if group is not None], 1)
