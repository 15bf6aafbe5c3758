"""The labels of a table's rows: a class, several findings, or a mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen

from cohortium.plugin import (
    ImageFileOptions,
    StudyError,
    class_labels,
    finding_labels,
    listed_files,
    read_mask_array,
)

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from cohortium.plugin import Table


@frozen(kw_only=True)
class LabelColumns:
    """The columns of the labels, of one of three kinds.

    Attributes:
        label: Column of classes, or "".
        labels: Columns of findings, or ().
        mask: Column of the paths of masks, or "".
    """

    label: str = ""
    labels: tuple[str, ...] = ()
    mask: str = ""

    def __attrs_post_init__(self) -> None:
        """Refuse columns of two kinds."""
        if (self.label != "") + (self.labels != ()) + (self.mask != "") > 1:
            raise StudyError(
                "table: label, labels and mask are three kinds of labels; give one of them."
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns."""
        if self.labels:
            return self.labels
        return (self.mask or self.label or "label",)

    def read(
        self,
        table: Table,
        order: NDArray[np.int64],
        *,
        classes: tuple[str, ...],
        root: Path,
        options: ImageFileOptions,
    ) -> tuple[NDArray[Any], tuple[str, ...]]:
        """Return the labels of all rows as stored, with the names of the classes if known.

        Args:
            table: The table.
            order: The rows in the order of the result.
            classes: The declared names, or ().
            root: Folder of the masks.
            options: Declared ways to read masks.

        Returns:
            Labels of shape (N,), `int64`, or (N, K), `int8`, or (N, H, W), `uint8`.

        Raises:
            DataError: A row has no such label.
        """
        if self.labels:
            return finding_labels(table, self.labels)[order], classes or self.labels
        if self.mask:
            # Images may share a mask, such as an empty one.
            files = listed_files(table, self.mask, root, allow_repeats=True)
            masks = read_mask_array(
                [files[row] for row in order], options, where=lambda i: table.where(int(order[i]))
            )
            return masks, classes
        labels, names = class_labels(table, self.columns[0], classes)
        return labels[order], names
