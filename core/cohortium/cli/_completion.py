"""Shell completion of unfinished words.

It must be quick and must never fail.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

Words = list[tuple[str, str]]
"""Words with a note each. Notes are short, so that no shell's script has to break them."""


def plugin_names(incomplete: str) -> Words:
    """Return the names of plugins and of their offers."""
    from cohortium.catalog.discovery import discover

    found = {record.name: f"plugin, {record.status}" for record in discover().records}
    found |= {o.offer.name: o.role for o in discover().entries}
    return _beginning(incomplete, found | {"federation": "terms of a study"})


def observer_names(incomplete: str) -> Words:
    """Return the names of observers."""
    from cohortium.catalog.discovery import discover

    return _beginning(incomplete, dict.fromkeys(discover().names("observer"), "observer"))


def roles(incomplete: str) -> Words:
    """Return the roles that a plugin can have."""
    from cohortium.roles import ROLES

    return _beginning(incomplete, dict.fromkeys(ROLES, ""))


def overrides(incomplete: str) -> Words:
    """Return keys of a study as `table.key=`.

    For a table, these are the parameters of all offers that could fill its role.
    """
    from cohortium.catalog.discovery import discover
    from cohortium.catalog.parameters import parameters_of
    from cohortium.errors import PluginError
    from cohortium.study.study import FEDERATION_KEYS, STUDY_ROLES

    table, dot, _ = incomplete.partition(".")
    if not dot:
        return _beginning(incomplete, {f"{name}.": "" for name in ("federation", *STUDY_ROLES)})
    if table == "federation":
        return _beginning(incomplete, {f"federation.{term}=": "" for term in FEDERATION_KEYS})
    found = {f"{table}.name=": "which one"} if table in STUDY_ROLES else {}
    for offering in discover().entries:
        if offering.role == table:
            try:
                parameters = parameters_of(offering.offer)
            except PluginError:
                continue
            for p in parameters:
                found.setdefault(f"{table}.{p.name}=", offering.offer.name)
    return _beginning(incomplete, found)


def run_folders(incomplete: str) -> list[str]:
    """Return folders with a run's record.

    The search covers one level, and one more level below folders without a record.
    """
    above = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    try:
        return sorted(
            str(folder)
            for place in above.iterdir()
            if str(place).startswith(incomplete.removeprefix("./")) and place.is_dir()
            for folder in _runs_at(place)
        )
    except OSError:
        return []


def _runs_at(place: Path) -> Iterator[Path]:
    if (place / "study.toml").is_file():
        yield place
        return
    for folder in place.iterdir():
        if (folder / "study.toml").is_file():
            yield folder


def _beginning(incomplete: str, words: dict[str, str]) -> Words:
    return sorted((word, note) for word, note in words.items() if word.startswith(incomplete))
