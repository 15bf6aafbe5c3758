"""Entries of a site's trail, and the text of its head.

An entry states a fact that the coordinator or the site's own staff know. It has no patient data and
no value that was computed from images, except the hash of bytes that left. It has no reason of a
refusal, because a reason may tell something about an update.

A class's tag and field names are the format.
"""

from __future__ import annotations

import datetime as dt  # noqa: TC003 - msgspec reads it
import re
from typing import Annotated, TypeAlias

import msgspec
from attrs import frozen

from cohortium.crypto.signing import SIGNATURE_BYTES
from cohortium.errors import RecordError, RequestError
from cohortium.storage.hash_chain import Head, Link
from cohortium.text import truncate

FORMAT = 1
"""Version of the entries, in the first one."""

Hex = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2})*\Z", max_length=64)]
"""Bytes as hexadecimal digits: a hash, a key or a session."""

Person = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
"""Name of a member of the site's staff."""

Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class Entry(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="event"
):
    """An entry.

    Attributes:
        at: The time by the machine's clock.
    """

    at: Annotated[dt.datetime, msgspec.Meta(tz=True)]


class Opened(Entry, frozen=True, kw_only=True, tag="opened"):
    """First entry: the trail was created.

    Attributes:
        format: `FORMAT`.
        trail: Random name of the trail, so no two have a line in common.
        site: Number of the site.
        key: Public key that verifies the lines from this one on, or "" if they are unsigned.
    """

    format: Number
    trail: Hex
    site: Number
    key: Hex


class KeyChanged(Entry, frozen=True, kw_only=True, tag="key-changed"):
    """The site has another key, which signs from this line on."""

    key: Hex


class Started(Entry, frozen=True, kw_only=True, tag="started"):
    """The site's process was started, with this version of Cohortium."""

    version: Annotated[str, msgspec.Meta(max_length=100)]


class StudyWaits(Entry, frozen=True, kw_only=True, tag="study-waits"):
    """A study was asked for that a person has to approve."""

    study: Hex


class StudyApproved(Entry, frozen=True, kw_only=True, tag="study-approved"):
    """A person has approved a study.

    Attributes:
        study: Digest of the study.
        by: The person.
        until: Last day of the approval, UTC.
        runs: Number of runs that it covers.
    """

    study: Hex
    by: Person
    until: dt.date
    runs: Number


class StudyRevoked(Entry, frozen=True, kw_only=True, tag="study-revoked"):
    """A person has declined a study, or revoked its approval."""

    study: Hex
    by: Person


class ApprovalEnded(Entry, frozen=True, kw_only=True, tag="approval-ended"):
    """An approval has passed its last day."""

    study: Hex


class RunAccepted(Entry, frozen=True, kw_only=True, tag="run-accepted"):
    """The site takes part in a run.

    Attributes:
        session: Session of the run.
        study: Digest of its study.
        use: Images of the run: "train" or "test".
        tables: Digest of the study's tables alone (see `shared_digest`). It is "" in the entries
            of an older version.
    """

    session: Hex
    study: Hex
    use: Annotated[str, msgspec.Meta(max_length=20)]
    tables: Hex = ""


class Answered(Entry, frozen=True, kw_only=True, tag="answered"):
    """The site has answered a request of a run.

    The same answer to the same request again is no other entry.

    Attributes:
        session: Session of the run.
        round: Number of the round, from 0.
        attempt: Number of the attempt, from 0.
        stage: Number of the exchange in the attempt, from 0.
        has_release: Whether the answer has the attempt's release.
        size: Bytes of the answer.
        sha256: Hash of the answer.
    """

    session: Hex
    round: Number
    attempt: Number
    stage: Number
    has_release: bool
    size: Number
    sha256: Hex


class Refused(Entry, frozen=True, kw_only=True, tag="refused"):
    """The site has refused a message.

    Attributes:
        session: Session that the message names, or "".
        omitted: Refusals before this one that have no entry.
    """

    session: Hex
    omitted: Number


class Identified(Entry, frozen=True, kw_only=True, tag="identified"):
    """The site has told its number to a caller, with a signature of the caller's challenge.

    Attributes:
        omitted: Such answers before this one that have no entry.
    """

    omitted: Number


class HeadNoted(Entry, frozen=True, kw_only=True, tag="head-noted"):
    """The head of another site's trail was noted here."""

    site: Number
    number: Number
    sha256: Hex


AnyEntry: TypeAlias = (
    Opened | KeyChanged | Started | StudyWaits | StudyApproved | StudyRevoked | ApprovalEnded
    | RunAccepted | Answered | Refused | Identified | HeadNoted
)  # fmt: skip


def decode_entry(link: Link) -> AnyEntry:
    """Return the entry of a line.

    Raises:
        RecordError: It is no entry of this format.
    """
    try:
        found: AnyEntry = msgspec.json.decode(link.entry, type=AnyEntry)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise RecordError(f"line {link.head.number} is no entry of a trail.") from error
    return found


_HEAD = re.compile(
    r"site (0|[1-9][0-9]{0,5}) line ([1-9][0-9]{0,17}) sha256 ([0-9a-f]{64})"
    rf"(?: ed25519 ([0-9a-f]{{{2 * SIGNATURE_BYTES}}}))?"
)


@frozen
class SignedHead:
    """Head of a site's trail, in the form in which hospitals exchange it.

    Attributes:
        site: Number of the site.
        head: Number and hash of the line.
        signature: The site's signature of the head, or empty.
    """

    site: int
    head: Head
    signature: bytes

    @classmethod
    def parse(cls, text: str) -> SignedHead:
        """Return the head that `str` wrote.

        Raises:
            RequestError: The text is none.
        """
        match = _HEAD.fullmatch(" ".join(text.split()))
        if match is None:
            raise RequestError(
                f"{truncate(text)} is no head of a trail; `cohortium trail --head` prints one."
            )
        site, number, digest, signature = match.groups()
        return cls(
            int(site), Head(int(number), bytes.fromhex(digest)), bytes.fromhex(signature or "")
        )

    def __str__(self) -> str:
        text = f"site {self.site} line {self.head.number} sha256 {self.head.sha256.hex()}"
        return f"{text} ed25519 {self.signature.hex()}" if self.signature else text
