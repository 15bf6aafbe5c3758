"""Invitation of a deployment's sites, which accept or refuse the run."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, cast

import tomli_w

from cohortium.catalog import construction
from cohortium.catalog.discovery import discover
from cohortium.errors import MessageError, RefusalCode, RefusalError, StudyError
from cohortium.messages import codec
from cohortium.messages.deployment import AGREED, OPTIONAL, Acceptance, Invitation
from cohortium.messages.run import Refusal
from cohortium.runs.result import versions
from cohortium.study import toml
from cohortium.text import escape_control_characters, truncate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cohortium.catalog.discovery import Catalog, CatalogEntry
    from cohortium.roles import Role
    from cohortium.roles.sessions import EngineSession
    from cohortium.roles.values import SiteId
    from cohortium.runs.prepare import PreparedStudy

SHARED_ROLES: tuple[Role, ...] = ("model", "trainer", "privatizer", "aggregator")
"""The roles that all parties share."""

NESTABLE_ROLES: tuple[Role, ...] = (*SHARED_ROLES, "dataset", "task")
"""Roles of parts inside the shared parts.

For example, a model may be fitted on a public data set, whose labels have a task.
"""

SHARED_KEYS = (
    "sites", "rounds", "seed", "cohort_size", "min_contributors", "retries", "device", "threads",
    "adversary",
    "max_colluding", "insecure_seeded_secrets",
)  # fmt: skip
"""Keys of `[federation]` that all parties share."""


MIN_INVITATION_TIMEOUT = 600.0
"""Least timeout of an invitation, in seconds.

In this time, a site reads its data and plans the run.
"""


def invite_sites(exchange: EngineSession, prepared: PreparedStudy) -> tuple[str, ...]:
    """Invite every site, before any training.

    Returns:
        Warnings for the coordinator's people, although all sites take part.

    Raises:
        StudyError: A site does not reply, or does not take part. The message names each such site
            and its reason. Or the sites have more examples than the study declares.
    """
    run_config = prepared.run_config
    sites = range(run_config.federation_spec.sites)
    invitation = build_invitation(prepared)
    failures: dict[SiteId, str] = dict.fromkeys(sites, "no answer came.")
    accepted: dict[SiteId, Acceptance] = {}
    silent = {*sites}
    everyone = dict.fromkeys(sites, b"")
    deadline = max(prepared.federation.reply_timeout, MIN_INVITATION_TIMEOUT)
    for site, reply in exchange.exchange(codec.encode(invitation), everyone, deadline):
        if site not in silent:
            continue  # Only the first answer of a site counts, however often it is delivered.
        silent.remove(site)
        try:
            answer = codec.decode_either(reply, Acceptance, Refusal)
        except MessageError as error:
            failures[site] = str(error)
            continue
        if isinstance(answer, Refusal):
            failures[site] = escape_control_characters(answer.reason)
        elif (answer.session, answer.site) != (run_config.session, site):
            failures[site] = "it answers for another site, or another run."
        else:
            accepted[site] = answer
            del failures[site]
    if failures:
        listed = "".join(f"\n  site {site}: {reason}" for site, reason in sorted(failures.items()))
        raise StudyError(f"{len(failures)} of {len(sites)} sites do not take part:{listed}")
    table = "[data]" if run_config.statistic is None else "[evaluation]"
    return _warnings(accepted, run_config.spec.examples, table)


def invite_to_all(exchange: EngineSession, asked: Sequence[PreparedStudy]) -> tuple[str, ...]:
    """Invite every site to each of several runs, and collect all refusals.

    So a person at a hospital can decide about a study and its evaluation together.

    Returns:
        Warnings, each once.

    Raises:
        StudyError: A site does not take part in one of the runs.
    """
    found: list[str] = []
    refused: list[str] = []
    for prepared in asked:
        try:
            found += invite_sites(exchange, prepared)
        except StudyError as error:
            table = "" if prepared.run_config.statistic is None else "[evaluation]: "
            refused.append(f"{table}{error}")
    if refused:
        raise StudyError("\n".join(refused))
    return tuple(dict.fromkeys(found))


def _warnings(accepted: Mapping[SiteId, Acceptance], examples: int, table: str) -> tuple[str, ...]:
    found = []
    declared = [answer.examples for answer in accepted.values()]
    if sum(declared) > examples:
        raise StudyError(
            f"the sites declare {sum(declared):,} examples together, and the study {examples:,}: "
            f"sums would not fit; raise examples under {table}."
        )
    if all(declared) and sum(declared) < examples:
        found.append(
            f"the sites declare {sum(declared):,} examples together, and the study {examples:,}: "
            "noise and weights go by the study's figure."
        )
    for site, answer in sorted(accepted.items()):
        if answer.versions:
            others = ", ".join(f"{name} {version}" for name, version in answer.versions.items())
            found.append(
                f"site {site} has {escape_control_characters(others)}: equal bits "
                "need equal versions."
            )
    return tuple(found)


def build_invitation(prepared: PreparedStudy) -> Invitation:
    """Return the invitation for the sites of a deployment."""
    shared = shared_tables(toml.loads(prepared.federation.as_toml(), where="the study"))
    directory = prepared.run_config.directory
    return Invitation(
        session=prepared.run_config.session,
        study=tomli_w.dumps(shared),
        directory="" if directory is None else str(directory),
        versions=collect_versions(shared),
    )


def shared_tables(whole: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a study's tables that every site is sent.

    A simulated study has fewer of these tables than a deployed one.
    """
    shared = {name: dict(whole[name]) for name in (*AGREED, *OPTIONAL) if name in whole}
    shared["federation"] = {key: whole["federation"][key] for key in SHARED_KEYS}
    _remove_folders(shared)
    return shared


