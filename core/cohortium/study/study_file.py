"""Study files: TOML ⇄ `Study`, with errors that name file and key.

The errors also name the table. Every key has a default, which is its value in the quick start. A
table changes the keys that it names. If a table sets `name` to another plugin, it drops the other
defaults of that table. Overrides of the command line set their names first and their values after
(see `layered_tables`).

A table `[data]` makes the study one of a deployment. It declares the public facts about the
hospitals' data, and nothing is partitioned. In that case, `[dataset]` has the images for the
coordinator's scores.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import evolve

from cohortium.catalog import construction
from cohortium.catalog.discovery import discover
from cohortium.data.examples import DataSpec
from cohortium.errors import RequestError, StudyError
from cohortium.storage.writable import require_text
from cohortium.study import toml
from cohortium.study.layered_tables import TABLES, Layer, Resolved, Tables, merge, resolve
from cohortium.study.measurement import EvaluationPlan, Measurement, PriorRelease
from cohortium.study.search import Search
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

_VALUES: Final = MappingProxyType(
    {
        "data": (DataSpec, "the data"),
        "evaluation": (EvaluationPlan, "the evaluation"),
        "measurement": (Measurement, "the measurement"),
        "prior": (PriorRelease, "the prior release"),
        "search": (Search, "the search"),
    }
)
"""Class of each table that is no role, and its name in errors."""

SIMULATED = ("dataset", "partitioner")
"""Tables that have no default in the study of a deployment."""


def quick_start() -> Tables:
    """Return the default study, which has the default of every key."""
    return tomllib.loads(files("cohortium.study").joinpath("quickstart.toml").read_text("utf-8"))


def read(path: Path | None, overrides: Sequence[str] = (), *, into: type[S]) -> S:
    """Return the study that a file describes.

    Args:
        path: The file, or None for the quick start.
        overrides: Changes as `table.key=value`. The value is TOML, or else a string.
        into: The class of the value: `Study`, or `Federation`, which can run.

    Raises:
        RequestError: The file cannot be read.
        StudyError: It describes an impossible study.
        PluginError: The file names a plugin that cannot be used.
    """
    resolved, written = _resolve(path, overrides)
    where = "the quick start" if path is None else str(path)
    folder = Path.cwd() if path is None else path.absolute().parent
    return build(resolved.tables, where=where, overrides=written, folder=folder, into=into)


def ignored_keys(path: Path | None, overrides: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence for each override that causes keys to be ignored.

    The keys are the file's, or another override's.

    Raises:
        RequestError: The file cannot be read, or an override has another form.
        StudyError: The file is not valid TOML, or an override is not valid.
    """
    return _resolve(path, overrides)[0].ignored_keys


def _resolve(
    path: Path | None, overrides: Sequence[str]
) -> tuple[Resolved, dict[str, dict[str, str]]]:
    """Return the study, and the errors' names of keys in `overrides`."""
    tables, written = quick_start(), {}
    if path is not None:
        written = toml.read(path, what="the study")
        if "tune" in written:
            raise StudyError(
                f"{path} has a [tune]: search with `cohortium tune {path}`, or take the table out "
                "to run the study with the settings as they are."
            )
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
    """Return the errors' names of each table's keys in `layers`.

    See `build`.
    """
    places: dict[str, dict[str, str]] = {}
    for layer in layers:
        for table, values in layer.changes.items():
            places.setdefault(table, {}).update(dict.fromkeys(values, layer.where))
    return places


def override_layers(overrides: Sequence[str]) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """Return the layers of `overrides`, and a sentence for each replaced one.

    A later override of the same key replaces an earlier one.

    Raises:
        RequestError: An override does not have the form `table.key=value`.
        StudyError: An override names no table of a study.
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
    """Return a deployment's tables with file paths resolved in `folder`.

    The function resolves only paths of files that exist there. An engine may start the deployment
    in any working directory.
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
    """Return the study that parsed tables describe (see `read`).

    Args:
        tables: The tables by name.
        where: Name of the tables in an error.
        overrides: Names in errors of those keys of a table that were written elsewhere.
        catalog: Catalog for names. If None, the function discovers plugins again.
        engine: Engine to use in place of the one in the tables.
        folder: Folder to search for a user's own code, in addition to installed code. None if the
            tables come from another party, as those of an invitation do.
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
    for name, (kind, what) in _VALUES.items():
        if name in tables:
            roles[name] = construction.build_value(
                catalog, kind, tables[name], where=f"{where} [{name}]", what=what
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
    """Return the change of an override `table.key=value`.

    Raises:
        RequestError: The override does not have that form, or its list or table is no TOML.
    """
    path, equals, text = setting.partition("=")
    table, dot, key = path.strip().partition(".")
    if not equals or not dot or not key:
        # `--set model=cnn` is the most likely mistake, of a user who means a part's name.
        meant = f"{table}.name={text}" if equals and table in STUDY_ROLES else "model.width=16"
        raise RequestError(f"--set {_cut(setting)}: write it as table.key=value, as in {meant}.")
    require_text(setting, where="--set")
    value = toml.parse(text)
    if isinstance(value, str) and value[:1] + value[-1:] in {"[]", "{}"} and value == text.strip():
        raise RequestError(
            f"--set {_cut(setting)}: {_cut(text)} is no TOML value; put the whole option in single "
            f'quotes, so that the shell leaves its own, as in --set \'{_cut(path)}=["a", "b"]\'.'
        )
    for part in reversed(key.split(".")):
        value = {part: value}
    return {table: value}


def _cut(setting: str) -> str:
    """Return an override as an error repeats it.

    Its author must recognise it.
    """
    return escape_control_characters(
        setting if len(setting) <= MAX_SHOWN else f"{setting[:MAX_SHOWN]}…"
    )
