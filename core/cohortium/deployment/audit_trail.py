"""A site's trail: every decision and every answer, in a file that shows alterations.

`Guarantees:` of the check are those of `storage.hash_chain`, with the site's signatures.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
import time
from collections import Counter, deque
from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec
from attrs import define, field, frozen
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cohortium.deployment import trail_entries as entries
from cohortium.deployment.log_throttle import MAX_SENTENCES, SPAN_SECONDS
from cohortium.errors import RecordError, RequestError, RunError
from cohortium.storage.hash_chain import HashChain, links

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path
    from typing import BinaryIO

    from cohortium.crypto.signing import SigningKey
    from cohortium.deployment.trail_entries import AnyEntry, SignedHead
    from cohortium.messages.run import Request
    from cohortium.storage.hash_chain import Head, Link

TRAIL_BYTES = 16

SHORT = 12
"""Digits of a hash that are shown to people."""


def utc_now() -> dt.datetime:
    """Return the time, UTC, in whole seconds."""
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


class AuditTrail:
    """The trail of one site, open for new entries.

    Guarantees:
        Each method returns after its entry is durable.

        An entry has no patient data, no reason of a refusal, and no part of an answer but its hash.

        However many refusals or identify replies a caller provokes, a bounded number of entries a
        minute tell of them. The next one has the number of the others.

        Nothing is added to a trail whose last line the key in force has not signed.
    """

    def __init__(
        self,
        path: Path,
        site: int,
        key: SigningKey | None,
        *,
        now: Callable[[], dt.datetime] = utc_now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the trail at `path`, new or old.

        Args:
            path: The file.
            site: Number of the site.
            key: Key that signs the lines, or None.
            now: Returns the time.
            clock: Returns seconds since any fixed moment.

        Raises:
            RunError: The file is no trail, was altered, or cannot be used.
            RefusalError: It cannot be written.
        """
        self._now = now
        self._in_force: str | None = None
        self._last: Link | None = None
        self._refusals, self._identities = _Bounded(clock), _Bounded(clock)
        self._chain = HashChain(path, None if key is None else key.sign, self._see)
        try:
            self._open(path, site, "" if key is None else key.public.hex())
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path, site: int, public: str) -> None:
        """Begin the trail, or record another key."""
        last = self._last
        if last is not None and not _is_signed(last.head, last.signature, self._in_force or ""):
            # A signature of the next line would vouch for this one.
            raise RunError(
                f"the trail {path}: the signature of its last line, {last.head.number}, is not "
                "the site's; keep the file, and name another one for a new trail."
            )
        if self._in_force is None:
            self.write(
                entries.Opened(
                    at=self._now(),
                    format=entries.FORMAT,
                    trail=secrets.token_hex(TRAIL_BYTES),
                    site=site,
                    key=public,
                )
            )
        elif self._in_force and not public:
            raise RunError(
                f"the trail {path} is signed, and the site file names no signing_key; name the "
                "key, or another file for a new trail."
            )
        elif self._in_force != public:
            self.write(entries.KeyChanged(at=self._now(), key=public))

    def write(self, entry: AnyEntry) -> Head:
        """Store an entry.

        Raises:
            RefusalError: It could not be stored. The action that it records must not happen.
        """
        return self._chain.append(msgspec.json.encode(entry))

    def try_out(self) -> None:
        """Check that an entry can be stored now.

        Raises:
            RefusalError: It cannot.
        """
        self._chain.try_out()

    def started(self) -> None:
        """Record that the site's process has started."""
        self.write(entries.Started(at=self._now(), version=version("cohortium")))

    def accepted(self, session: bytes, study: str, use: str) -> None:
        """Record that the site takes part in a run."""
        self.write(entries.RunAccepted(at=self._now(), session=session.hex(), study=study, use=use))

    def answered(self, request: Request, answer: bytes, *, has_release: bool) -> None:
        """Record an answer, before it leaves."""
        self.write(
            entries.Answered(
                at=self._now(),
                session=request.session.hex(),
                round=request.round,
                attempt=request.attempt,
                stage=request.stage,
                has_release=has_release,
                size=len(answer),
                sha256=hashlib.sha256(answer).hexdigest(),
            )
        )

    def refused(self, session: bytes) -> None:
        """Record a refusal, or count it."""
        if self._refusals.has_room():
            omitted = self._refusals.omitted
            self.write(entries.Refused(at=self._now(), session=session.hex(), omitted=omitted))
            self._refusals.omitted = 0

    def identified(self) -> None:
        """Record an identify reply before it leaves, or count it."""
        if self._identities.has_room():
            self.write(entries.Identified(at=self._now(), omitted=self._identities.omitted))
            self._identities.omitted = 0

    def noted(self, other: SignedHead) -> None:
        """Record the head of another site's trail."""
        self.write(
            entries.HeadNoted(
                at=self._now(),
                site=other.site,
                number=other.head.number,
                sha256=other.head.sha256.hex(),
            )
        )

    def close(self) -> None:
        """Close the file."""
        self._chain.close()

    def _see(self, link: Link) -> None:
        """Note the last line, and the key in force."""
        self._last = link
        if b'"key":' in link.entry:
            entry = entries.decode_entry(link)
            if isinstance(entry, entries.Opened | entries.KeyChanged):
                self._in_force = entry.key