def shared_digest(shared: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the tables that every site is sent, as hexadecimal digits.

    It is a function of the keys and values, and not of their order or their form in TOML.
    """
    text = json.dumps(shared, sort_keys=True, default=str)
    return hashlib.sha256(b"cohortium shared tables 1\x1f" + text.encode()).hexdigest()


def _remove_folders(shared: Mapping[str, Any]) -> None:
    """Remove the folders of a user's code on this machine.

    Hospitals have the code installed, or refuse.
    """
    catalog = discover()
    for role in SHARED_ROLES:
        for offering, table in iter_parts(catalog, role, shared[role]):
            if offering.offer.code:
                cast("dict[str, Any]", table).pop("folder", None)


def collect_versions(shared: Mapping[str, Any]) -> dict[str, str]:
    """Return versions of Python, packages and the plugins in a study's tables."""
    found = {
        offering.record.name: offering.record.version
        for offering, _ in shared_parts(discover(), shared)
    }
    return {**versions(), **{f"plugin {name}": version for name, version in found.items()}}


def version_differences(theirs: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, str]:
    """Return the versions in `ours` that differ from `theirs`."""
    return {name: version for name, version in ours.items() if theirs.get(name) != version}


def shared_parts(
    catalog: Catalog, shared: Mapping[str, Any]
) -> Iterator[tuple[CatalogEntry, Mapping[str, Any]]]:
    """Yield entries and tables of all parts in a study's tables, the task of its data included.

    The function builds nothing and calls no plugin.

    Raises:
        RefusalError: One part is not a usable part of those that parties share.
    """
    for role in SHARED_ROLES:
        yield from iter_parts(catalog, role, shared.get(role, {}))
    data = shared.get("data")
    if isinstance(data, dict) and data.get("task"):
        yield from iter_parts(catalog, "task", data["task"])


def iter_parts(
    catalog: Catalog, role: Role, table: object
) -> Iterator[tuple[CatalogEntry, Mapping[str, Any]]]:
    """Yield entries and tables of the part in `table` and its inner parts.

    The function builds nothing and calls no plugin.

    Raises:
        RefusalError: One part is not a usable part of those that parties share.
    """
    inside = {"name": table} if isinstance(table, str) else table
    name = inside.get("name") if isinstance(inside, dict) else None
    found = [o for o in catalog.entries if (o.role, o.offer.name) == (role, name)]
    if len(found) != 1 or found[0].record.status != "active" or role not in NESTABLE_ROLES:
        raise RefusalError(
            RefusalCode.PLUGINS,
            f"no usable plugin here offers the {role} {truncate(name)} to a study.",
        )
    described = cast("dict[str, Any]", inside)
    yield found[0], described
    known = construction.roles_of(found[0].offer.factory, what=f"{role} '{name}'")
    for key, inner in known.items():
        if described.get(key):
            yield from iter_parts(catalog, inner, described[key])
