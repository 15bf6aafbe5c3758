"""The files of a folder tree, with their classes and splits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import frozen

from cohortium.plugin import IMAGE_SUFFIXES, DataError, did_you_mean, is_system_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from cohortium.plugin import DataSurvey

SPLITS: Final[Mapping[str, str]] = {
    "train": "train",
    "val": "validation",
    "validation": "validation",
    "test": "test",
}
"""Splits by the names of their folders, in lower case."""


@frozen
class Tree:
    """The files of a data set.

    Attributes:
        classes: Names of the classes.
        splits: The files of each split with their labels, sorted by label and name.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, Sequence[tuple[Path, int]]]


def read_tree(root: Path, declared: Sequence[str], survey: DataSurvey | None = None) -> Tree:
    """Return the files of `root`.

    Args:
        root: A folder of class folders, or of split folders.
        declared: Names of the classes, if they are declared.
        survey: Takes the reason of each file that is refused. Without it, the first such file is an
            error.

    Raises:
        DataError: The tree has another structure, or a file of another kind, or no images.
    """
    folders = _split_folders(root)
    found = {split: _folders_in(folder, survey) for split, folder in folders.items()}
    names = {folder.name for inside in found.values() for folder in inside}
    if not names:
        raise DataError(f"{root} has no folders; make one for each class, with its images.")
    classes = tuple(declared) or tuple(sorted(names))
    for inside in found.values():
        for folder in inside:
            if folder.name not in classes:
                raise DataError(
                    f"{folder} is no folder of a declared class; "
                    f"{did_you_mean(folder.name, classes)}"
                )
    if len(classes) == 1:
        raise DataError(
            f"{root} has one class folder, and of one class alone every answer is right; add "
            "another, or declare classes of the data set."
        )
    splits = {
        split: [
            (path, classes.index(folder.name))
            for folder in sorted(inside, key=lambda folder: classes.index(folder.name))
            for path in _images_in(folder, survey)
        ]
        for split, inside in found.items()
    }
    if not any(splits.values()):
        raise DataError(f"{root} has no files that can be read; see the reason of each.")
    return Tree(classes, splits)


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split, or `root` for training alone."""
    inside = _entries(root)
    named = [path for path in inside if path.is_dir() and path.name.lower() in SPLITS]
    if not named:
        return {"train": root}
    folders: dict[str, Path] = {}
    for path in named:
        split = SPLITS[path.name.lower()]
        if split in folders:
            raise DataError(f"{path} and {folders[split]} are one split; merge the two.")
        folders[split] = path
    others = [path for path in inside if path not in named]
    if others:
        raise DataError(
            f"{others[0]} is next to the folder {named[0].name} of a split; put everything into "
            "the folders train, val and test, or rename the latter if they are classes."
        )
    if "train" not in folders:
        raise DataError(
            f"{root} has a folder {named[0].name}, but no folder train; add it, or rename the "
            "former if it is a class."
        )
    return {split: folders[split] for split in ("train", "validation", "test") if split in folders}


def _folders_in(folder: Path, survey: DataSurvey | None) -> list[Path]:
    """Return the class folders in a folder, which must hold nothing else."""
    inside = _entries(folder)
    for path in inside:
        if not path.is_dir():
            _refuse(
                f"{path} is in no class folder; put each image into the folder of its class, and "
                "other files elsewhere.",
                survey,
            )
    if not inside:
        raise DataError(f"{folder} has no folders; make one for each class, with its images.")
    return [path for path in inside if path.is_dir()]


def _refuse(reason: str, survey: DataSurvey | None) -> None:
    """Leave a fault of one file to a survey, or raise it.

    Raises:
        DataError: There is no survey.
    """
    if survey is None:
        raise DataError(reason)
    survey.refuse(reason)


def _images_in(folder: Path, survey: DataSurvey | None) -> list[Path]:
    """Return the image files in a class folder, which must hold nothing else."""
    inside = _entries(folder)
    images = []
    for path in inside:
        if path.is_dir():
            _refuse(
                f"{path} is a folder in a class folder; put its images into the class folder, or "
                "name the folders of splits train, val and test.",
                survey,
            )
        elif path.suffix.lower() not in IMAGE_SUFFIXES:
            _refuse(
                f"{path} is of no kind that can be read; put it elsewhere, or convert it to one of "
                f"{', '.join(IMAGE_SUFFIXES)}.",
                survey,
            )
        else:
            images.append(path)
    if not inside:
        _refuse(f"the class folder {folder} has no images; add some, or remove it.", survey)
    return images


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted by name, without hidden files."""
    try:
        return sorted(_visible(folder.iterdir()), key=lambda path: path.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}.") from error


def _visible(paths: Iterable[Path]) -> Iterable[Path]:
    return (p for p in paths if not is_system_file(p.name))
