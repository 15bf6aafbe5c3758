"""Study files: TOML ⇄ `Study`, with errors that name the file, the table and the key.

Every key has a value already, that of the quick start.  A table changes the keys it names; setting
a table's `name` to another plugin drops the other defaults of that table.  Settings of the command
line are put in with their names first and their values after; see `resolution`.

A table `[data]` makes it the study of a deployment: it declares what is public about the data that
the hospitals have, and nothing is dealt.  `[dataset]` is then what the coordinator scores with.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import evolve

from cohortium.catalog import construction
from cohortium.catalog.discovery import discover
from cohortium.data.examples import DataSpec
from cohortium.errors import StudyError
from cohortium.storage.writable import require_text
from cohortium.study import toml
from cohortium.study.resolution import TABLES, Layer, Resolved, Tables, merge, resolve
from cohortium.study.study import FEDERATION_KEYS, STUDY_ROLES, Study
from cohortium.text import MAX_SHOWN, did_you_mean, escape_control_characters, quote_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cohortium.catalog.discovery import Catalog
    from cohortium.roles.protocols import Engine


__all__ = [
    "SIMULATED",
    "TABLES",
    "Tables",
    "build",
    "ignored_keys",
    "merge",
    "override_layers",
    "override_locations",
    "parse_override",
    "quick_start",
    "read",
]

S = TypeVar("S", bound=Study)

SIMULATED = ("dataset", "partitioner")
"""Those that have no default where a study is of a deployment."""


def quick_start() -> Tables:
    """The study that is run when none is given, and the default of every key."""
    return tomllib.loads(files("cohortium.study").joinpath("quickstart.toml").read_text("utf-8"))


def read(path: Path | None, overrides: Sequence[str] = (), *, into: type[S]) -> S:
    """The study that a file describes.

    Args:
        path: The file; None for the quick start.
        overrides: Changes as `table.key=value`, the value in TOML, or else taken as a string.
        into: The class of the value: `Study`, or `Federation`, which can run it.

    Raises:
        StudyError: The file cannot be read, or asks for something that cannot be.
        PluginError: It names a plugin that cannot be used.
    """
    resolved, written = _resolve(path, overrides)
    where = "the quick start" if path is None else str(path)
    folder = Path.cwd() if path is None else path.absolute().parent
    return build(resolved.tables, where=where, overrides=written, folder=folder, into=into)


def ignored_keys(path: Path | None, overrides: Sequence[str]) -> tuple[str, ...]:
    """A sentence for each setting that leaves keys of the file, or another setting, out.

    Raises:
        StudyError: The file cannot be read, or a setting is none.
    """
    return _resolve(path, overrides)[0].ignored_keys


def _resolve(
    path: Path | None, overrides: Sequence[str]
) -> tuple[Resolved, dict[str, dict[str, str]]]:
    """The study, and how an error names the keys that `overrides` give."""
    tables, written = quick_start(), {}
    if path is not None:
        written = toml.read(path, what="the study")
        if "data" in written:
            tables = {name: kept for name, kept in tables.items() if name not in SIMULATED}
        tables = merge(tables, written, where=str(path))
        if "data" in written:
            tables = _beside(tables, path.absolute().parent)
    layers, told = override_layers(overrides)
    resolved = resolve(tables, layers, written=written, path=str(path))
    return evolve(resolved, ignored_keys=(*told, *resolved.ignored_keys)), override_locations(
        layers
    )


def override_locations(layers: Sequence[Layer]) -> dict[str, dict[str, str]]:
    """How an error names the keys of each table that `layers` give; see `build`."""
    places: dict[str, dict[str, str]] = {}
    for layer in layers:
        for table, values in layer.changes.items():
            places.setdefault(table, {}).update(dict.fromkeys(values, layer.where))
    return places


def override_layers(overrides: Sequence[str]) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """What `overrides` give, and a sentence for each that a later one of the same key replaces.

    Raises:
        StudyError: One is not of the form `table.key=value`, or names no table of a study.
    """
    layers: dict[tuple[str, ...], Layer] = {}
    told = []
    for setting in overrides:
        where = f"--set {_cut(setting)}"
        layer = Layer(
            changes=parse_override(setting), where=where, advice="give them again with --set"
        )
        key = tuple(setting.partition("=")[0].strip().split("."))
        before = layers.pop(key, None)
        if before is not None and before.changes != layer.changes:
            told.append(f"{before.where} is replaced by {where}.")
        layers[key] = layer
    return tuple(layers.values()), tuple(told)


def _beside(tables: Tables, folder: Path) -> Tables:
    """A deployment's tables, with the files that they name found in `folder` where they are there.

    It is started by an engine, wherever that works.
    """
    found = dict(tables)
    if "dataset" in found:
        found["dataset"] = dict(
            construction.resolve_paths(discover(), "dataset", found["dataset"], folder)
        )
    directory = found["federation"].get("key_directory")
    if isinstance(directory, str) and directory and (folder / directory).exists():
        found["federation"] = {**found["federation"], "key_directory": str(folder / directory)}
    return found


def build(
    tables: Mapping[str, Mapping[str, Any]],
    *,
    where: str = "study",
    overrides: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    catalog: Catalog | None = None,
    engine: Engine | None = None,
    folder: Path | None = None,
    into: type[S],
) -> S:
    """The study that parsed tables describe; see `read`.

    Args:
        tables: By name.
        where: How an error names them.
        overrides: How an error names those keys of a table that were written somewhere else.
        catalog: Where names are looked up; discovered anew if None.
        engine: In place of one that the tables describe.
        folder: Where a user's own code is looked for, beside what is installed; None where the
            tables are another's, as those of an invitation.
        into: The class of the value.
    """
    catalog = catalog or discover()
    is_deployed = "data" in tables
    optional = (SIMULATED if is_deployed else ()) + (("engine",) if engine else ())
    roles: dict[str, Any] = {
        role: construction.build_part(
            catalog,
            role,
            tables.get(role, {}),
            where=where,
            overrides=overrides.get(role, {}),
            folder=folder,
        )
        for role in STUDY_ROLES
        if role in tables or role not in optional
    }
    if engine is not None:
        roles["engine"] = engine
    if is_deployed:
        roles["data"] = construction.construct(
            DataSpec, tables["data"], where=f"{where} [data]", what="the data"
        )
    terms, own = tables.get("federation", {}), overrides.get("federation", {})
    for key in terms:
        if key not in FEDERATION_KEYS:
            place = own.get(key, f"{where} [federation] {quote_key(key)}")
            raise StudyError(
                f"{place}: there is no such term; {did_you_mean(key, FEDERATION_KEYS)}"
            )
    study: S = construction.construct(
        into,
        terms,
        where=f"{where} [federation]",
        what="the federation",
        ready=roles,
        overrides=own,
    )
    return study


def parse_override(setting: str) -> dict[str, Any]:
    """The change that `table.key=value` asks for.

    Raises:
        StudyError: It is not of that form.
    """
    path, equals, text = setting.partition("=")
    table, dot, key = path.strip().partition(".")
    if not equals or not dot or not key:
        # `--set model=cnn` is what a part's name is most easily taken for.
        meant = f"{table}.name={text}" if equals and table in STUDY_ROLES else "model.width=16"
        raise StudyError(f"--set {_cut(setting)}: write it as table.key=value, as in {meant}.")
    require_text(setting, where="--set")
    value = toml.parse(text)
    for part in reversed(key.split(".")):
        value = {part: value}
    return {table: value}


def _cut(setting: str) -> str:
    """A setting as an error repeats it: whoever typed it knows it again."""
    return escape_control_characters(
        setting if len(setting) <= MAX_SHOWN else f"{setting[:MAX_SHOWN]}…"
    )
