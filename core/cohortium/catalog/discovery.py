"""Discovery of installed plugins, their offers, and the faults of unusable ones.

The module `offers` reads a plugin's offers by pluggy. This module loads the plugins itself, because
`load_setuptools_entrypoints` has two faults. It lets one broken plugin stop the host, and lets a
foreign plugin silently replace another of the same name.
"""

from __future__ import annotations

import difflib
import os
import traceback
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from attrs import evolve, field, frozen

from cohortium.catalog.allow_list import OWN_DISTRIBUTION, parse_patterns
from cohortium.catalog.distributions import entry_points_in, import_path_state
from cohortium.catalog.offers import OfferReader
from cohortium.errors import PluginError, RequestError
from cohortium.renamed import VARIABLES
from cohortium.roles.hooks import API, GROUP, Offer
from cohortium.third_party import call_guarded, truncated

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from importlib.metadata import Distribution, EntryPoint
    from types import FrameType

    from cohortium.catalog.allow_list import PluginPattern
    from cohortium.catalog.distributions import PathState, UnreadableDistribution
    from cohortium.roles import Role

Status = Literal["active", "blocked", "broken", "conflict", "incompatible"]
"""Status of a plugin.

It is usable, blocked by a list, or failed to load. Or it offers a name that another plugin offers
too, or was written for another version of the contracts.
"""


@frozen(kw_only=True)
class PluginRecord:
    """One entry point and its status.

    Its texts come from other parties. Each is one line without a control character.

    Attributes:
        name: Name of the entry point.
        target: Import package that the entry point names.
        distribution: Installed package of the entry point.
        version: Version of that package.
        status: Status of the plugin (see `Status`).
        reason: Reason why the plugin is not active, or empty if it is.
    """

    name: str
    target: str
    distribution: str
    version: str
    status: Status = "active"
    reason: str = ""

    @property
    def label(self) -> str:
        """Name of the plugin in an error."""
        return f"{self.name} ({self.distribution} {self.version})"


@frozen(eq=False)
class PluginFrame:
    """A call of a plugin's code in a traceback.

    Attributes:
        frame: The call.
        line: Line of the plugin's file.
        record: The plugin.
    """

    frame: FrameType
    line: int
    record: PluginRecord


@frozen
class CatalogEntry:
    """An offer, and the plugin that makes it."""

    role: Role
    offer: Offer[Any]
    record: PluginRecord