@define(eq=False)
class _Bounded:
    """Entries of one kind, of which there are at most so many a minute.

    Attributes:
        clock: Returns seconds since any fixed moment.
        omitted: Number of those without an entry since the last one.
    """

    clock: Callable[[], float]
    omitted: int = 0
    _begun: float = field(default=-SPAN_SECONDS, init=False)
    _written: int = field(default=0, init=False)

    def has_room(self) -> bool:
        """Return whether another entry may be written, or count one more without."""
        moment = self.clock()
        if moment - self._begun >= SPAN_SECONDS:
            self._begun, self._written = moment, 0
        if self._written >= MAX_SENTENCES:
            self.omitted += 1
            return False
        self._written += 1
        return True


@frozen(kw_only=True)
class CheckedTrail:
    """A trail without alteration.

    Attributes:
        head: Its head.
        keys: Keys that have signed it, in order. "" if lines were unsigned.
        changes: Lines from which each of `keys` but the first signs.
        counts: Number of entries of each kind.
        is_torn: Whether a crash has interrupted the writing of another line.
        set_back: Lines before whose time the clock was set back.
        heads: Heads of other sites' trails that were noted in it.
    """

    head: SignedHead
    keys: tuple[str, ...]
    changes: tuple[int, ...]
    counts: dict[str, int]
    is_torn: bool
    set_back: tuple[int, ...]
    heads: tuple[entries.HeadNoted, ...]


def check_trail(
    path: Path,
    trusted: Collection[bytes] | None = None,
    *,
    contains: SignedHead | None = None,
    replaced: Collection[bytes] | None = None,
) -> CheckedTrail:
    """Check every line of a trail: its form, its hash and its signature.

    Args:
        path: The file. It may be in use.
        trusted: Present public keys of its site, one of which must have signed the last line. None
            takes the key that the trail names, for which nobody vouches.
        contains: A head that was noted before, which the trail must contain.
        replaced: Earlier public keys of its site. If another key than these and the present ones
            has signed lines, the trail is refused. None takes any key, for which nobody vouches.

    Raises:
        RecordError: A line was altered, removed, repeated or moved. Or the trail is of another site
            or another key, or does not contain the head.
    """
    try:
        with path.open("rb") as file:
            return check_lines(file, trusted, contains=contains, replaced=replaced)
    except OSError as error:
        raise RecordError(f"cannot read the trail {path}: {error.strerror}.") from error
    except RecordError as error:
        raise RecordError(f"the trail {path}: {error}") from error


def check_lines(
    file: BinaryIO,
    trusted: Collection[bytes] | None = None,
    *,
    contains: SignedHead | None = None,
    replaced: Collection[bytes] | None = None,
) -> CheckedTrail:
    """Check every line of an open trail, as `check_trail` does.

    Raises:
        RecordError: As for `check_trail`, without the file's name.
    """
    return _Check(trusted, contains, replaced).run(file)


