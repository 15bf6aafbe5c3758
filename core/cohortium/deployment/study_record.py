"""A study that a site was asked for, with a person's decision about it."""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from attrs import frozen

from cohortium.deployment.study_facts import StudyFacts  # noqa: TC001 - msgspec reads it
from cohortium.deployment.trail_entries import Person  # noqa: TC001 - msgspec reads it

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.messages.deployment import Invitation

MAX_RUNS: Final = 1000
"""Most runs of an approval."""

FORMAT: Final = 1

State = Literal["waiting", "approved", "revoked", "ended"]


def study_digest(invitation: Invitation, versions: Mapping[str, str]) -> str:
    """Return the digest of all that decides what a study would let leave this site.

    It covers the study's TOML byte by byte as it was received, and the directory of keys. It also
    covers the site's own versions of Cohortium and of the study's plugins, because their code
    decides what leaves. So a new version waits anew.

    It does not cover the session: a repetition of the same study is the same study, and the
    approval's number of runs limits that. Nor does it cover other packages, the site's images, or
    code that the policy allows by name: the hospital itself installs that.

    Args:
        invitation: The invitation.
        versions: The site's own versions, of `runs.invite.collect_versions`.
    """
    code = [f"{name} {version}" for name, version in sorted(versions.items()) if _is_code(name)]
    digest = hashlib.sha256(b"cohortium study 1\x1f")
    for part in (invitation.study, invitation.directory, *code):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


@frozen
class InvitedStudy:
    """The study of an invitation.

    Attributes:
        session: Session of the run.
        digest: Digest of the study.
        study: Its TOML.
        versions: The site's versions.
    """

    session: bytes
    digest: str
    study: str
    versions: Mapping[str, str]

    @classmethod
    def of(cls, invitation: Invitation, versions: Mapping[str, str]) -> InvitedStudy:
        """Return the study of an invitation at a site with these versions."""
        digest = study_digest(invitation, versions)
        return cls(invitation.session, digest, invitation.study, versions)


def _is_code(name: str) -> bool:
    return name == "cohortium" or name.startswith("plugin ")


Moment = Annotated[dt.datetime, msgspec.Meta(tz=True)]


class Approval(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A person's yes.

    Attributes:
        by: The person.
        made: The time of the decision.
        until: Last day of the approval, UTC.
        runs: Number of runs that it covers.
        sessions: The runs that have begun.
    """

    by: Person
    made: Moment
    until: dt.date
    runs: Annotated[int, msgspec.Meta(ge=1, le=MAX_RUNS)]
    sessions: tuple[bytes, ...] = ()

    @property
    def end(self) -> dt.datetime:
        """The first moment after the last day."""
        return dt.datetime.combine(self.until, dt.time.min, dt.UTC) + dt.timedelta(days=1)


class StudyRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A study that the site was asked for, with the decision about it.

    Attributes:
        format: `FORMAT`.
        digest: Digest of the study.
        study: Its TOML, as it was received.
        versions: The site's versions when it was asked first.
        facts: What it would let leave, at which cost.
        first_asked: Time of the first invitation.
        last_asked: Time of the last invitation without approval.
        state: The decision.
        approval: The last approval, or None.
    """

    format: Literal[1]
    digest: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    study: Annotated[str, msgspec.Meta(max_length=1 << 16)]
    versions: Annotated[dict[str, str], msgspec.Meta(max_length=100)]
    facts: StudyFacts
    first_asked: Moment
    last_asked: Moment
    state: State = "waiting"
    approval: Approval | None = None

    @property
    def status(self) -> str:
        """The decision in a few words."""
        approval = self.approval
        if self.state != "approved" or approval is None:
            return self.state
        if len(approval.sessions) >= approval.runs:
            return "approved, all runs begun"
        return "approved"
