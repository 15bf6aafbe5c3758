"""A look at a data set that notes every file that cannot be read, instead of the first one.

    survey = DataSurvey()
    splits = load_readable(dataset, survey)
    print(survey.num_refused, *survey.refused)

A run never reads in this way: it refuses the whole data set at its first fault.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

if TYPE_CHECKING:
    from cohortium.data.splits import Splits

MAX_REFUSED: Final = 200
"""Largest number of refused files whose reason is kept. All are counted."""

MAX_NOTES: Final = 50
"""Largest number of different values that are kept of one kind of note."""

OTHERS: Final = "others"
"""Value in place of those that are beyond `MAX_NOTES`."""


class DataSurvey:
    """Faults and facts of the files of one data set, noted while it is read.

    Attributes:
        num_refused: Number of refused files.
    """

    def __init__(self) -> None:
        self.num_refused = 0
        self._refused: list[str] = []
        self._notes: dict[str, Counter[str]] = {}

    @property
    def refused(self) -> tuple[str, ...]:
        """The first reasons, at most `MAX_REFUSED`. Each is a sentence with the file's path."""
        return tuple(self._refused)

    @property
    def notes(self) -> dict[str, tuple[tuple[str, int], ...]]:
        """Number of files by kind of fact and value, the most frequent value first."""
        return {kind: tuple(values.most_common()) for kind, values in self._notes.items()}

    def refuse(self, reason: str) -> None:
        """Note a file that cannot be read.

        Args:
            reason: A sentence with its path.
        """
        self.num_refused += 1
        if len(self._refused) < MAX_REFUSED:
            self._refused.append(reason)

    def note(self, kind: str, value: str) -> None:
        """Count a fact of a file, such as its window. It must not name a patient.

        Args:
            kind: Name of the kind of fact.
            value: The fact.
        """
        values = self._notes.setdefault(kind, Counter())
        values[value if value in values or len(values) < MAX_NOTES else OTHERS] += 1


@runtime_checkable
class SurveyedDataset(Protocol):
    """A data set of files that can be read without those that it refuses."""

    def load(self) -> Splits:
        """Return the splits, or refuse the data set at its first fault."""
        ...

    def load_readable(self, survey: DataSurvey) -> Splits:
        """Return the splits of the files that can be read.

        Large arrays are in files without a name, so that memory bounds no look.

        Args:
            survey: Takes the reason of each refused file.

        Guarantees:
            If no file is refused, the splits are those of `load`.

        Raises:
            DataError: No training file can be read, or the data set as a whole is refused.
        """
        ...


class _Loadable(Protocol):
    def load(self) -> Splits: ...


def load_readable(dataset: _Loadable, survey: DataSurvey) -> Splits:
    """Return the splits of a data set without the files that cannot be read.

    A data set of another kind is read as in a run.

    Args:
        dataset: The data set.
        survey: Takes the reason of each refused file.

    Raises:
        DataError: The data set as a whole is refused.
    """
    if isinstance(dataset, SurveyedDataset):
        return dataset.load_readable(survey)
    return dataset.load()
