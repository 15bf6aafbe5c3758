"""Tasks by the names under which plugins offer them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.catalog.construction import build_part
from cohortium.catalog.discovery import discover

if TYPE_CHECKING:
    from cohortium.data.task import Task


def make_task(name: str, **parameters: object) -> Task:
    """Return the task that an installed plugin offers as `name`.

    A data set of one plugin gets the task of another in this way, without an import of it.

    Args:
        name: Name of the offer, such as "multilabel".
        parameters: Parameters of the task, as a study file holds them.

    Raises:
        PluginError: No usable plugin offers the name.
        StudyError: A parameter is unknown or out of its range.
    """
    task: Task = build_part(discover(), "task", {"name": name, **parameters}, where="the data set")
    return task
