"""A site's trail: every decision and every answer, in a file that shows alterations.

The module `trail_check` reads and checks it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec
from attrs import define, field

from cohortium.deployment import trail_entries as entries
from cohortium.deployment.log_throttle import MAX_SENTENCES, SPAN_SECONDS
from cohortium.deployment.trail_check import is_signed
from cohortium.errors import RunError
from cohortium.storage.hash_chain import HashChain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cohortium.crypto.signing import SigningKey
    from cohortium.deployment.trail_entries import AnyEntry, SignedHead
    from cohortium.messages.run import Request
    from cohortium.storage.hash_chain import Head, Link

TRAIL_BYTES = 16


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

        Nothing is added to a trail whose last line the key in force has not signed. No key signs
        lines that follow unsigned ones, because its signature would vouch for them.
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
        if last is not None and not is_signed(last.head, last.signature, self._in_force or ""):
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
        elif public and not self._in_force:
            raise RunError(
                f"the trail {path} is unsigned, so anybody who could write the file may have "
                "written its lines; keep it, and name another file for a trail that the site signs."
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

    def accepted(self, session: bytes, study: str, use: str, tables: str) -> None:
        """Record that the site takes part in a run."""
        self.write(
            entries.RunAccepted(
                at=self._now(), session=session.hex(), study=study, use=use, tables=tables
            )
        )

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
        # A trail may be long, so only the few lines that can name a key are decoded.
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
