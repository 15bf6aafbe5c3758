"""Discovery: every plugin that is installed, what it offers, and why one cannot be used.

pluggy checks and calls the hooks; the loading is ours, because `load_setuptools_entrypoints` lets
one broken plugin stop the host, and lets a foreign one replace another of the same name in silence.
"""

from __future__ import annotations

import difflib
import os
import re
import traceback
from collections import Counter
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal

import pluggy
from attrs import evolve, field, frozen

from cohortium import hooks
from cohortium.errors import PluginError
from cohortium.hooks import API, GROUP, ROLES, Offer, Role, hook_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Status = Literal["active", "blocked", "broken", "conflict", "incompatible"]
"""What became of a plugin: usable; kept out by a list; failed to load; offers a name that another
plugin offers too; written for another version of the contracts."""

NAME = re.compile(r"[a-z][a-z0-9-]*")
"""The form of an offer's name."""


@frozen(kw_only=True)
class PluginRecord:
    """One entry point and what became of it.

    Attributes:
        name: The entry point's name.
        target: The import package it names.
        distribution: The installed package it came with.
        version: Of that package.
        status: See `Status`.
        reason: Why it is not active; empty if it is.
    """

    name: str
    target: str
    distribution: str
    version: str
    status: Status = "active"
    reason: str = ""

    @property
    def label(self) -> str:
        """How an error names it."""
        return f"{self.name} ({self.distribution} {self.version})"


@frozen
class Offering:
    """An offer, and the plugin that makes it."""

    role: Role
    offer: Offer[Any]
    record: PluginRecord


@frozen
class Catalog:
    """What is installed, as found once.

    Attributes:
        records: One for every entry point, by name.
        offerings: All that loaded plugins offer.
    """

    records: tuple[PluginRecord, ...]
    offerings: tuple[Offering, ...] = field(repr=False)

    def names(self, role: Role) -> list[str]:
        """The names that can be looked up for `role`."""
        return sorted({o.offer.name for o in self.offerings if o.role == role})

    def find(self, role: Role, name: str) -> Offer[Any]:
        """The one offer of `name` for `role`.

        Raises:
            PluginError: No usable plugin offers it, or two do.
        """
        found = [o for o in self.offerings if o.role == role and o.offer.name == name]
        if len(found) == 1:
            return found[0].offer
        if found:
            both = " and ".join(o.record.label for o in found)
            raise PluginError(
                f"{role} '{name}' is offered by {both}; "
                "keep one of them out with COHORTIUM_BLOCK=<distribution>."
            )
        raise PluginError(f"no plugin offers the {role} '{name}'{self._hint(role, name)}")

    def name_of(self, role: Role, instance: object) -> str | None:
        """The name under which the class of `instance` is offered for `role`, or None."""
        for offering in self.offerings:
            if offering.role == role and offering.offer.factory is type(instance):
                return offering.offer.name
        return None

    def owner(self, error: BaseException) -> PluginRecord | None:
        """The plugin in whose code, or in a call from it, `error` was raised; None if in none."""
        owners = {record.target.partition(".")[0]: record for record in self.records}
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        packages = [frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames]
        found = [owners[package] for package in packages if package in owners]
        return found[-1] if found else None

    def makers_of(self, instance: object) -> list[PluginRecord]:
        """The plugins whose package holds the class of `instance`; usually one, or none."""
        package = type(instance).__module__.split(".")[0]
        return [record for record in self.records if record.target.split(".")[0] == package]

    def _hint(self, role: Role, name: str) -> str:
        known = self.names(role)
        unusable = {r.name: r for r in self.records if r.status != "active"}
        meant = difflib.get_close_matches(name, unusable, n=1, cutoff=0.75)
        if meant:
            record = unusable[meant[0]]
            return f"; the plugin {record.label} is {record.status}: {record.reason}"
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        if near:
            return f"; did you mean {' or '.join(repr(n) for n in near)}?"
        return f"; there are {', '.join(known) or 'none'}."


