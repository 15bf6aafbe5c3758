"""The task of one class for each image."""

from __future__ import annotations

from cohortium.plugin import Multiclass, Offer, Task, hookimpl

COHORTIUM_API = 1


@hookimpl
def cohortium_tasks() -> list[Offer[Task]]:
    """Offer `multiclass`."""
    return [Offer("multiclass", Multiclass, "One of several classes for each image.")]
