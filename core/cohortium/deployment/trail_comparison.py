"""A site's trail, compared with its other files.

The file of a trail cannot show that its last lines are gone. The site's other files often can.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING

from attrs import define, field

from cohortium.deployment import trail_entries as entries
from cohortium.deployment.approvals import ApprovalStore
from cohortium.deployment.participation import ParticipationStore
from cohortium.errors import RecordError
from cohortium.storage.bounded_read import why_unreadable
from cohortium.storage.hash_chain import links

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator
    from pathlib import Path

    from cohortium.deployment.site_config import SiteConfig
    from cohortium.deployment.trail_entries import AnyEntry
    from cohortium.ledger.ledger import Ledger


def missing_entries(site_config: SiteConfig) -> Iterator[str]:
    """Yield what a site's files have and its trail lacks, or the reverse, in sentences.

    Files that are older than the trail are left out, because a site may begin another trail.

    Args:
        site_config: The site. Its trail is whole, as `check_trail` says.

    Guarantees:
        A site that was only interrupted, at any moment, yields nothing.

    Raises:
        CohortiumError: A file cannot be read.
    """
    # Lines precede the files of an answer or an approval, and follow charges. So a site in use is
    # read in this order.
    answers = list(_last_answers(site_config.folder / site_config.runs_dir))
    approved = ApprovalStore.read_all(site_config.folder / site_config.approvals_dir)
    told = _Told()
    path = site_config.folder / site_config.trail
    try:
        with path.open("rb") as file:
            for link in links(file):
                told.take(entries.decode_entry(link))
    except OSError as error:
        reason = why_unreadable(path, error, suffix=".jsonl")
        raise RecordError(f"cannot read the trail {path}: {reason}.") from error
    for session, digest, saved in answers:
        if told.covers(saved) and digest not in told.answers[session]:
            yield (
                f"the last answer in run {session[:12]} has no line: lines were removed at the "
                "trail's end, or it is an older copy."
            )
    for record in approved:
        made = record.approval
        if made is None or not told.covers(made.made.timestamp()):
            continue
        if (record.digest, made.by, made.until, made.runs) not in told.approvals:
            yield (
                f"the approval of study {record.digest[:12]} has no line: lines were removed at "
                "the trail's end, or it is an older copy, or no command has approved the study."
            )
        elif record.state == "approved" and not told.is_approved[record.digest]:
            yield (
                f"the study {record.digest[:12]} is approved, and the trail has the end of that "
                "approval: the folder of approvals is an older copy. Revoke the study again."
            )
    yield from _uncharged_releases(site_config.account.ledger, told)


@define(eq=False)
class _Told:
    """Answers and approvals of which a trail tells.

    Attributes:
        opened: Time of its first line.
        answers: Hashes of the answers of each run.
        releases: Attempts with a release of each run.
        is_approved: Whether the last decision about each study is an approval that has not ended.
        approvals: Approvals, each with its study, person, last day and number of runs.
    """

    opened: dt.datetime | None = None
    answers: dict[str, set[str]] = field(factory=lambda: defaultdict(set))
    releases: dict[str, set[int]] = field(factory=lambda: defaultdict(set))
    is_approved: dict[str, bool] = field(factory=dict)
    approvals: set[tuple[str, str, dt.date, int]] = field(factory=set)

    def take(self, entry: AnyEntry) -> None:
        """Note an entry."""
        if isinstance(entry, entries.Opened):
            self.opened = entry.at
        elif isinstance(entry, entries.Answered):
            self.answers[entry.session].add(entry.sha256)
            if entry.has_release:
                self.releases[entry.session].add(entry.attempt)
        elif isinstance(entry, entries.StudyApproved):
            self.approvals.add((entry.study, entry.by, entry.until, entry.runs))
            self.is_approved[entry.study] = True
        elif isinstance(entry, entries.StudyRevoked | entries.ApprovalEnded):
            self.is_approved[entry.study] = False

    def covers(self, moment: float) -> bool:
        """Return whether the trail had begun at this moment, in seconds since 1970.

        The time of an entry is in whole seconds.
        """
        return self.opened is not None and moment >= self.opened.timestamp() + 1


def _last_answers(folder: Path) -> Iterator[tuple[str, str, float]]:
    """Yield each run's session, with the hash and the time of the last answer in it."""
    if not folder.is_dir():
        return
    store = ParticipationStore(folder)
    for session, _ in store.sessions():
        found = store.for_session(session).last_reply()
        if found is not None:
            reply, saved = found
            yield session.hex(), hashlib.sha256(reply).hexdigest(), saved


def _uncharged_releases(ledger: Ledger, told: _Told) -> Iterator[str]:
    if not ledger.path.exists():
        return
    with ledger.read_transaction() as book:
        names = book.names()
        for session, released in told.releases.items():
            charged: set[int] = set()
            for name in names:
                charged.update(book.attempts(name, bytes.fromhex(session)))
            if more := len(released - charged):
                yield (
                    f"the ledger has no charge for {more} of {len(released)} releases in run "
                    f"{session[:12]}: it is an older copy, or was altered."
                )
