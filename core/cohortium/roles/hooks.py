"""Hooks through which a plugin offers its parts.

There is one hook per role, and each returns typed values.

A whole plugin package is a frozen attrs class and this code:

    from cohortium.plugin import Model, Offer, hookimpl

    COHORTIUM_API = 1

    @hookimpl
    def cohortium_models() -> list[Offer[Model]]:
        return [Offer("mlp", MLP, "Two linear layers.")]

It needs one entry in its `pyproject.toml`:

    [project.entry-points.cohortium]
    mlp = "cohortium_mlp"
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import pluggy
from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cohortium.roles import Role
    from cohortium.roles.protocols import (
        Aggregator,
        Dataset,
        Engine,
        Model,
        Observer,
        Partitioner,
        Privatizer,
        Task,
        Trainer,
    )

API = 1
"""The version of the contracts.  A plugin states the one it was written for as `COHORTIUM_API`."""

GROUP = "cohortium"
"""Name of the entry-point group of plugins."""


R_co = TypeVar("R_co", covariant=True)

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)
"""Decorator of a plugin's hook functions."""


@frozen
class Offer(Generic[R_co]):
    """One implementation that a plugin offers.

    Attributes:
        name: Name in a study file: lower case, digits and hyphens.
        factory: Makes it from plain keyword parameters, each annotated.  Usually its class.
        summary: One line for `cohortium plugins`.
        local_parameters: Parameters whose values name code or files of the machine.  A study may
            come from another party.  A site refuses each such value unless its policy lists it by
            name.
        code: The one local parameter that names a user's own code as "package:Class", if any.  Its
            factory also has a local parameter `folder`: the folder of the study file that names
            the code.  Cohortium looks for the code there.  The folder is never sent to a site.
        download: The one boolean parameter that lets the part fetch files from the network, if any.
            A site refuses the part in a study, unless this parameter is false there or the site's
            policy allows the part to download.
    """

    name: str
    factory: Callable[..., R_co]
    summary: str
    local_parameters: tuple[str, ...] = ()
    code: str = ""
    download: str = ""


@hookspec
def cohortium_datasets() -> Iterable[Offer[Dataset]]:
    """Return the data sets that this plugin offers."""
    return ()


@hookspec
def cohortium_tasks() -> Iterable[Offer[Task]]:
    """Return the tasks that this plugin offers."""
    return ()


@hookspec
def cohortium_partitioners() -> Iterable[Offer[Partitioner]]:
    """Return the partitioners that this plugin offers."""
    return ()


@hookspec
def cohortium_models() -> Iterable[Offer[Model]]:
    """Return the models that this plugin offers."""
    return ()


@hookspec
def cohortium_trainers() -> Iterable[Offer[Trainer]]:
    """Return the trainers that this plugin offers."""
    return ()


@hookspec
def cohortium_privatizers() -> Iterable[Offer[Privatizer]]:
    """Return the privatizers that this plugin offers."""
    return ()


@hookspec
def cohortium_aggregators() -> Iterable[Offer[Aggregator]]:
    """Return the aggregators that this plugin offers."""
    return ()


@hookspec
def cohortium_engines() -> Iterable[Offer[Engine]]:
    """Return the engines that this plugin offers."""
    return ()


@hookspec
def cohortium_observers() -> Iterable[Offer[Observer]]:
    """Return the observers that this plugin offers.

    A study selects them by name.
    """
    return ()


def hook_name(role: Role) -> str:
    """Return the name of the hook through which a plugin offers `role`.

    >>> hook_name("model")
    'cohortium_models'
    """
    return f"{GROUP}_{role}s"
