"""Image files in a folder for each class.

>>> Folder(path="lesions", classes=("benign", "malignant")).load()  # doctest: +SKIP

    lesions/benign/a.png            or      lesions/train/benign/a.png
    lesions/malignant/b.png                 lesions/test/malignant/b.png
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import Attribute, evolve, field, frozen

from cohortium.plugin import (
    IMAGE_SUFFIXES,
    DataError,
    Dataset,
    DataSurvey,
    FileImage,
    FileReader,
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
    read_image,
    read_image_array,
    read_readable_images,
    resize_image,
    valid_intensity_range,
)
from cohortium_folder._tree import read_tree

if TYPE_CHECKING:
    from pathlib import Path

    from cohortium.plugin import Splits

COHORTIUM_API = 1


def _text(_: object, attribute: Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not value:
        raise StudyError(f"folder: {attribute.name} is {value!r}; name the folder as text.")


def _names(_: object, attribute: Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    is_texts = isinstance(value, tuple) and all(isinstance(name, str) for name in value)
    if not is_texts or len(set(value)) < len(value):
        raise StudyError(
            f"folder: {attribute.name} is {value!r}; give the names of the class folders as a "
            "tuple of different texts, such as ('benign', 'malignant')."
        )


@frozen(kw_only=True)
class Folder:
    """Image files of the user's own, in a folder for each class.

    The files are PNG, JPEG, TIFF or npy.  Folders `train`, `val` and `test` may hold the class
    folders of each split.  Files are read in the order of the classes, then of their names.
    Hidden files are ignored, and every other file that is no image is refused.

    Attributes:
        path: The folder: as given, else under the folder that `COHORTIUM_DATA` names.
        title: Name of the data set in figures.  By default the folder's own name.
        classes: Names of the classes.  By default the names of the class folders, sorted.  A
            declared class needs no folder, as a hospital may lack some.
        source: Citation.
        size: Height and width in pixels to which each image is resized.  Without it, all files
            must have one size.
        resize: Method of resizing: "bilinear" or "bicubic", both with antialiasing, or "nearest".
        pages: Whether the pages of a TIFF file are the slices of a volume.
        layout: Place of the channels in npy files: "channels-last", "channels-first", or "volumes"
            without channels.  "auto" reads only arrays that can be read in one way.
        task: Meaning of a class folder.
        intensity_range: The stored values that become 0 and 1.  `uint8` images have 0 and 255.
            Images of every other type need a declaration.
    """

    path: str = field(validator=_text)
    title: str = ""
    classes: tuple[str, ...] = field(default=(), validator=_names)
    source: str = ""
    size: tuple[int, int] | None = None
    resize: Resize = "bilinear"
    pages: bool = False
    layout: Layout = "auto"
    task: Task = field(factory=Multiclass)
    intensity_range: tuple[float, float] | None = field(
        default=None, validator=valid_intensity_range
    )

    def __attrs_post_init__(self) -> None:
        """Refuse options that no file can be read with."""
        _ = self._options

    @property
    def _options(self) -> ImageFileOptions:
        return ImageFileOptions(
            size=self.size, resize=self.resize, pages=self.pages, layout=self.layout
        )

    def load(self) -> Splits:
        """Read the files.

        Raises:
            DataError: The folder is missing or has another structure, or a file cannot be read.
        """
        return self._read()

    def load_readable(self, survey: DataSurvey) -> Splits:
        """Read the files that can be read, and note the others.

        Raises:
            DataError: The folder has another structure, or no training file can be read.
        """
        return self._read(survey)

    def file_reader(self) -> FileReader:
        """Return the reader of single files like those of the folder."""
        options = self._options

        def read(path: Path) -> FileImage:
            image = read_image(path, evolve(options, size=None))
            return FileImage(pixels=resize_image(image, path, options), size=image.shape[1:])

        return FileReader(suffixes=IMAGE_SUFFIXES, read=read)

    def _read(self, survey: DataSurvey | None = None) -> Splits:
        root = find_data(self.path, "folder")
        tree = read_tree(root, self.classes or self.task.names, survey)
        files = [path for split in tree.splits.values() for path, _ in split]
        labels = np.array(
            [label for split in tree.splits.values() for _, label in split], dtype=np.int64
        )
        split_of = np.repeat(list(tree.splits), [len(split) for split in tree.splits.values()])
        # All splits share one array, so that no image is copied, and any two files are compared.
        if survey is None:
            images = read_image_array(files, self._options)
        else:
            kept, images = read_readable_images(files, self._options, survey)
            labels, split_of = labels[kept], split_of[kept]
        sizes = {name: int((split_of == name).sum()) for name in tree.splits}
        if not sizes["train"]:
            raise DataError(f"{root}: no training file can be read; see the reason of each.")
        return build_splits(
            {name: size for name, size in sizes.items() if size},
            images,
            labels,
            task=self.task,
            names=tree.classes,
            name=self.title or _name_of(root),
            where=str(root),
            source=self.source,
            intensity_range=self.intensity_range,
        )


def _name_of(root: Path) -> str:
    return root.resolve().name or "folder"


@hookimpl
def cohortium_datasets() -> list[Offer[Dataset]]:
    """Offer `folder`."""
    summary = "Image files in a folder for each class."
    return [Offer("folder", Folder, summary, local_parameters=("path",))]
