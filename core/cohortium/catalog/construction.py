"""Construction of role instances from names and tables.

This is the only module that constructs a part. `toml_tables` does the reverse.
"""

from __future__ import annotations

import inspect
import re
import typing
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import attrs
import msgspec

from cohortium.errors import CohortiumError, DataError, PluginError, StudyError
from cohortium.roles import ROLES, protocols
from cohortium.storage.writable import require_text
from cohortium.text import (
    did_you_mean,
    elide_middle,
    escape_control_characters,
    quote_key,
    truncate,
)
from cohortium.third_party import call_guarded, describe_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from cohortium.catalog.discovery import Catalog
    from cohortium.roles import Role


def build_part(
    catalog: Catalog,
    role: Role,
    table: Mapping[str, Any],
    *,
    where: str,
    overrides: Mapping[str, str] = MappingProxyType({}),
    folder: Path | None = None,
) -> Any:
    """Build the instance that `table` describes.

    The table has the offer's `name`, and its own parameters.

    Args:
        catalog: Catalog for the name.
        role: The required role.
        table: Table as parsed from TOML.
        where: Name of the table's place in an error.
        overrides: Names in errors of the keys that were written elsewhere.
        folder: Folder of the study. It is passed to each offer that names a user's code in it. None
            passes nothing.

    Raises:
        PluginError: No usable plugin offers the name.
        StudyError: A key is unknown, or a value has another type or is out of its range.
    """
    name = table.get("name")
    if not isinstance(name, str):
        place = overrides.get("name", f"{where} [{role}]")
        raise StudyError(f"{place}: name must be a string that says which one.")
    offer = catalog.find(role, name)
    factory = offer.factory
    given = {key: value for key, value in table.items() if key != "name"}
    if folder is not None and offer.code and _lies_in(folder, given.get(offer.code)):
        require_text(str(folder), where="the study's folder")
        given.setdefault("folder", str(folder))
    place, what = f"{where} [{role}]", f"{role} '{name}'"
    part = build_value(
        catalog, factory, given, where=place, what=what, overrides=overrides, folder=folder
    )
    try:
        return require_role(role, part)
    except StudyError as error:
        raise PluginError(
            f"{role} '{name}' cannot be used: its factory makes a part, and {error}"
        ) from error


def build_value(
    catalog: Catalog,
    factory: Callable[..., Any],
    given: Mapping[str, Any],
    *,
    where: str,
    what: str,
    overrides: Mapping[str, str] = MappingProxyType({}),
    folder: Path | None = None,
) -> Any:
    """Call `factory` with the values of a table, of which some describe parts (see `construct`).

    Raises:
        PluginError: No usable plugin offers a part's name.
        StudyError: A key is unknown, or a value has another type or is out of its range.
    """
    plain = dict(given)
    inner = {
        key: _build_inner(
            catalog,
            inside,
            plain.pop(key),
            where=overrides.get(key, f"{where} {key}"),
            folder=folder,
        )
        for key, inside in roles_of(factory, what=what).items()
        if key in plain
    }
    return construct(factory, plain, where=where, what=what, ready=inner, overrides=overrides)


def resolve_paths(
    catalog: Catalog, role: Role, table: Mapping[str, Any], folder: Path
) -> Mapping[str, Any]:
    """Return `table` with its file paths resolved in `folder`.

    The function resolves only paths of files that exist there.
    """
    found = [
        o.offer for o in catalog.entries if (o.role, o.offer.name) == (role, table.get("name"))
    ]
    places = {
        key: str(folder / table[key])
        for offer in found
        for key in offer.local_parameters
        if isinstance(table.get(key), str) and table[key] and (folder / table[key]).exists()
    }
    return {**table, **places}


def _lies_in(folder: Path, code: object) -> bool:
    """Return whether the package or file of `code` is in `folder`.

    The form of `code` is "package.module:Class".
    """
    top = code.partition(":")[0].partition(".")[0] if isinstance(code, str) else ""
    return bool(top) and ((folder / top).is_dir() or (folder / f"{top}.py").is_file())


def _build_inner(
    catalog: Catalog, role: Role, value: object, *, where: str, folder: Path | None
) -> Any:
    """Build a part inside a part, from a string or its own table."""
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, dict):
        raise StudyError(
            f"{where}: name a {role}, or give a table with its name, not {truncate(value)}."
        )
    return build_part(catalog, role, table, where=where, folder=folder)


def roles_of(factory: Callable[..., Any], *, what: str) -> dict[str, Role]:
    """Return the parameters of `factory` that are parts, with their roles."""
    known = {getattr(protocols, role.capitalize()): role for role in ROLES}
    found = {}
    for key, annotation in parameters(factory, what=what).items():
        for kind in (annotation, *typing.get_args(annotation)):
            if isinstance(kind, type) and kind in known:
                found[key] = known[kind]
    return found


