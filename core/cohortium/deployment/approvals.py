"""Studies that wait for a person's yes at a site, and those decisions.

A decision is about a *digest* (see `study_record.study_digest`). A file for each digest has the
study, the facts about it that the site's own code derived, and the decision. The running site and
the commands `studies`, `approve` and `revoke` share the folder: each locks it and reads the file
anew.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import re
from typing import TYPE_CHECKING

import msgspec
from attrs import define, field

from cohortium.deployment import trail_entries as entries
from cohortium.deployment.audit_trail import utc_now
from cohortium.deployment.study_record import FORMAT, MAX_RUNS, Approval, StudyRecord
from cohortium.errors import RefusalCode, RefusalError, RequestError, RunError
from cohortium.storage.atomic import atomic_write, require_room, sweep
from cohortium.storage.bounded_read import read_if_present
from cohortium.storage.file_lock import locked
from cohortium.text import is_printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cohortium.deployment.audit_trail import AuditTrail
    from cohortium.deployment.study_facts import StudyFacts
    from cohortium.deployment.study_record import InvitedStudy

_LOG = logging.getLogger(__name__)

MAX_WAITING = 32
"""Most studies that wait at a site. While they do, no other study can."""

MAX_STORED = 256
"""Most studies whose files are kept. Those with an ended or revoked approval go first."""

WAITING_DAYS = 30
"""Days after which a study no longer waits, if nobody asks for it again."""

MAX_DAYS = 5 * 366
"""Most days of an approval."""

MIN_DIGITS = 8
"""Fewest digits by which a command names a study."""

MAX_FILE_BYTES = 1 << 24

CLOCK_TOLERANCE = dt.timedelta(hours=1)
"""Time by which the clock may be before the time of a decision."""

_NAME = re.compile(r"[0-9a-f]{64}")


@define(eq=False)
class ApprovalStore:
    """The studies of a site, in a folder only for its owner.

    Guarantees:
        `admit` and `holding` let only a study pass that a person has approved. The last day is not
        over, and no more runs have begun than were approved. A run counts as begun from its first
        request on, and that is durable.

        Once `revoke` has returned, the body of no `holding` begins for the study. One that had
        begun is over.

        An approval that was seen past its last day stays ended, also if the clock is set back. An
        approval made later than the clock says does not count.

        Each decision is an entry of the trail, and so is each study that begins to wait.

        A refusal says that there is no approval, and neither why nor whether there was one.

        At most `MAX_WAITING` studies wait, and at most `MAX_STORED` have a file.

    Attributes:
        folder: Folder of the files.
        trail: Trail of the site.
        now: Returns the time.
    """

    folder: Path
    trail: AuditTrail
    now: Callable[[], dt.datetime] = field(default=utc_now)

    def require_usable(self) -> None:
        """Create the folder, and read every file.

        Raises:
            RunError: The folder cannot be used, or a file is damaged.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            require_room(self.folder, 0)
            sweep(self.folder)
        except OSError as error:
            raise RunError(f"cannot use {self.folder}: {error.strerror}.") from error
        self.studies()

    def studies(self) -> list[StudyRecord]:
        """Return all studies, those that wait first, and the last asked for before others.

        Raises:
            RunError: The folder cannot be used, or a file is damaged.
        """
        with self._locked():
            found = [self._refreshed(record) for record in _all(self.folder)]
        found.sort(key=lambda record: record.last_asked, reverse=True)
        return sorted(found, key=lambda record: record.state != "waiting")

    @classmethod
    def read_all(cls, folder: Path) -> list[StudyRecord]:
        """Return the studies in a folder, and change nothing.

        Raises:
            RunError: The folder cannot be used, or a file is damaged.
        """
        return list(_all(folder))

    def find(self, digits: str) -> StudyRecord:
        """Return the study whose digest begins with `digits`.

        Raises:
            RequestError: There is none, or more than one.
            RunError: The folder cannot be used, or a file is damaged.
        """
        if len(digits) < MIN_DIGITS:
            raise RequestError(f"name the study by {MIN_DIGITS} or more digits of its digest.")
        found = [record for record in self.studies() if record.digest.startswith(digits)]
        if len(found) != 1:
            number = "no study has" if not found else f"{len(found)} studies have"
            raise RequestError(
                f"{number} a digest that begins with those digits; `cohortium studies` lists them."
            )
        return found[0]

    def admit(self, invited: InvitedStudy, facts: StudyFacts) -> None:
        """Accept an invitation to an approved study, and let any other study wait.

        Raises:
            RefusalError: The study is not approved, or as many wait as may.
        """
        with self._guarded(), self._locked():
            record, now = self._known(invited.digest), self.now()
            if record is not None and _covers(record, invited.session, now):
                return
            if record is None or record.state == "ended":
                self._make_room(invited.digest)
                self.trail.write(entries.StudyWaits(at=now, study=invited.digest))
                record = StudyRecord(
                    format=FORMAT,
                    digest=invited.digest,
                    study=invited.study,
                    versions=dict(invited.versions),
                    facts=facts,
                    first_asked=now if record is None else record.first_asked,
                    last_asked=now,
                    approval=None if record is None else record.approval,
                )
            self._write(msgspec.structs.replace(record, last_asked=now))
        raise not_approved(invited.digest)

    def begin(self, digest: str, session: bytes) -> None:
        """Count a run as begun, once.

        Raises:
            RefusalError: The study is not approved.
        """
        with self.holding(digest, session) as record:
            approval = record.approval
            assert approval is not None
            if session not in approval.sessions:
                begun = msgspec.structs.replace(approval, sessions=(*approval.sessions, session))
                self._write(msgspec.structs.replace(record, approval=begun))

    @contextlib.contextmanager
    def holding(self, digest: str, session: bytes) -> Iterator[StudyRecord]:
        """Yield the record of an approved study, which nobody can revoke meanwhile.

        Raises:
            RefusalError: The study is not approved.
        """
        with self._guarded(), self._locked():
            record = self._known(digest)
            if record is None or not _covers(record, session, self.now()):
                raise not_approved(digest)
            yield record

    def approve(self, digits: str, *, by: str, until: dt.date, runs: int = 1) -> StudyRecord:
        """Approve a study, from now on, and return its record.

        Runs that have begun count again from their next request on.

        Raises:
            RequestError: There is no such study, or the arguments cannot be.
            RunError: The decision could not be stored. Nothing is approved.
        """
        _require_name(by)
        today = self.now().date()
        if not today <= until <= today + dt.timedelta(days=MAX_DAYS):
            raise RequestError(
                f"an approval ends between today, {today}, and {MAX_DAYS} days from now, not on "
                f"{until}."
            )
        if not 1 <= runs <= MAX_RUNS:
            raise RequestError(f"an approval covers 1 to {MAX_RUNS} runs, not {runs}.")
        digest = self.find(digits).digest
        with self._locked():
            record = self._must_know(digest)
            made = Approval(by=by, made=self.now(), until=until, runs=runs)
            try:
                self.trail.write(
                    entries.StudyApproved(at=made.made, study=digest, by=by, until=until, runs=runs)
                )
            except RefusalError as error:
                raise RunError(f"{error} Nothing is approved.") from error
            record = msgspec.structs.replace(record, state="approved", approval=made)
            self._write(record)
        return record

    def revoke(self, digits: str, *, by: str) -> StudyRecord:
        """Revoke the approval of a study, or decline it, and return its record.

        The decision holds even if the trail cannot be written.

        Raises:
            RequestError: There is no such study, or the name cannot be.
            RunError: The decision could not be stored, or only the trail could not be written.
        """
        _require_name(by)
        digest = self.find(digits).digest
        with self._locked():
            record = msgspec.structs.replace(self._must_know(digest), state="revoked")
            self._write(record)
            try:
                self.trail.write(entries.StudyRevoked(at=self.now(), study=digest, by=by))
            except RefusalError as error:
                raise RunError(f"the study is revoked, but {error}") from error
        return record

    def _make_room(self, digest: str) -> None:
        """Refuse another waiting study if as many wait as may, and remove old files."""
        known = {record.digest: record for record in _all(self.folder) if record.digest != digest}
        waiting = [record for record in known.values() if record.state == "waiting"]
        for record in waiting:
            if self.now() - record.last_asked > dt.timedelta(days=WAITING_DAYS):
                self._remove(record.digest)
                del known[record.digest]
        if sum(record.state == "waiting" for record in known.values()) >= MAX_WAITING:
            raise RefusalError(
                RefusalCode.BUSY, f"{MAX_WAITING} other studies wait for approval at the site."
            )
        over = [record for record in known.values() if record.state in ("revoked", "ended")]
        over.sort(key=lambda record: record.last_asked)
        for record in over[: max(0, len(known) + 1 - MAX_STORED)]:
            self._remove(record.digest)
            del known[record.digest]
        if len(known) >= MAX_STORED:
            raise RefusalError(
                RefusalCode.BUSY, f"{MAX_STORED} other studies are approved at the site."
            )

    def _known(self, digest: str) -> StudyRecord | None:
        record = _read(self._path(digest))
        return None if record is None else self._refreshed(record)

    def _must_know(self, digest: str) -> StudyRecord:
        record = self._known(digest)
        if record is None:
            raise RunError("the study's file is gone.")
        return record

    def _refreshed(self, record: StudyRecord) -> StudyRecord:
        """Return a record whose approval has ended if its last day is over."""
        approval = record.approval
        if record.state != "approved" or approval is None or self.now() < approval.end:
            return record
        record = msgspec.structs.replace(record, state="ended")
        self._write(record)
        self.trail.write(entries.ApprovalEnded(at=self.now(), study=record.digest))
        return record

    def _path(self, digest: str) -> Path:
        return self.folder / digest

    def _write(self, record: StudyRecord) -> None:
        path, data = self._path(record.digest), msgspec.msgpack.encode(record)
        if len(data) > MAX_FILE_BYTES:
            raise RunError(f"the study of {path} is too large to wait for approval.")
        try:
            atomic_write(path, data)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}.") from error

    def _remove(self, digest: str) -> None:
        path = self._path(digest)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"cannot remove {path}: {error.strerror}.") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the folder."""
        with contextlib.ExitStack() as stack:
            try:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                stack.enter_context(locked(self.folder / "lock"))
            except OSError as error:
                raise RunError(f"cannot use {self.folder}: {error.strerror}.") from error
            yield

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn a fault of the files into a refusal, which does not tell it."""
        try:
            yield
        except RunError as error:
            _LOG.warning("%s", error)
            raise RefusalError(
                RefusalCode.DISK, "the site's folder of approvals cannot be used."
            ) from error


