"""Offers of a plugin's hooks, which pluggy checks and calls."""

from __future__ import annotations

import difflib
import itertools
import re
from collections import Counter
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import pluggy
from attrs import define, field

from cohortium.errors import PluginError
from cohortium.roles import ROLES, Role, hooks
from cohortium.roles.hooks import GROUP, Offer, hook_name
from cohortium.third_party import truncated

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = re.compile(r"[a-z][a-z0-9-]{0,63}")
"""The form of an offer's name."""

MAX_OFFERS = 256
"""Largest number of offers of one plugin for one role."""


_HOOKABLE = (FunctionType, MethodType, staticmethod, classmethod)


class _HookManager(pluggy.PluginManager):
    """A manager that looks for marks at functions of a module alone.

    pluggy looks at each name of a module statically, which takes most of the time of a discovery.
    """

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        """Return the options of a marked function, or None."""
        return super().parse_hookimpl_opts(plugin, name) if _may_be_hook(plugin, name) else None

    def parse_hookspec_opts(self, module_or_class: Any, name: str) -> Any:
        """Return the options of a specification, or None."""
        if not _may_be_hook(module_or_class, name):
            return None
        return super().parse_hookspec_opts(module_or_class, name)


def _may_be_hook(owner: Any, name: str) -> bool:
    """Return whether pluggy could find a mark there, which is an attribute of a function."""
    if type(owner) is not ModuleType:
        return True
    found = vars(owner).get(name)
    return isinstance(found, _HOOKABLE) and (type(found) is not FunctionType or bool(vars(found)))


@define(eq=False)
class OfferReader:
    """Reader of the offers of one plugin after another.

    The hooks' specifications take most of the time of a discovery, so plugins share a manager.
    A plugin that raises leaves its manager behind, and the next plugin gets a new one.
    """

    _unused: pluggy.PluginManager | None = field(default=None, init=False)

    def offers(self, plugin: Any) -> list[tuple[Role, Offer[Any]]]:
        """Return the offers of a plugin's hooks.

        pluggy checks each hook against its specification.
        """
        manager, self._unused = self._unused or _new_manager(), None
        for name in dir(plugin):
            if manager.parse_hookimpl_opts(plugin, name) is not None:
                _require_hook(name)
        manager.register(plugin)
        offers: list[tuple[Role, Offer[Any]]] = [
            (role, offer) for role in ROLES for offer in _asked(manager, role)
        ]
        if not offers:
            raise PluginError("it offers nothing: no function marked @hookimpl returned an Offer.")
        twice = [key for key, n in Counter((r, o.name) for r, o in offers).items() if n > 1]
        if twice:
            raise PluginError(f"it offers the {twice[0][0]} '{twice[0][1]}' twice.")
        manager.unregister(plugin)
        self._unused = manager
        return offers


def _new_manager() -> pluggy.PluginManager:
    manager = _HookManager(GROUP)
    manager.add_hookspecs(hooks)
    return manager


def _asked(manager: pluggy.PluginManager, role: Role) -> Iterator[Offer[Any]]:
    """Yield the offers of the hook of `role`, up to a limit."""
    for answer in getattr(manager.hook, hook_name(role))():
        some = list(itertools.islice(answer, MAX_OFFERS + 1))
        if len(some) > MAX_OFFERS:
            raise PluginError(f"{hook_name(role)} gave more than {MAX_OFFERS} offers.")
        yield from (_checked(role, offer) for offer in some)


def _require_hook(name: str) -> None:
    known = [hook_name(role) for role in ROLES]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1) or known
        raise PluginError(f"there is no hook '{name}'; did you mean {' or '.join(close)}?")


def _checked(role: Role, offer: object) -> Offer[Any]:
    """Return a plain copy of `offer`.

    A class of the plugin could answer differently the next time.
    """
    if not isinstance(offer, Offer):
        raise PluginError(f"{hook_name(role)} gave {offer!r}, not an Offer.")
    name, factory, summary, local = offer.name, offer.factory, offer.summary, offer.local_parameters
    if not isinstance(name, str) or not NAME.fullmatch(name) or not callable(factory):
        raise PluginError(
            f"{hook_name(role)} offers '{name}': a name is lower-case letters, digits and "
            "hyphens, and a factory can be called."
        )
    if not isinstance(summary, str):
        raise PluginError(f"{hook_name(role)} offers '{name}' with a summary that is no text.")
    if not isinstance(local, tuple) or not all(isinstance(key, str) for key in local):
        raise PluginError(
            f"{hook_name(role)} offers '{name}' with a `local` that is no tuple of names."
        )
    code = offer.code
    if not isinstance(code, str):
        raise PluginError(f"{hook_name(role)} offers '{name}' with a `code` that is no name.")
    download = offer.download
    if not isinstance(download, str):
        raise PluginError(f"{hook_name(role)} offers '{name}' with a `download` that is no name.")
    keys = tuple(str.__str__(key) for key in local)
    return Offer(
        str.__str__(name),
        factory,
        truncated(summary),
        keys,
        str.__str__(code),
        str.__str__(download),
    )
