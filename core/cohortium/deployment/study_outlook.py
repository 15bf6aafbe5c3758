"""Releases and cost of a waiting study, for the site's staff."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from cohortium.deployment.study_facts import Spending
from cohortium.errors import RunError
from cohortium.ledger.report import format_epsilon
from cohortium.reporting.parties import PartyInputs
from cohortium.reporting.study_page import Charge, Release, StudyOutlook
from cohortium.reporting.wording import plural
from cohortium.study import toml

if TYPE_CHECKING:
    from pathlib import Path

    from cohortium.deployment.site_config import SiteConfig
    from cohortium.deployment.study_record import StudyRecord

MOST_RUNS = 3
"""Most runs of which the page shows the cost. It ends with the first beyond the budget."""


def study_outlook(record: StudyRecord, site_config: SiteConfig, path: Path) -> StudyOutlook:
    """Return the releases of a study, and their cost to a site.

    Args:
        record: The study.
        site_config: The site.
        path: The site file.

    Raises:
        LedgerError: The ledger cannot be used.
        RunError: The site has no such images any more.
    """
    facts, approval = record.facts, record.approval
    decision = ""
    if approval is not None:
        decision = (
            f"Approved by {approval.by} on {approval.made:%d %B %Y} until "
            f"{approval.until:%d %B %Y} for {plural(approval.runs, 'run')}, of which "
            f"{len(approval.sessions)} have begun."
        )
    digits, file = record.digest[:12], shlex.quote(str(path))
    return StudyOutlook(
        site=site_config.id,
        digest=record.digest,
        status=record.status,
        first_asked=f"{record.first_asked:%d %B %Y}",
        last_asked=f"{record.last_asked:%d %B %Y}",
        decision=decision,
        inputs=PartyInputs(
            terms=facts.terms, guarantee=facts.guarantee, aggregation=facts.aggregation
        ),
        release=Release(
            attempts=facts.attempts,
            rounds=facts.terms.rounds,
            values=facts.values,
            size=facts.size,
            is_measurement=facts.is_measurement,
        ),
        membership=facts.membership,
        charge=_charge(record, site_config),
        study=toml.loads(record.study, where="the study"),
        versions=record.versions,
        commands=(
            f"cohortium approve {file} {digits} --until YYYY-MM-DD --by NAME",
            f"cohortium revoke {file} {digits} --by NAME",
        ),
    )


def _charge(record: StudyRecord, site_config: SiteConfig) -> Charge:
    facts, accounts = record.facts, site_config.accounts
    if facts.data not in accounts:
        raise RunError(
            f"the study was asked for when this site had images called '{facts.data}'; it has none "
            "now, and the study waits until it is asked for again."
        )
    account = accounts[facts.data]
    found = [Spending.of(facts, account)]
    while len(found) < MOST_RUNS and found[-1].is_within and facts.costs:
        found.append(Spending.of(facts, account, len(found) + 1))
    first = found[0]
    return Charge(
        data=facts.data,
        use=facts.use,
        now=format_epsilon(first.now),
        after=tuple(
            f"{format_epsilon(each.after)}{'' if each.is_within else ' (beyond the budget)'}"
            for each in found
        ),
        delta=first.delta,
        scope=str(first.scope),
        budget="" if first.budget is None else str(first.budget),
        is_within=first.is_within,
    )