@frozen
class Catalog:
    """The installed plugins, from one discovery.

    Attributes:
        records: One record for every entry point, by name.
        entries: All offers of loaded plugins.
    """

    records: tuple[PluginRecord, ...]
    entries: tuple[CatalogEntry, ...] = field(repr=False)

    def names(self, role: Role) -> list[str]:
        """Return the names that can be looked up for `role`."""
        return sorted({o.offer.name for o in self.entries if o.role == role})

    def find(self, role: Role, name: str) -> Offer[Any]:
        """Return the one offer of `name` for `role`.

        Raises:
            PluginError: No usable plugin offers the name, or two do.
        """
        found = [o for o in self.entries if o.role == role and o.offer.name == name]
        if len(found) == 1:
            return found[0].offer
        if found:
            both = " and ".join(o.record.label for o in found)
            raise PluginError(
                f"{role} '{name}' is offered by {both}; "
                "keep one of them out with COHORTIUM_PLUGIN_BLOCK=<distribution>."
            )
        raise PluginError(f"no plugin offers the {role} '{name}'{self._hint(role, name)}")

    def name_of(self, role: Role, instance: object) -> str | None:
        """Return the name under which the class of `instance` is offered.

        The offer is for `role`. The result is None if no plugin offers the class.
        """
        for offering in self.entries:
            if offering.role == role and offering.offer.factory is type(instance):
                return offering.offer.name
        return None

    def plugin_in_traceback(self, error: BaseException) -> PluginRecord | None:
        """Return the plugin whose code, or a call from it, raised `error`.

        The result is None if no plugin's code raised it.
        """
        found = self.frame_in_traceback(error)
        return None if found is None else found.record

    def frame_in_traceback(self, error: BaseException) -> PluginFrame | None:
        """Return the innermost call of a plugin's code that raised `error`.

        Code of another distribution comes first, because it may have called a plugin of
        Cohortium's own with wrong values.
        """
        owners = {record.target.partition(".")[0]: record for record in self.records}
        found = [
            PluginFrame(frame, line, owners[package])
            for frame, line in traceback.walk_tb(error.__traceback__)
            if (package := str(frame.f_globals.get("__name__")).partition(".")[0]) in owners
        ]
        foreign = [each for each in found if each.record.distribution != OWN_DISTRIBUTION]
        innermost = (foreign or found)[-1:]
        return innermost[0] if innermost else None

    def plugins_defining(self, instance: object) -> list[PluginRecord]:
        """Return the plugins whose package defines the class of `instance`.

        There is usually one, or none.
        """
        package = str(type(instance).__module__).split(".")[0]
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

    The result is that of the last call if the two lists and the import path are the same.

    Args:
        environ: Environment with `COHORTIUM_PLUGIN_BLOCK` and `COHORTIUM_PLUGIN_ALLOW`. They have
            comma-separated entries in the form of `allow_list`. A plugin that either excludes is
            never imported.
        points: The entry points to load. The default is all that are installed.

    Raises:
        RequestError: An entry of one of the two names no plugin, or a variable has its old name.
    """
    for old, new in VARIABLES.items():
        if old in environ:
            raise RequestError(f"{old} is called {new} now; set that instead.")
    lists = (environ.get("COHORTIUM_PLUGIN_BLOCK", ""), environ.get("COHORTIUM_PLUGIN_ALLOW", ""))
    if points is None:
        return _discover_installed(*lists, import_path_state())
    return _discover(*lists, list(points), [])


@lru_cache(maxsize=1)
def _discover_installed(blocked: str, allowed: str, _state: PathState) -> Catalog:
    """Return the catalog of the installed plugins.

    A command asks for it some ten times. Another state of the import path is another argument, so
    a plugin that was installed or removed meanwhile is noticed.
    """
    return _discover(blocked, allowed, *entry_points_in(GROUP))


def _discover(
    blocked: str,
    allowed: str,
    found: list[EntryPoint],
    unreadable: list[UnreadableDistribution],
) -> Catalog:
    block = _listed(blocked, "COHORTIUM_PLUGIN_BLOCK")
    only = _listed(allowed, "COHORTIUM_PLUGIN_ALLOW")
    records = [
        PluginRecord(
            name=truncated(damaged.distribution),
            target="",
            distribution=truncated(damaged.distribution),
            version="0",
            status="broken",
            reason=damaged.reason,
        )
        for damaged in unreadable
    ]
    offerings: list[CatalogEntry] = []
    # A distribution may hold many plugins, and to parse its metadata takes milliseconds.
    identities = {id(point.dist): _identity(point.dist) for point in _one_of_each(found)}
    reader = OfferReader()
    for point in sorted(found, key=lambda p: (p.name, p.value)):
        record = _record(point, *identities[id(point.dist)])
        own = (record.distribution, record.name, record.version)
        if any(entry.blocks(*own) for entry in block):
            record = evolve(record, status="blocked", reason="COHORTIUM_PLUGIN_BLOCK names it.")
        elif only and not any(entry.allows(*own) for entry in only):
            record = evolve(
                record, status="blocked", reason="COHORTIUM_PLUGIN_ALLOW does not name it."
            )
        elif record.status == "active":
            record, offers = _load(point, record, reader)
            offerings += [CatalogEntry(role, offer, record) for role, offer in offers]
        records.append(record)
    records.sort(key=lambda r: (r.name, r.target))
    return _mark_conflicts(records, offerings)


def _listed(text: str, key: str) -> tuple[PluginPattern, ...]:
    names = [name for name in text.split(",") if name.strip()]
    return parse_patterns(names, where=key)


def _one_of_each(points: Iterable[EntryPoint]) -> list[EntryPoint]:
    """Return one entry point of each distribution object."""
    return list({id(point.dist): point for point in points}.values())


def _identity(dist: Distribution | None) -> tuple[dict[str, str], str]:
    """Return the name and the version of a distribution, and the reason if they are unreadable."""
    found: dict[str, str] = {"distribution": "unknown", "version": "0"}
    try:
        if dist:
            found["distribution"] = call_guarded(lambda: str(dist.metadata["Name"] or "unknown"))
            found["version"] = call_guarded(lambda: str(dist.version or "0"))
    except PluginError as error:
        return found, f"its metadata cannot be read: {error}"
    return found, ""


def _record(point: EntryPoint, found: Mapping[str, str], reason: str) -> PluginRecord:
    texts = {"name": point.name, "target": point.value, **found}
    shown = {key: truncated(text) for key, text in texts.items()}
    if not reason and shown != texts:
        reason = "its metadata hold characters that no name has."
    return PluginRecord(**shown, status="broken" if reason else "active", reason=reason)


def _load(
    point: EntryPoint, record: PluginRecord, reader: OfferReader
) -> tuple[PluginRecord, list[tuple[Role, Offer[Any]]]]:
    """Import a plugin and collect its offers.

    A fault of the plugin affects only its own record.
    """

    def load() -> tuple[PluginRecord, list[tuple[Role, Offer[Any]]]]:
        plugin = point.load()
        version = getattr(plugin, "COHORTIUM_API", None)
        if type(version) is int and version == API:
            return record, reader.offers(plugin)
        stated = "states no COHORTIUM_API" if version is None else f"is for API {version!r}"
        reason = truncated(f"it {stated}, and this is API {API}.")
        return evolve(record, status="incompatible", reason=reason), []

    try:
        return call_guarded(load)
    except PluginError as error:
        return evolve(record, status="broken", reason=str(error)), []


def _mark_conflicts(records: list[PluginRecord], offerings: list[CatalogEntry]) -> Catalog:
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
