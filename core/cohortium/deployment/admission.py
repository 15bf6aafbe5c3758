"""Admission of an invitation: a study that the site's policy allows.

Guarantees:
    Only the tables of `AGREED` and `OPTIONAL` are accepted, and of [federation] only the terms of
    `SHARED_KEYS`.
    An invitation cannot name a data set, an engine, an observer or a file.

    The site's policy checks every plugin by name before any plugin is called or instantiated. This
    includes parts inside parts, and the task of the data. A task of Cohortium's own needs no entry.

    A plugin declares parameters that name code or files of the machine (`Offer.local_parameters`).
    Each has its default, or a value that the policy lists.

    A part that can fetch files from the network (`Offer.download`) is told not to, or the policy
    lists it. So no study makes a site open a connection.

    Every value is converted strictly to its parameter's type. Nothing is evaluated or unpickled.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NoReturn

from attrs import frozen

from cohortium.catalog.allow_list import OWN_DISTRIBUTION, normalize_name
from cohortium.catalog.discovery import discover
from cohortium.errors import RefusalCode, RefusalError, StudyError
from cohortium.messages.deployment import AGREED, OPTIONAL
from cohortium.runs.invite import (
    SHARED_KEYS,
    collect_versions,
    shared_parts,
    version_differences,
)
from cohortium.study import study_file, toml
from cohortium.study.study import Study
from cohortium.text import quote_key, truncate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.catalog.discovery import CatalogEntry
    from cohortium.deployment.site_policy import SitePolicy
    from cohortium.messages.deployment import Invitation
    from cohortium.roles.sessions import EngineSession, SiteFactory
    from cohortium.roles.values import SiteId

DEVICES = ("auto", "cpu", "cuda", "mps")
"""Devices on which a study may ask torch to compute."""

MAX_THREADS = 32
"""Most threads of torch, on a machine of fewer processors. With many more threads than processors,
most of the time is spent on the threads."""


def invited_study(invitation: Invitation, policy: SitePolicy) -> Study:
    """Build the study of an invitation.

    Raises:
        RefusalError: It is below a floor of `policy`, or cannot be built here.
        StudyError: It asks for something impossible.
    """
    where = "the invitation"
    shared = toml.loads(invitation.study, where=where)
    toml.require_text(shared, where=where)
    for name in shared:
        if name not in (*AGREED, *OPTIONAL):
            _refuse(
                RefusalCode.TABLES,
                f"the study has a table [{quote_key(name)}], which no site is sent.",
            )
    for name in (*AGREED, *(name for name in OPTIONAL if name in shared)):
        if not isinstance(shared.get(name), dict):
            _refuse(RefusalCode.TABLES, f"the study has no table [{name}].")
    for key in shared["federation"]:
        if key not in SHARED_KEYS:
            _refuse(
                RefusalCode.TABLES, f"the study has a term {quote_key(key)}, which no site is sent."
            )
    _require_bounds(shared["federation"], policy)
    catalog = discover()
    for offering, table in shared_parts(catalog, shared):
        _require_allowed(policy, offering, table)
    _require_versions(invitation.versions, collect_versions(shared))
    return study_file.build(shared, where=where, engine=NoEngine(), catalog=catalog, into=Study)


@frozen
class NoEngine:
    """Engine of a study at a site, which sends nothing itself."""

    def connect(self, sites: Mapping[SiteId, SiteFactory] | None) -> EngineSession:  # noqa: ARG002
        """Refuse, because sites do not start runs."""
        raise StudyError("a hospital's side of a study cannot be run.")


def _require_allowed(policy: SitePolicy, offering: CatalogEntry, table: Mapping[str, Any]) -> None:
    what = f"{offering.role} '{offering.offer.name}'"
    is_own_task = offering.role == "task" and (
        normalize_name(offering.record.distribution) == OWN_DISTRIBUTION
    )
    if not is_own_task and not policy.allows(offering.record):
        _refuse(
            "policy.allowed_plugins",
            f"the study uses the {what} of {offering.record.label}, and this site does not allow "
            "that plugin.",
        )
    for key in offering.offer.local_parameters:
        value = table.get(key)
        if value not in (None, "", *policy.allowed_local_values):
            _refuse(
                "policy.allowed_local_values",
                f"the study gives the {what} {key} = {truncate(value)}, which names code or a "
                "file of this machine, and this site does not allow it.",
            )
    download = offering.offer.download
    if (
        download
        and table.get(download) is not False
        and offering.offer.name not in policy.allowed_downloads
    ):
        _refuse(
            "policy.allowed_downloads",
            f"the {what} of the study may fetch its files from the network, and this site fetches "
            f"nothing for a study; write {download} = false in the study, and put the files in "
            "place.",
        )


def _require_versions(theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """Refuse another version of cohortium, or of a plugin.

    Other packages may differ.
    """
    for name, version in version_differences(theirs, ours).items():
        if name == "cohortium" or name.startswith("plugin "):
            _refuse(
                RefusalCode.VERSIONS,
                f"the coordinator has {name} {quote_key(theirs.get(name, 'none'))}, and this site "
                f"{version}; install the same.",
            )


def _require_bounds(terms: Mapping[str, Any], policy: SitePolicy) -> None:
    """Refuse excessive demands on this machine: attempts, sites, devices or threads."""
    numbers = {key: value for key, value in terms.items() if isinstance(value, int)}
    attempts = numbers.get("rounds", 0) + numbers.get("retries", 0)
    policy.admit_terms(sites=numbers.get("sites", 0), attempts=attempts)
    device, threads = terms.get("device", "cpu"), numbers.get("threads", 0)
    if str(device).partition(":")[0] not in DEVICES:
        _refuse(RefusalCode.DEVICE, f"the study asks for the device {truncate(device)}.")
    most = max(MAX_THREADS, os.cpu_count() or 0)
    if threads > most:
        _refuse(RefusalCode.THREADS, f"the study asks for {threads} threads, more than {most}.")


def _refuse(code: str, sentence: str) -> NoReturn:
    raise RefusalError(code, sentence)
