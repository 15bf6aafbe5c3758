"""Facts about the data in a run's directory, for its model's users."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
from attrs import frozen

from cohortium.catalog.construction import build_value
from cohortium.catalog.discovery import discover
from cohortium.catalog.toml_tables import to_values
from cohortium.data.examples import DataSpec
from cohortium.errors import DataError, RequestError, StudyError
from cohortium.storage.bounded_read import read_bounded
from cohortium.storage.plain_json import decode_json

if TYPE_CHECKING:
    from pathlib import Path

    from cohortium.data.splits import Splits

DATASET_INFO = "dataset.json"

MAX_BYTES = 1 << 29
"""Largest size of the file, in bytes."""

_REMEDY: Final = "copy it anew from the run"


@frozen(kw_only=True)
class DatasetInfo:
    """Public facts about a run's data that its model's users need.

    They need no other facts.

    Attributes:
        name: Name of the data that figures are reported with.
        source: Work to cite.
        spec: Shapes, classes and the declared size.
        validation: Number of public images for scores during the run.
        test: Number of public images for the scores of the result.
    """

    name: str
    source: str
    spec: DataSpec
    validation: int
    test: int

    @classmethod
    def of(cls, splits: Splits) -> DatasetInfo:
        """Return the facts of a data set."""
        parts = (splits.validation, splits.test)
        validation, test = (0 if part is None else len(part) for part in parts)
        return cls(
            name=splits.name,
            source=splits.source,
            spec=splits.spec,
            validation=validation,
            test=test,
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**attrs.asdict(self, recurse=False), "spec": to_values(discover(), self.spec)}


@frozen(kw_only=True)
class _Stored:
    """A `DatasetInfo` as its file holds it."""

    name: str
    source: str
    spec: dict[str, Any]
    validation: int
    test: int


def read_dataset_info(folder: Path) -> DatasetInfo:
    """Return the facts about the data of the run in `folder`.

    Raises:
        RequestError: The facts are missing, because the run has not begun its first round.
        DataError: The file is damaged.
        PluginError: The plugin of its task cannot be used.
    """
    path = folder / DATASET_INFO
    if not path.is_file():
        raise RequestError(f"{folder} holds no checkpoint: the run has not started a round yet.")
    data = read_bounded(path, MAX_BYTES, DataError, remedy=_REMEDY)
    try:
        stored = decode_json(data, _Stored)
        spec = build_value(discover(), DataSpec, stored.spec, where=f"{path} spec", what="the data")
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); {_REMEDY}.") from error
    except StudyError as error:
        raise DataError(f"{str(error).rstrip('.')}; copy the file anew from the run.") from error
    return DatasetInfo(**{**attrs.asdict(stored, recurse=False), "spec": spec})
