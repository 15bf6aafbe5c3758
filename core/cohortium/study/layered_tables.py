"""Resolution of a study from its file, a grid's choices and `--set`.

A table's `name` selects the plugin that fills a role, and its other keys are that plugin's
parameters. So the resolution settles all names before it sets any value, in any order of writing. A
file writes its values next to a name. If another source selects another plugin, the resolution
ignores those values and reports them. A grid's choice and a `--set` override must have an effect:
the resolved study has each of their values, or there is an error.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from attrs import field, frozen

from cohortium.errors import RequestError, StudyError
from cohortium.study import toml
from cohortium.study.study import STUDY_ROLES, VALUES
from cohortium.text import did_you_mean, quote_key, truncate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Tables = dict[str, dict[str, Any]]
"""A parsed study: `federation`, then one table for each role."""

TABLES = ("federation", *VALUES, *STUDY_ROLES)
"""The tables of a study file."""

Path = tuple[str, ...]
"""Path of a key: its table, and the keys that follow."""


@frozen(kw_only=True)
class Layer:
    """Keys that one choice or one override sets in a study.

    Each key must reach the study.

    Attributes:
        changes: Tables of the layer.
        where: Name of the layer in an error.
        source: Name of the layer in other layers' `overrides`, or empty if no layer may replace its
            values.
        overrides: Sources of the layers whose values this layer may replace.
        advice: End of the message about the keys that the layer's name ignores.
    """

    changes: Mapping[str, Any]
    where: str
    source: str = ""
    overrides: frozenset[str] = frozenset()
    advice: str = ""

    def __attrs_post_init__(self) -> None:
        """Refuse tables and keys that no study has."""
        require_tables(self.changes, where=self.where)

    def leaves(self) -> Iterator[tuple[Path, Any]]:
        """Return each key of the layer with its value."""
        return _leaves(self.changes)


@frozen(kw_only=True)
class Resolved:
    """A resolved study.

    Attributes:
        tables: Tables of the study.
        ignored_keys: A sentence for each name that causes keys of the file to be ignored.
    """

    tables: Tables
    ignored_keys: tuple[str, ...] = ()


@frozen
class _Entry:
    """One key of one layer."""

    path: Path
    value: Any = field(repr=False)
    layer: Layer = field(repr=False)

    @property
    def is_name(self) -> bool:
        """Whether the key selects the plugin that fills a role."""
        return len(self.path) == 2 and self.path[1] == "name"  # noqa: PLR2004 - table, key


def resolve(
    tables: Tables,
    layers: Sequence[Layer],
    *,
    written: Mapping[str, Any] = MappingProxyType({}),
    path: str = "",
) -> Resolved:
    """Return `tables` with the values of all `layers`.

    Args:
        tables: Tables of the file, merged over the defaults.
        layers: Layers in rising order of precedence.
        written: Tables as the file itself has them.
        path: Name of the file in a message.

    Raises:
        StudyError: A value of a layer does not reach the study, because another value replaced it.
    """
    entries = _remaining([_Entry(*leaf, layer) for layer in layers for leaf in layer.leaves()])
    settled: Tables = {name: dict(table) for name, table in tables.items()}
    told = []
    for entry in {e.path: e for e in entries if e.is_name}.values():
        table = entry.path[0]
        old = settled.get(table, {}).get("name")
        if entry.value != old:
            given = {other.path[1] for other in entries if other.path[0] == table}
            lost = [key for key in written.get(table, {}) if key not in given | {"name"}]
            told += [_describe_ignored(entry, lost, f"[{table}] in {path}", old)] if lost else []
            settled[table] = {"name": entry.value}
    inside = [e for e in entries if not e.is_name]
    for entry in sorted(inside, key=lambda e: not _names_inner(e, inside)):
        old = _get(settled, entry.path)
        if isinstance(old, dict) and isinstance(entry.value, str):
            lost = [key for key in _get(written, entry.path) or () if key != "name"]
            place = f"[{'.'.join(entry.path)}] in {path}"
            told += [_describe_ignored(entry, lost, place, old.get("name"))] if lost else []
        _set(settled, entry.path, entry.value)
    for entry in entries:
        _require_reached(entry, settled, entries)
    return Resolved(tables=settled, ignored_keys=tuple(dict.fromkeys(told)))


def _describe_ignored(entry: _Entry, lost: Sequence[str], place: str, old: object) -> str:
    end = f"; {entry.layer.advice}" if entry.layer.advice else ""
    return (
        f"{entry.layer.where}: {', '.join(lost)} of {place} were for {old!r}, and are left "
        f"out{end}."
    )


def _remaining(entries: Sequence[_Entry]) -> list[_Entry]:
    """Return `entries` without those that a higher layer may replace, and does."""
    return [
        entry
        for place, entry in enumerate(entries)
        if not any(
            entry.layer.source in other.layer.overrides
            and (
                other.path == entry.path
                or (other.is_name and other.path[0] == entry.path[0] and not entry.is_name)
            )
            for other in entries[place + 1 :]
        )
    ]


def _names_inner(entry: _Entry, entries: Sequence[_Entry]) -> bool:
    """Return whether the entry selects the plugin of an inner part."""
    if entry.path[-1] == "name":
        return True
    depth = len(entry.path)
    return isinstance(entry.value, str) and any(
        len(other.path) > depth and other.path[:depth] == entry.path for other in entries
    )


def _require_reached(entry: _Entry, tables: Tables, entries: Sequence[_Entry]) -> None:
    found = _get(tables, entry.path)
    if isinstance(found, dict) and isinstance(entry.value, str):
        found = found.get("name")
    if (
        found is entry.value
        or found == entry.value
        or (entry.value == {} and isinstance(found, dict))
    ):
        return
    depth = len(entry.path)
    winner = next(
        other
        for other in reversed(entries)
        if other is not entry
        and (other.path[:depth] == entry.path or entry.path[: len(other.path)] == other.path)
    )
    key, taken = ".".join(entry.path), ".".join(winner.path)
    raise StudyError(
        f"{entry.layer.where}: {key} = {truncate(entry.value)} would not reach the "
        f"study, where {winner.layer.where} sets {taken} = "
        f"{truncate(winner.value)}; let one of them set it."
    )


def require_tables(changes: Mapping[str, Any], *, where: str) -> None:
    """Refuse tables that no study has.

    Raises:
        RequestError: The tables describe a grid, or an override changes a grid or a search.
        StudyError: No such table exists, its value is not a table, or it is nested too deeply.
    """
    toml.limit_nesting(changes, where=where)
    for table, values in changes.items():
        if where.startswith("--set ") and table in {"grid", "tune"}:
            raise RequestError(
                f"{where}: no option changes [{table}], because it describes several studies; "
                "change it in the file."
            )
        if table == "grid":
            raise RequestError(
                f"{where} is a grid of studies: only `cohortium run` and `cohortium plan` take it."
            )
        if table not in TABLES:
            raise StudyError(
                f"{where}: a study has no [{quote_key(table)}]; {did_you_mean(table, TABLES)}"
            )
        if not isinstance(values, dict):
            raise StudyError(
                f"{where}: {quote_key(table)} must be a table of keys, such as "
                f"{quote_key(table)}.name."
            )


def merge(tables: Tables, changes: Mapping[str, Any], *, where: str) -> Tables:
    """Return `tables` with `changes`.

    If a table's `name` changes, the result has none of its old keys.

    Raises:
        RequestError: The tables describe a grid.
        StudyError: No such table exists, its value is not a table, or it is nested too deeply.
    """
    require_tables(changes, where=where)
    merged: Tables = dict(tables)
    for table, values in changes.items():
        kept: dict[str, Any] = merged.get(table, {})
        if values.get("name", kept.get("name")) != kept.get("name"):
            kept = {}
        merged[table] = _deep(kept, values)
    return merged


def _deep(kept: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `kept` with `values`, and merge nested tables in the same way."""
    merged = dict(kept)
    for key, value in values.items():
        old = merged.get(key)
        is_table = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _deep(cast("dict[str, Any]", old), value) if is_table else value
    return merged


def _leaves(table: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, key))
        elif path or value:  # a choice may have an empty table, which sets nothing
            yield (*path, key), value


def _get(tables: Mapping[str, Any], path: Path) -> Any:
    """Return the value at `path`, or None."""
    found: Any = tables
    for key in path:
        if not isinstance(found, dict) or key not in found:
            return None
        found = found[key]
    return found


def _set(tables: dict[str, Any], path: Path, value: Any) -> None:
    """Set the value at `path`.

    A part that is given as a string becomes a table.
    """
    table = tables
    for key in path[:-1]:
        old = table.get(key, {})
        # A copy, because other code uses these tables, too.
        inner = {"name": old} if isinstance(old, str) else dict(old) if _is_table(old) else {}
        table[key] = inner
        table = inner
    if value == {} and isinstance(table.get(path[-1]), dict):
        return
    table[path[-1]] = value


def _is_table(value: object) -> bool:
    return isinstance(value, dict)
