"""Parts and other values as the TOML tables from which `construction` builds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from cohortium.catalog.construction import roles_of
from cohortium.errors import PluginError

if TYPE_CHECKING:
    from cohortium.catalog.discovery import Catalog
    from cohortium.roles import Role


def to_table(catalog: Catalog, role: Role, instance: object) -> dict[str, Any]:
    """Return the table from which `build_part` builds an equal instance.

    Its values are plain TOML values. An instance whose class no plugin offers is named
    "package:Class". People can read such a table, and `build_part` can once a plugin offers the
    class.
    """
    kind = type(instance)
    name = catalog.name_of(role, instance) or f"{kind.__module__}:{kind.__qualname__}"
    if not attrs.has(kind):
        return {"name": name}
    return {"name": name, **to_values(catalog, instance)}


def to_values(catalog: Catalog, instance: Any) -> dict[str, Any]:
    """Return the fields of an attrs value as TOML values, and parts inside it as tables."""
    kind = type(instance)
    fields = {(f.alias or f.name): getattr(instance, f.name) for f in attrs.fields(kind) if f.init}
    try:
        inner = roles_of(kind, what=kind.__name__)
    except PluginError:  # composed in Python, where annotations need not be importable
        inner = {}
    values = {
        key: to_table(catalog, inner[key], value)
        if key in inner and value
        else to_toml_value(value)
        for key, value in fields.items()
    }
    return {key: value for key, value in values.items() if value is not None}


def to_toml_value(value: Any) -> Any:
    """Return `value` as a TOML value, or else as Python shows it."""
    if isinstance(value, tuple | list):
        return [to_toml_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_toml_value(item) for key, item in value.items()}
    if isinstance(value, msgspec.Struct):
        return to_toml_value(msgspec.to_builtins(value))
    if attrs.has(type(value)):
        values = {
            f.alias or f.name: to_toml_value(getattr(value, f.name))
            for f in attrs.fields(type(value))
            if f.init
        }
        return {key: inner for key, inner in values.items() if inner is not None}
    return value if isinstance(value, str | int | float | None) else repr(value)