def construct(
    factory: Callable[..., Any],
    given: Mapping[str, Any],
    *,
    where: str,
    what: str,
    ready: Mapping[str, Any] = MappingProxyType({}),
    overrides: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """Call `factory` with `given`, strictly converted to its annotated types.

    Args:
        factory: A class, or a function with annotated keyword parameters.
        given: Values as parsed from TOML.
        where: Name of their place in an error.
        what: Name of the result in an error.
        ready: Arguments that are passed on without conversion.
        overrides: Names in errors of the keys that were written elsewhere.

    Raises:
        StudyError: A key is unknown or missing, or a value does not match its type.
        PluginError: The factory's annotations cannot be read.
    """
    types = {k: t for k, t in parameters(factory, what=what).items() if k not in ready}
    for key in given:
        if key not in types:
            place = overrides.get(key, f"{where} {quote_key(key)}")
            raise StudyError(f"{place}: {what} has no such parameter; {did_you_mean(key, types)}")
    absent = [key for key in _required(factory) if key in types and key not in given]
    if absent:
        raise StudyError(f"{where}: {what} needs {' and '.join(absent)}.")
    arguments = {}
    for key, value in given.items():
        place = overrides.get(key, f"{where} {key}")
        _require_fields(value, types[key], place)
        try:
            arguments[key] = msgspec.convert(value, types[key], strict=True)
        except DataError as error:
            raise StudyError(f"{place}: {error}") from error
        except msgspec.ValidationError as error:
            expected = _plain(error)
            if typing.get_origin(types[key]) is Literal:
                expected = f"expected {' or '.join(map(repr, typing.get_args(types[key])))}"
            raise StudyError(f"{place}: {expected}, got {truncate(value)}.") from error
    try:
        return _construct(factory, {**arguments, **ready}, where=f"{where}: {what}")
    except CohortiumError:
        raise
    except (TypeError, ValueError) as error:
        sentence = escape_control_characters(_sentence(error))
        # attrs begins with the rejected parameter, in quotes.
        named = re.match(r"'(\w+)'", sentence)
        place = overrides.get(named[1], where) if named else where
        raise StudyError(f"{place}: {what}: {elide_middle(sentence).rstrip('.')}.") from error


def _require_fields(value: object, kind: Any, where: str) -> None:
    """Refuse a key that is no field of the attrs value that a table becomes."""
    for inside in (kind, *typing.get_args(kind)):
        if isinstance(value, dict) and isinstance(inside, type) and attrs.has(inside):
            known = [f.alias or f.name for f in attrs.fields(inside) if f.init]
            for key in value:
                if key not in known:
                    raise StudyError(
                        f"{where}: {quote_key(key)} is unknown; {did_you_mean(key, known)}"
                    )


def _construct(factory: Callable[..., Any], arguments: Mapping[str, Any], *, where: str) -> Any:
    """Call `factory`, and report an attempt to exit as its fault.

    Otherwise, it would end the process.
    """
    try:
        return call_guarded(lambda: factory(**arguments))
    except PluginError as error:
        cause = error.__cause__
        if isinstance(cause, Exception):
            raise cause from cause.__cause__
        raise PluginError(f"{where}: it raised {error}.") from error


def _sentence(error: Exception) -> str:
    """Return the message of a constructor's error.

    A plugin's error may be unable to return a message.
    """
    try:
        return call_guarded(lambda: str(error.args[0]) if error.args else str(error))
    except PluginError:
        return describe_error(error)


def parameters(factory: Callable[..., Any], *, what: str) -> dict[str, Any]:
    """Return the keyword parameters of `factory` and their types.

    Raises:
        PluginError: An annotation is missing or cannot be resolved. Or a parameter is called
            `name`, which is the key that selects the table's plugin.
    """
    try:
        types = call_guarded(lambda: _types(factory, what=what))
    except PluginError as error:
        reason = str(error)
        raise PluginError(
            reason
            if reason.startswith(what)
            else f"{what}: its parameters cannot be read ({reason})."
        ) from error
    if "name" in types:
        raise PluginError(f"{what}: no parameter can be called 'name'; that key names the plugin.")
    return types


def _types(factory: Callable[..., Any], *, what: str) -> dict[str, Any]:
    try:
        if isinstance(factory, type) and attrs.has(factory):
            types = typing.get_type_hints(factory)
            return {f.alias or f.name: types[f.name] for f in attrs.fields(factory) if f.init}
        types = typing.get_type_hints(factory)
        return {name: types[name] for name in inspect.signature(factory).parameters}
    except (NameError, KeyError, TypeError, AttributeError) as error:
        raise PluginError(
            f"{what}: its parameters must be annotated with types that can be imported ({error})."
        ) from error


def _required(factory: Callable[..., Any]) -> list[str]:
    """Return the parameters of `factory` that have no default."""
    known = call_guarded(lambda: inspect.signature(factory)).parameters.values()
    return [p.name for p in known if p.default is p.empty and p.kind not in _CATCH_ALL]


_CATCH_ALL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def require_role(role: Role, instance: object) -> Any:
    """Return `instance`, if it has the methods of `role`.

    Raises:
        StudyError: Methods are missing. The message names them.
    """
    contract: type = getattr(protocols, role.capitalize())
    wanted = sorted(n for n, m in vars(contract).items() if callable(m) and not n.startswith("_"))
    missing = [n for n in wanted if not callable(getattr(instance, n, None))]
    if missing or isinstance(instance, type):
        kind = instance.__name__ if isinstance(instance, type) else type(instance).__name__
        hint = " (pass an instance, not the class)" if isinstance(instance, type) else ""
        raise StudyError(
            f"{kind} is no {role}{hint}: a {role} has the methods {', '.join(wanted)}."
        )
    return instance


def _plain(error: msgspec.ValidationError) -> str:
    sentence = str(error).replace("`", "").replace("Expected", "expected").split(" - at")[0]
    sentence = sentence.split(", got")[0]
    return sentence.replace("expected object", "expected a table").replace("array", "a list")
