"""Installed entry points of a group, and distributions that cannot be read."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import TYPE_CHECKING, TypeAlias

from attrs import frozen

from cohortium.catalog.allow_list import normalize_name
from cohortium.errors import PluginError
from cohortium.third_party import call_guarded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.metadata import Distribution, EntryPoint


PathState: TypeAlias = tuple[tuple[str | int, int], ...]
"""Entries of the import path and their finders, with the times of their last changes."""


def import_path_state() -> PathState:
    """Return the state of the import path, which differs after an installation or a removal.

    `importlib.metadata` itself reads a folder anew only if the folder's time has changed.
    """
    entries = [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 - "" is this folder
    finders = [(id(finder), 0) for finder in sys.meta_path]
    return (*((entry, _changed(entry)) for entry in entries), *finders)


def _changed(entry: str) -> int:
    try:
        return os.stat(entry).st_mtime_ns  # noqa: PTH116 - an entry may be no path at all
    except (OSError, ValueError):
        return 0


@frozen
class UnreadableDistribution:
    """An unreadable distribution that seems to have entry points of the group.

    Attributes:
        distribution: Name of the distribution, as far as it is available.
        reason: Reason why the distribution cannot be read.
    """

    distribution: str
    reason: str


def entry_points_in(group: str) -> tuple[list[EntryPoint], list[UnreadableDistribution]]:
    """Return the entry points of `group` and the unreadable distributions.

    Of each distribution, the first on the path counts. `importlib.metadata.entry_points` stops at
    the first damaged one.
    """
    points: list[EntryPoint] = []
    unreadable: list[UnreadableDistribution] = []
    seen: set[str] = set()
    for distribution in _with_group(group):
        name = _name(distribution)
        if normalize_name(name) in seen:
            continue
        seen.add(normalize_name(name))
        try:
            first = call_guarded(lambda name=name: metadata.distribution(name))  # type: ignore[misc]
        except PluginError:
            first = distribution
        try:
            points += call_guarded(
                lambda first=first: list(first.entry_points.select(group=group))  # type: ignore[misc]
            )
        except PluginError as error:
            unreadable.append(UnreadableDistribution(name, f"its metadata cannot be read: {error}"))
    return points, unreadable


def _with_group(group: str) -> Iterator[Distribution]:
    for distribution in metadata.distributions():
        try:
            text = distribution.read_text("entry_points.txt") or ""
        except UnicodeDecodeError as error:
            text = error.object.decode("latin-1")
        except Exception:  # noqa: BLE001, S112 - another party's folder
            continue
        if f"[{group}]" in text.replace(" ", ""):
            yield distribution


def _name(distribution: Distribution) -> str:
    try:
        return call_guarded(lambda: distribution.metadata["Name"]) or "unknown"
    except PluginError:
        return "unknown"
