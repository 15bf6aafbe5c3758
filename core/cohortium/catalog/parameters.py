"""Parameters of a plugin's offer: types, defaults and meanings.

    >>> from cohortium.catalog.discovery import discover
    >>> [p.name for p in parameters_of(discover().find("partitioner", "dirichlet"))][0]
    'alpha'

The meaning is the line that the class's docstring has for the parameter under `Attributes:` (or
`Args:`), to the end of its first sentence.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from typing import TYPE_CHECKING, Any, Literal, Union

import attrs
from attrs import frozen

from cohortium.catalog import construction
from cohortium.third_party import call_guarded, truncated

if TYPE_CHECKING:
    from collections.abc import Callable

    from cohortium.roles.hooks import Offer

_SENTENCE_END = re.compile(r"(?<=\.)(?<!\bet al\.)(?<!\bcf\.)\s+(?=[^a-z])")
CHOSEN = "(varies)"
"""Default of a parameter that is chosen by the other parameters."""

_SECTION = re.compile(r"(Args|Attributes|Examples|Guarantees|Raises|Returns|Yields):")
_ENTRY = re.compile(r"^(\w+)(?: \([^)]*\))?: (.*)$")


@frozen
class Parameter:
    """One parameter of an offer.

    The texts have one line, without a control character.

    Attributes:
        name: The key in a study file.
        type: The type as people write it.
        default: The default as TOML writes it, `CHOSEN`, or empty if a value is required.
        meaning: One sentence, or empty if the docstring has none.
    """

    name: str
    type: str
    default: str
    meaning: str


def parameters_of(offer: Offer[Any]) -> tuple[Parameter, ...]:
    """Return the parameters of the factory of `offer`.

    Raises:
        PluginError: The parameters cannot be read, or its class raises when it is inspected.
    """
    return call_guarded(lambda: _parameters_of(offer))


def _parameters_of(offer: Offer[Any]) -> tuple[Parameter, ...]:
    kinds = construction.parameters(offer.factory, what=offer.name)
    defaults, meanings = _defaults(offer.factory), _meanings(offer.factory)
    return tuple(
        Parameter(
            *map(
                truncated,
                (name, _worded(kind), defaults.get(name, ""), meanings.get(name, "")),
            )
        )
        for name, kind in kinds.items()
    )


def explanation_of(offer: Offer[Any]) -> str:
    """Return the factory's docstring before its first section, with its layout."""
    kept = []
    for line in inspect.cleandoc(offer.factory.__doc__ or "").splitlines():
        if _SECTION.fullmatch(line):
            break
        kept.append("".join(filter(str.isprintable, line)))
    return "\n".join(kept).strip()


def _defaults(factory: Callable[..., Any]) -> dict[str, str]:
    if isinstance(factory, type) and attrs.has(factory):
        given = {(f.alias or f.name): f.default for f in attrs.fields(factory) if f.init}
        made = {
            name: _attrs_default(default)
            for name, default in given.items()
            if default is not attrs.NOTHING
        }
    else:
        known = inspect.signature(factory).parameters.values()
        made = {p.name: _toml(p.default) for p in known if p.default is not p.empty}
    return made


def _attrs_default(default: Any) -> str:
    """Return the default of a field of a class."""
    if not isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return _toml(default)
    return CHOSEN if default.takes_self else _toml(default.factory())


def _toml(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return f'"{value}"'
    return repr(value)


def _worded(kind: Any) -> str:
    """Return a type as people write it.

    Examples are `int`, `"example" or "site"`, `list of float` and `dataset`.
    """
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " or ".join(map(_toml, inside))
    if origin in (Union, types.UnionType):
        return " or ".join(_worded(part) for part in inside if part is not type(None))
    if origin in (tuple, list):
        return f"list of {_worded(inside[0])}" if inside else "list"
    if origin is dict or kind is dict:
        return "table"
    if isinstance(kind, type):
        is_role = getattr(kind, "_is_protocol", False)
        return kind.__name__.lower() if is_role else kind.__name__
    return str(kind).removeprefix("typing.")


def _meanings(factory: Callable[..., Any]) -> dict[str, str]:
    """Return first sentences from sections of docstrings, with those of bases."""
    classes = reversed(factory.__mro__) if isinstance(factory, type) else (factory,)
    found: dict[str, str] = {}
    for kind in classes:
        found |= _entries(inspect.cleandoc(kind.__doc__ or ""))
    return found


def _entries(text: str) -> dict[str, str]:
    entries: dict[str, str] = {}
    name, is_inside = "", False
    for line in text.splitlines():
        if line and not line.startswith(" "):
            is_inside, name = line in ("Attributes:", "Args:"), ""
        elif is_inside and (entry := _ENTRY.match(line.removeprefix("    "))):
            name = entry[1]
            entries[name] = entry[2]
        elif name and line.strip():
            entries[name] += f" {line.strip()}"
    return {name: _SENTENCE_END.split(text)[0].rstrip(".") for name, text in entries.items()}