def discover(
    environ: Mapping[str, str] = os.environ, *, points: Iterable[EntryPoint] | None = None
) -> Catalog:
    """Find every installed plugin and load those that may be loaded.

    Args:
        environ: Read for `COHORTIUM_BLOCK` and `COHORTIUM_ONLY`, comma-separated plugin or
            distribution names.  A plugin kept out by either is never imported.
        points: The entry points to load; by default those that are installed.
    """
    block, only = _names(environ, "COHORTIUM_BLOCK"), _names(environ, "COHORTIUM_ONLY")
    found = entry_points(group=GROUP) if points is None else points
    records, offerings = [], []
    for point in sorted(found, key=lambda p: (p.name, p.value)):
        record = _record(point)
        own = {record.name, record.distribution}
        if own & block:
            record = evolve(record, status="blocked", reason="COHORTIUM_BLOCK names it.")
        elif only and not own & only:
            record = evolve(record, status="blocked", reason="COHORTIUM_ONLY does not name it.")
        else:
            record, offers = _load(point, record)
            offerings += [Offering(role, offer, record) for role, offer in offers]
        records.append(record)
    return _mark_conflicts(records, offerings)


def _names(environ: Mapping[str, str], key: str) -> set[str]:
    return {name.strip() for name in environ.get(key, "").split(",") if name.strip()}


def _record(point: EntryPoint) -> PluginRecord:
    return PluginRecord(
        name=point.name,
        target=point.value,
        distribution=point.dist.name if point.dist else "unknown",
        version=point.dist.version if point.dist else "0",
    )


def _load(
    point: EntryPoint, record: PluginRecord
) -> tuple[PluginRecord, list[tuple[Role, Offer[Any]]]]:
    """Import a plugin and collect its offers.  Whatever it does, only its own record suffers."""
    try:
        plugin = point.load()
        version = getattr(plugin, "COHORTIUM_API", None)
        if version != API:
            stated = "states no COHORTIUM_API" if version is None else f"is for API {version!r}"
            reason = f"it {stated}, and this is API {API}."
            return evolve(record, status="incompatible", reason=reason), []
        return record, _offers(plugin)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin's fault stays its own
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")
        return evolve(record, status="broken", reason=reason), []


def _offers(plugin: Any) -> list[tuple[Role, Offer[Any]]]:
    """Ask a plugin's hooks, each checked against its specification by pluggy."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hooks)
    manager.register(plugin)
    manager.check_pending()
    offers: list[tuple[Role, Offer[Any]]] = []
    for role in ROLES:
        for answer in getattr(manager.hook, hook_of(role))():
            offers.extend((role, _checked(role, offer)) for offer in answer)
    if not offers:
        raise PluginError("it offers nothing: no hook of it returned an Offer.")
    twice = [key for key, n in Counter((r, o.name) for r, o in offers).items() if n > 1]
    if twice:
        raise PluginError(f"it offers the {twice[0][0]} '{twice[0][1]}' twice.")
    return offers


def _checked(role: Role, offer: object) -> Offer[Any]:
    if not isinstance(offer, Offer):
        raise PluginError(f"{hook_of(role)} gave {offer!r}, not an Offer.")
    if not NAME.fullmatch(offer.name) or not callable(offer.factory):
        raise PluginError(
            f"{hook_of(role)} offers '{offer.name}': a name is lower-case letters, digits and "
            "hyphens, and a factory can be called."
        )
    return offer


def _mark_conflicts(records: list[PluginRecord], offerings: list[Offering]) -> Catalog:
    makers: dict[tuple[Role, str], list[PluginRecord]] = {}
    for offering in offerings:
        makers.setdefault((offering.role, offering.offer.name), []).append(offering.record)
    reasons: dict[PluginRecord, str] = {}
    for (role, name), of_name in makers.items():
        for record in of_name if len(of_name) > 1 else ():
            others = " and ".join(r.label for r in of_name if r is not record)
            reasons[record] = f"the {role} '{name}' is also offered by {others}."

    def marked(record: PluginRecord) -> PluginRecord:
        if record not in reasons:
            return record
        return evolve(record, status="conflict", reason=reasons[record])

    return Catalog(
        tuple(marked(record) for record in records),
        tuple(evolve(offering, record=marked(offering.record)) for offering in offerings),
    )
