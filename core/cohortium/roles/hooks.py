"""Where a plugin says what it offers: one hook per role, each returning typed values.

A whole plugin package is a frozen attrs class and this:

    from cohortium.plugin import Model, Offer, hookimpl

    COHORTIUM_API = 1

    @hookimpl
    def cohortium_models() -> list[Offer[Model]]:
        return [Offer("mlp", MLP, "Two linear layers.")]

with one line in its `pyproject.toml`:

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
        Trainer,
    )

API = 1
"""The version of the contracts.  A plugin states the one it was written for as `COHORTIUM_API`."""

GROUP = "cohortium"
"""The entry-point group that plugins stand in."""


R_co = TypeVar("R_co", covariant=True)

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)
"""Marks a plugin's hook function."""


@frozen
class Offer(Generic[R_co]):
    """One implementation that a plugin offers.

    Attributes:
        name: What a study calls it: lower case, digits and hyphens.
        factory: Makes it from plain keyword parameters, each annotated; usually its class.
        summary: One line for `cohortium plugins`.
        local_parameters: Its parameters whose values name code or files of the machine.  A study
            may come from elsewhere: a hospital allows each such value by name, or it is refused.
        code: The one of them that names a user's own code as "package:Class", if one does.  Its
            factory has a parameter `folder` beside it, also local: where the study's file lies
            that names the code, so that it is found there.  It is never sent to a hospital.
    """

    name: str
    factory: Callable[..., R_co]
    summary: str
    local_parameters: tuple[str, ...] = ()
    code: str = ""


@hookspec
def cohortium_datasets() -> Iterable[Offer[Dataset]]:
    """Data sets that this plugin offers."""
    return ()


@hookspec
def cohortium_partitioners() -> Iterable[Offer[Partitioner]]:
    """Partitioners that this plugin offers."""
    return ()


@hookspec
def cohortium_models() -> Iterable[Offer[Model]]:
    """Models that this plugin offers."""
    return ()


@hookspec
def cohortium_trainers() -> Iterable[Offer[Trainer]]:
    """Trainers that this plugin offers."""
    return ()


@hookspec
def cohortium_privatizers() -> Iterable[Offer[Privatizer]]:
    """Privatizers that this plugin offers."""
    return ()


@hookspec
def cohortium_aggregators() -> Iterable[Offer[Aggregator]]:
    """Aggregators that this plugin offers."""
    return ()


@hookspec
def cohortium_engines() -> Iterable[Offer[Engine]]:
    """Engines that this plugin offers."""
    return ()


@hookspec
def cohortium_observers() -> Iterable[Offer[Observer]]:
    """Observers that this plugin offers; a study asks for them by name."""
    return ()


def hook_name(role: Role) -> str:
    """The name of the hook through which `role` is offered.

    >>> hook_name("model")
    'cohortium_models'
    """
    return f"{GROUP}_{role}s"
