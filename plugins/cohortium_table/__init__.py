"""Image files that a table lists, with their labels.

>>> TableDataset(path="chest.csv", label="finding", patient="patient_id").load()  # doctest: +SKIP

    path,finding,patient_id,split
    images/0001.png,normal,P-17,train
    images/0002.png,pneumonia,P-23,test
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from attrs import Attribute, field, frozen

from cohortium.plugin import (
    Dataset,
    Delimiter,
    ImageFileOptions,
    Layout,
    Multiclass,
    Offer,
    Resize,
    StudyError,
    Task,
    build_splits,
    find_data,
    hookimpl,
    listed_files,
    pseudonyms,
    read_image_array,
    read_patient_key,
    read_table,
    valid_intensity_range,
)
from cohortium_table._labels import LabelColumns
from cohortium_table._splits import require_disjoint, rows_by_split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cohortium.plugin import Splits, Table

COHORTIUM_API = 1


def _text(_: object, attribute: Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not value:
        raise StudyError(f"table: {attribute.name} is {value!r}; give a name as text.")


def _names(_: object, attribute: Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    is_texts = isinstance(value, tuple) and all(isinstance(name, str) for name in value)
    if not is_texts or len(set(value)) < len(value):
        raise StudyError(
            f"table: {attribute.name} is {value!r}; give the names in their order as a tuple of "
            "different texts, such as ('benign', 'malignant')."
        )


def _delimiter(_: object, attribute: Attribute[str], value: object) -> None:
    if value not in get_args(Delimiter):
        raise StudyError(
            f"table: {attribute.name} is {value!r}; let it be one of "
            f"{', '.join(map(repr, get_args(Delimiter)))}."
        )


@frozen(kw_only=True)
class TableDataset:
    """Image files of the user's own, listed in a CSV or Parquet file.

    The table has a row for each image, and its first line names the columns.  The files are PNG,
    JPEG, TIFF or npy, and are read in the order of the rows.  A Parquet file needs `pip install
    'cohortium[parquet]'`.

    Attributes:
        path: The table: as given, else under the folder that `COHORTIUM_DATA` names.
        root: The folder of the image files, from which no path may lead out.  By default the
            table's own folder.
        title: Name of the data set in figures.  By default the table's own name.
        classes: Names of the classes.  By default the different labels, sorted.
        source: Citation.
        image: Column of the paths, relative to `root`.
        label: Column of the classes, by name or by number from 0.  By default "label", without
            `labels` and `mask`.
        labels: Columns of findings instead, of which several may hold at once.  Their cells are 1,
            0, or -1 or empty if unknown.
        mask: Column of the paths of masks instead, which have a class for each pixel.
        patient: Column that names the patient of each image, or "".
        patient_key: File of the site's secret key, with which patients become numbers, relative to
            the table's folder.  A missing file is created.  Without one, patients are numbered in
            the order of the table.
        site: Column of the data's own grouping (hospital, scanner, …), or "".
        split: Column of the splits, "train", "val" or "validation", and "test".  By default all
            rows are for training.
        delimiter: The character between the cells of a CSV file.  "auto" takes the only possible
            one of the comma, the semicolon and the tab.
        repeats: Whether several rows of one split may list the same file.
        size: Height and width in pixels to which each image is resized.  Without it, all files
            must have one size.
        resize: Method of resizing: "bilinear" or "bicubic", both with antialiasing, or "nearest".
        pages: Whether the pages of a TIFF file are the slices of a volume.
        layout: Place of the channels in npy files: "channels-last", "channels-first", or "volumes"
            without channels.  "auto" reads only arrays that can be read in one way.
        task: Meaning of a label.  `labels` need a task of several findings, such as "multilabel".
            A `mask` needs "segmentation".
        intensity_range: The stored values that become 0 and 1.  `uint8` images have 0 and 255.
            Images of every other type need a declaration.
    """

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
    split: str = ""
    delimiter: Delimiter = field(default="auto", validator=_delimiter)
    repeats: bool = False
    size: tuple[int, int] | None = None
    resize: Resize = "bilinear"
    pages: bool = False
    layout: Layout = "auto"
    task: Task = field(factory=Multiclass)
    intensity_range: tuple[float, float] | None = field(
        default=None, validator=valid_intensity_range
    )

    def __attrs_post_init__(self) -> None:
        """Refuse options that no file can be read with, and labels of two kinds."""
        _ = self._options, self._label_columns

    @property
    def _options(self) -> ImageFileOptions:
        return ImageFileOptions(
            size=self.size, resize=self.resize, pages=self.pages, layout=self.layout
        )

    @property
    def _label_columns(self) -> LabelColumns:
        return LabelColumns(label=self.label, labels=self.labels, mask=self.mask)

    def load(self) -> Splits:
        """Read the table and the files that it lists.

        Raises:
            DataError: The table is missing or damaged, or a row or a file cannot be read.
        """
        path = find_data(self.path)
        root = find_data(self.root, "folder") if self.root else path.parent
        label_columns = self._label_columns
        named = (self.image, *label_columns.columns, self.patient, self.site, self.split)
        table = read_table(path, [name for name in named if name], delimiter=self.delimiter)
        clients, patients = self._clients(table), self._patients(table, path.parent)
        rows = rows_by_split(table, self.split)
        files = listed_files(table, self.image, root, allow_repeats=self.repeats)
        require_disjoint(table, files, rows)
        order = np.concatenate(list(rows.values()))
        labels, names = label_columns.read(
            table,
            order,
            classes=self.classes or self.task.names,
            root=root,
            options=self._options,
        )
        # All splits share one array, so that no image is copied, and any two files are compared.
        images = read_image_array(
            [files[row] for row in order],
            self._options,
            where=lambda index: table.where(int(order[index])),
        )
        return build_splits(
            {split: len(found) for split, found in rows.items()},
            images,
            labels,
            task=self.task,
            names=names,
            name=self.title or path.stem,
            where=f"{path}: {', '.join(label_columns.columns)[:200]}",
            clients=None if clients is None else clients[order],
            patients=None if patients is None else patients[order],
            source=self.source,
            intensity_range=self.intensity_range,
        )

    def _clients(self, table: Table) -> NDArray[np.int64] | None:
        if not self.site:
            return None
        return table.categories(self.site, "name the site of each image, or declare no site")[0]

    def _patients(self, table: Table, folder: Path) -> NDArray[np.int64] | None:
        if not self.patient:
            return None
        advice = "name the patient of each image, or declare no patient"
        texts = table.complete(self.patient, advice)
        key = Path(self.patient_key).expanduser()
        return pseudonyms(texts, read_patient_key(folder / key) if self.patient_key else None)


@hookimpl
def cohortium_datasets() -> list[Offer[Dataset]]:
    """Offer `table`."""
    return [
        Offer(
            "table",
            TableDataset,
            "Image files that a CSV or Parquet file lists.",
            local_parameters=("path", "root", "patient_key"),
        )
    ]
