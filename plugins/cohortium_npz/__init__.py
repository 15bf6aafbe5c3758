"""Any data set in one npz file in MedMNIST's array layout.

>>> Npz(path="bloodmnist_19.npz", title="BloodMNIST-19").load()  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from attrs import Attribute, field, frozen

from cohortium.plugin import (
    Dataset,
    Layout,
    Multiclass,
    Offer,
    StudyError,
    Task,
    find_data,
    hookimpl,
    read_npz_splits,
    valid_intensity_range,
)

if TYPE_CHECKING:
    from cohortium.plugin import Splits

COHORTIUM_API = 1


def _text(_: object, attribute: Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not value:
        raise StudyError(f"npz: {attribute.name} is {value!r}; name the file as text.")


def _texts(_: object, attribute: Attribute[tuple[str, ...]], value: object) -> None:
    if not isinstance(value, tuple) or not all(isinstance(name, str) for name in value):
        raise StudyError(
            f"npz: {attribute.name} is {value!r}; give the names in the labels' order as a tuple "
            "of text, such as ('benign', 'malignant')."
        )


def _layout(_: object, attribute: Attribute[str], value: object) -> None:
    if value not in get_args(Layout):
        raise StudyError(
            f"npz: {attribute.name} is {value!r}; let it be one of {', '.join(get_args(Layout))}."
        )


@frozen(kw_only=True)
class Npz:
    """Images and labels from a file of the user's own.

    The file holds `train_images` (N, H, W) or (N, H, W, C), or volumes (N, D, H, W), and
    `train_labels` in the form of the task: by default (N,) or (N, 1), integers from 0 without gaps.
    It may hold the same for `val_` and `test_`.  It may also hold `train_clients` (the data's own
    grouping, integers), `train_patients` (the patient of each image, integers) and `classes` (their
    names, text).  An array that can be read in two ways is refused with an instruction, and so are
    labels that leave a class empty.

    Attributes:
        path: The file: as given, else under the folder that `COHORTIUM_DATA` names.
        title: Name of the data set in figures.  By default the file's own name.
        classes: Names of the classes.  By default the file's `classes`, else "0", "1", ….
        source: Citation.
        layout: Place of the channels.  "channels-last" is (N, H, W, C), "channels-first" is
            (N, C, H, W), and "volumes" is (N, D, H, W) without channels.  "auto" reads only arrays
            that can be read in one way, or as the file's `layout` says.
        task: Meaning of a label.
        intensity_range: The stored values that become 0 and 1.  `uint8` images have 0 and 255.
            Images of every other type need a declaration, here or as the file's `intensity_range`.
    """

    path: str = field(validator=_text)
    title: str = ""
    classes: tuple[str, ...] = field(default=(), validator=_texts)
    source: str = ""
    layout: Layout = field(default="auto", validator=_layout)
    task: Task = field(factory=Multiclass)
    intensity_range: tuple[float, float] | None = field(
        default=None, validator=valid_intensity_range
    )

    def load(self) -> Splits:
        """Read the file.

        Raises:
            DataError: It is missing, damaged or of another layout.
        """
        path = find_data(self.path)
        return read_npz_splits(
            path,
            name=self.title or path.stem,
            task=self.task,
            classes=self.classes,
            source=self.source,
            layout=self.layout,
            intensity_range=self.intensity_range,
        )


@hookimpl
def cohortium_datasets() -> list[Offer[Dataset]]:
    """Offer `npz`."""
    return [
        Offer("npz", Npz, "Any npz file in MedMNIST's array layout.", local_parameters=("path",))
    ]
