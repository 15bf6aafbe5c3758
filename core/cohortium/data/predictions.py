"""Predictions for a set of labelled images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import field, frozen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cohortium.data.groups import Grouping
    from cohortium.data.scores import Scores
    from cohortium.data.task import Task


@frozen(eq=False)
class Predictions:
    """A network's predictions for each image.

    Attributes:
        values: Predictions in the form of the task, shape (N, …), N > 0.
        labels: True labels of the images, shape (N, …).
        task: Meaning of both.
        groupings: The images by centre, and by each column of groups.
    """

    values: NDArray[Any] = field(repr=False)
    labels: NDArray[Any] = field(repr=False)
    task: Task
    groupings: tuple[Grouping, ...] = field(default=(), repr=False)

    @property
    def scores(self) -> Scores:
        """Scores of the predictions."""
        return self.task.score(self.values, self.labels)