def _all(folder: Path) -> Iterator[StudyRecord]:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(f"cannot read {folder}: {error.strerror}.") from error
    for name in names:
        if _NAME.fullmatch(name) and (record := _read(folder / name)) is not None:
            yield record


def _read(path: Path) -> StudyRecord | None:
    data = read_if_present(path, MAX_FILE_BYTES, RunError)
    if data is None:
        return None
    try:
        record = msgspec.msgpack.decode(data, type=StudyRecord)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise RunError(f"{path} is damaged, so the study is not approved.") from error
    if record.digest != path.name:
        raise RunError(f"{path} is the file of another study.")
    return record


def not_approved(digest: str) -> RefusalError:
    """Return the refusal of a study without approval, regardless of the cause."""
    return RefusalError(
        RefusalCode.APPROVAL,
        f"the study {digest[:16]} has no approval by a person at this site; ask the hospital, and "
        "start it again once it is approved.",
    )


def _covers(record: StudyRecord, session: bytes, now: dt.datetime) -> bool:
    """Return whether the approval of a record covers a run at this time."""
    approval = record.approval
    if record.state != "approved" or approval is None or now >= approval.end:
        return False
    if now < approval.made - CLOCK_TOLERANCE:
        _LOG.warning(
            "the clock of this machine is before %s, when the study %s was approved; set it right.",
            approval.made,
            record.digest[:16],
        )
        return False
    return session in approval.sessions or len(approval.sessions) < approval.runs


def _require_name(by: str) -> None:
    if not by.strip() or len(by) > 100 or not is_printable(by):  # noqa: PLR2004 - as in the trail
        raise RequestError("--by is the name of a person, of 1 to 100 letters.")
