"""What a run's folder tells whoever uses its model: public facts of its data, and its result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from attrs import frozen

from cohortium.data.examples import DataSpec
from cohortium.errors import DataError, StudyError

if TYPE_CHECKING:
    from pathlib import Path

    from cohortium.data.examples import Splits

DATASET_INFO = "dataset.json"

MAX_BYTES = 1 << 29
"""Of a file, as of every other of a record: a result has a row for each round."""

_Read = TypeVar("_Read")


@frozen(kw_only=True)
class DatasetInfo:
    """What is public about the data of a run: whoever uses its model needs it, and no more.

    Attributes:
        name: What figures that come from them are called.
        source: Whom to cite.
        spec: Shapes, classes and the declared size.
        validation: Public images to watch the run by.
        test: Public images that the result was scored on.
    """

    name: str
    source: str
    spec: DataSpec
    validation: int
    test: int

    @classmethod
    def of(cls, splits: Splits) -> DatasetInfo:
        """The facts of a data set."""
        parts = (splits.validation, splits.test)
        validation, test = (0 if part is None else len(part) for part in parts)
        return cls(
            name=splits.name,
            source=splits.source,
            spec=splits.spec,
            validation=validation,
            test=test,
        )


def read_dataset_info(folder: Path) -> DatasetInfo:
    """What the run in `folder` kept of its data.

    Raises:
        StudyError: Nothing: it has not begun its first round.
        DataError: It is damaged.
    """
    path = folder / DATASET_INFO
    if not path.is_file():
        raise StudyError(f"{folder} holds no checkpoint: the run has not begun a round yet.")
    return _decoded(path, DatasetInfo)


def read_result(folder: Path) -> dict[str, Any] | None:
    """The content of `result.json`, or None where the run is not complete.

    Raises:
        DataError: It is damaged.
    """
    path = folder / "result.json"
    return _decoded(path, dict[str, Any]) if path.is_file() else None


def _decoded(path: Path, kind: type[_Read]) -> _Read:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES} bytes; copy it anew from the run.")
        return msgspec.json.decode(data, type=kind)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}.") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}); copy it anew from the run.") from error