@define(eq=False)
class _Check:
    """One check of a trail. Hashes first, because signatures take longer."""

    trusted: Collection[bytes] | None
    contains: SignedHead | None
    replaced: Collection[bytes] | None
    site: int = -1
    changes: list[int] = field(factory=list)
    keys: list[str] = field(factory=list)
    counts: dict[str, int] = field(factory=dict)
    set_back: list[int] = field(factory=list)
    heads: list[entries.HeadNoted] = field(factory=list)
    _signed: list[tuple[Head, bytes, str]] = field(factory=list)
    _is_contained: bool = False

    def run(self, file: BinaryIO) -> CheckedTrail:
        """Check all lines."""
        latest: dt.datetime | None = None
        last: Link | None = None
        end = 0
        for link in links(file):
            end = file.tell()
            last, entry, number = link, entries.decode_entry(link), link.head.number
            if (number == 1) != isinstance(entry, entries.Opened):
                raise RecordError(f"line {number} is not where a trail begins.")
            if isinstance(entry, entries.Opened):
                self.site = entry.site
            if isinstance(entry, entries.Opened | entries.KeyChanged):
                self._take_key(entry.key, number)
            elif isinstance(entry, entries.HeadNoted):
                self.heads.append(entry)
            if latest is not None and entry.at < latest:
                self.set_back.append(number)
            latest = entry.at
            kind = str(entry.__struct_config__.tag)
            self.counts[kind] = self.counts.get(kind, 0) + 1
            self._signed.append((link.head, link.signature, self.keys[-1]))
            if self.contains is not None and self.contains.head == link.head:
                self._is_contained = True
        if last is None:
            raise RecordError("it has no line.")
        self._verify()
        self._require_contained(last.head)
        return CheckedTrail(
            head=entries.SignedHead(self.site, last.head, last.signature),
            keys=tuple(self.keys),
            changes=tuple(self.changes),
            counts=self.counts,
            is_torn=file.seek(0, 2) > end,
            set_back=tuple(self.set_back),
            heads=tuple(self.heads),
        )

    def _take_key(self, key: str, number: int) -> None:
        if self.keys and not key:
            raise RecordError(f"line {number} ends the signatures, which no site does.")
        if self.keys:
            self.changes.append(number)
        self.keys.append(key)

    def _verify(self) -> None:
        """Verify the signatures of all lines, the last of which covers all lines before it."""
        known = None if self.trusted is None else {key.hex() for key in self.trusted} or {""}
        if known is not None and self.keys[-1] not in known:
            by = f"signed by the key {self.keys[-1][:16]}…" if self.keys[-1] else "unsigned"
            raise RecordError(f"its last line is {by}, which is not the site's present key.")
        if self.replaced is not None and self.trusted is not None:
            allowed = {key.hex() for key in (*self.trusted, *self.replaced)} | {""}
            for start, key in zip((1, *self.changes), self.keys, strict=True):
                if key not in allowed:
                    raise RecordError(
                        f"lines from {start} on are signed by the key {key[:16]}…, which the "
                        "directory has neither as the site's key nor as a revoked one of it."
                    )
        for head, signature, key in self._signed:
            if not _is_signed(head, signature, key):
                raise RecordError(f"the signature of line {head.number} is not the site's.")

    def _require_contained(self, last: Head) -> None:
        wanted = self.contains
        if wanted is None:
            return
        if wanted.site != self.site:
            raise RecordError(f"it is the trail of site {self.site}, not {wanted.site}.")
        if wanted.head.number > last.number:
            raise RecordError(
                f"its last line is {last.number}, and line {wanted.head.number} was noted: lines "
                "at its end were removed."
            )
        if not self._is_contained:
            raise RecordError(
                f"line {wanted.head.number} is another than the one that was noted: the trail was "
                "rewritten."
            )


def _is_signed(head: Head, signature: bytes, key: str) -> bool:
    if not key:
        return not signature
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, head.signed_text)
    except (InvalidSignature, ValueError):
        return False
    return True


def is_signed_by(noted: SignedHead, keys: Collection[bytes]) -> bool:
    """Return whether one of `keys` has signed a head."""
    return any(_is_signed(noted.head, noted.signature, key.hex()) for key in keys)


def last_entries(path: Path, number: int) -> list[tuple[int, str]]:
    """Return the numbers and sentences of the last lines of a trail.

    Raises:
        RecordError: A line was altered, or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            kept = deque(links(file), maxlen=number)
    except OSError as error:
        raise RecordError(f"cannot read the trail {path}: {error.strerror}.") from error
    return [(link.head.number, _sentence(entries.decode_entry(link))) for link in kept]


def released_in(path: Path, key: bytes, digits: str) -> tuple[bytes, int]:
    """Return a run's session and the number of releases in it, as a site's trail has them.

    Args:
        path: The trail, which is checked first.
        key: Present public key of the site.
        digits: First digits of the session.

    Raises:
        RecordError: A line was altered, or the file cannot be read.
        RequestError: The site has made no release in such a run, or in several.
    """
    check_trail(path, (key,))
    found: Counter[str] = Counter()
    with path.open("rb") as file:
        for link in links(file):
            entry = entries.decode_entry(link)
            if isinstance(entry, entries.Answered) and entry.session.startswith(digits):
                found[entry.session] += entry.has_release
    runs = [session for session, releases in found.items() if releases]
    if len(runs) != 1:
        raise RequestError(
            f"the trail has releases in {len(runs)} runs whose session begins with those digits; "
            "`cohortium trail` shows the sessions."
        )
    return bytes.fromhex(runs[0]), found[runs[0]]


def _sentence(entry: AnyEntry) -> str:
    """Return an entry for people: its time, its kind and its facts."""
    facts = msgspec.to_builtins(entry)
    del facts["at"], facts["event"]
    told = ", ".join(f"{name} {_short(value)}" for name, value in facts.items() if value != "")
    kind = str(entry.__struct_config__.tag).replace("-", " ")
    return f"{entry.at:%Y-%m-%d %H:%M:%S}  {kind}" + (f": {told}" if told else "")


def _short(value: object) -> str:
    text = str(value)
    is_hash = len(text) > SHORT and all(c in "0123456789abcdef" for c in text)
    return f"{text[:SHORT]}…" if is_hash else text
