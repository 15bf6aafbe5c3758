"""The data set of a path: the plugin that reads such a file or folder, with its parameters."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from cohortium.catalog import construction
from cohortium.catalog.discovery import discover
from cohortium.data.image_file import IMAGE_SUFFIXES
from cohortium.data.location import find_data
from cohortium.data.table import TABLE_SUFFIXES, read_table
from cohortium.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cohortium.roles.protocols import Dataset


_OF_LISTED_FILES: Final = ("table", "nifti", "dicom")
"""Data sets of files that a table lists."""


def build_dataset(path: Path, given: Mapping[str, Any]) -> Dataset:
    """Return the data set of a file or folder.

    A folder, an npz file and a table have a plugin each. The files that a table lists decide
    between `table`, `nifti` and `dicom`.

    Args:
        path: The file or folder, as given or under the folder that `COHORTIUM_DATA` names.
        given: Further parameters of the data set. `name` chooses the plugin.

    Raises:
        RequestError: No plugin reads such a path.
        DataError: The path does not exist, or a table is damaged.
        StudyError: A parameter is unknown or missing.
    """
    table: Any = {"path": str(path), **given}
    if "name" not in table:
        table = {**_by_kind(path, given), **table}
    return construction.build_part(  # type: ignore[no-any-return]
        discover(), "dataset", table, where=str(path)
    )


def _by_kind(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plugin's name, and parameters that a look needs."""
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return {"name": "npz"}
    if suffix in TABLE_SUFFIXES:
        return _by_listed_files(find_data(str(path)), given)
    if suffix == ".npy":
        raise RequestError(
            f"{path} holds one array, and no labels; save both in one npz file, as train_images "
            "and train_labels, or list an npy file of each image in a table with its label."
        )
    # Methods of Path raise if a parent folder may not be searched.
    if os.path.isfile(path):  # noqa: PTH113 - see above
        known = ", ".join((".npz", *TABLE_SUFFIXES))
        raise RequestError(
            f"{path} is no data set; give a folder, a study or site file, or a file that ends in "
            f"one of {known}."
        )
    find_data(str(path), "folder")
    return {"name": "folder"}


def _by_listed_files(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    catalog = discover()
    known = {
        key
        for name in _OF_LISTED_FILES
        if name in catalog.names("dataset")
        for key in construction.parameters(catalog.find("dataset", name).factory, what=name)
    }
    if not set(given) <= known:
        # The construction names the unknown key, before its default column is missed.
        return {"name": "table"}
    column = str(given.get("image", "path"))
    listed = read_table(path, [column], keys={column: "dataset.image"}).columns[column]
    names = [name.lower() for name in listed if name]
    if any(name.endswith((".nii", ".nii.gz")) for name in names):
        return {"name": "nifti"}
    if any(name.endswith(IMAGE_SUFFIXES) for name in names):
        return {"name": "table"}
    has_range = {"window", "intensity_range"} & set(given)
    return {"name": "dicom", **({} if has_range else {"window": "file"})}
