"""Image files that a table lists, with their labels.

>>> TableDataset(path="chest.csv", label="finding", patient="patient_id").load()  # doctest: +SKIP

    path,finding,patient_id,split
    images/0001.png,normal,P-17,train
    images/0002.png,pneumonia,P-23,test
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from cohortium.plugin import (
    Dataset,
    FileTable,
    ImageFileOptions,
    Layout,
    ListedExample,
    ListedFormat,
    Offer,
    decode_image,
    decode_mask,
    hookimpl,
)

if TYPE_CHECKING:
    from pathlib import Path


COHORTIUM_API = 1


@frozen(kw_only=True)
class TableDataset(FileTable):
    """Image files of the user's own, listed in a CSV or Parquet file.

    The table has a row for each image, and its first line names the columns.  The files are PNG,
    JPEG, TIFF or npy, and are read in the order of the rows.  A Parquet file needs `pip install
    'cohortium[parquet]'`.

    Attributes:
        pages: Whether the pages of a TIFF file are the slices of a volume.
        layout: Place of the channels in npy files: "channels-last", "channels-first", or "volumes"
            without channels.  "auto" reads only arrays that can be read in one way.
    """

    pages: bool = False
    layout: Layout = "auto"

    def __attrs_post_init__(self) -> None:
        """Refuse options that no file can be read with, and labels of two kinds."""
        super().__attrs_post_init__()
        _ = self._options

    @property
    def _options(self) -> ImageFileOptions:
        # A declared size is applied by `read_splits`.
        return ImageFileOptions(pages=self.pages, layout=self.layout)

    @property
    def file_format(self) -> ListedFormat:
        """The format of the files."""
        options = self._options

        def read(path: Path, mask: Path | None) -> ListedExample:
            return ListedExample(
                image=decode_image(path, options),
                mask=None if mask is None else decode_mask(mask, options),
            )

        return ListedFormat(read=read)


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
