"""Check of a site's trail, and its entries for people.

`Guarantees:` of the check are those of `storage.hash_chain`, with the site's signatures.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import msgspec
from attrs import define, field, frozen
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cohortium.deployment import trail_entries as entries
from cohortium.errors import RecordError, RefutedError, RequestError
from cohortium.runs.stated_result import SiteReleases
from cohortium.storage.bounded_read import why_unreadable
from cohortium.storage.hash_chain import links
from cohortium.text import escape_control_characters

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Collection
    from pathlib import Path
    from typing import BinaryIO

    from cohortium.deployment.trail_entries import AnyEntry, SignedHead
    from cohortium.storage.hash_chain import Head, Link

SHORT = 12
"""Digits of a hash that are shown to people."""


@frozen(kw_only=True)
class CheckedTrail:
    """A trail without alteration.

    Attributes:
        head: Its head.
        keys: Keys that have signed it, in order. One "" if it is unsigned.
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
        reason = why_unreadable(path, error, suffix=".jsonl")
        raise RecordError(f"cannot read the trail {path}: {reason}.") from error
    except RecordError as error:
        raise type(error)(f"the trail {path}: {error}") from error


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
                raise RefutedError(f"line {number} is not where a trail begins.")
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
            raise RefutedError(f"line {number} ends the signatures, which no site does.")
        if self.keys and not self.keys[-1]:
            # No site signs on: somebody without its key may have written the lines before.
            raise RefutedError(
                f"lines before {number} are unsigned, so a later signature vouches for none of "
                "them; have the site begin another trail."
            )
        if self.keys:
            self.changes.append(number)
        self.keys.append(key)

    def _verify(self) -> None:
        """Verify the signatures of all lines, the last of which covers all lines before it."""
        known = None if self.trusted is None else {key.hex() for key in self.trusted} or {""}
        if known is not None and self.keys[-1] not in known:
            by = f"signed by the key {self.keys[-1][:16]}…" if self.keys[-1] else "unsigned"
            raise RefutedError(f"its last line is {by}, which is not the site's present key.")
        if self.replaced is not None and self.trusted is not None:
            allowed = {key.hex() for key in (*self.trusted, *self.replaced)} or {""}
            for start, key in zip((1, *self.changes), self.keys, strict=True):
                if key not in allowed:
                    raise RefutedError(
                        f"lines from {start} on are signed by the key {key[:16]}…, which the "
                        "directory has neither as the site's key nor as a revoked one of it."
                    )
        for head, signature, key in self._signed:
            if not is_signed(head, signature, key):
                raise RefutedError(f"the signature of line {head.number} is not the site's.")

    def _require_contained(self, last: Head) -> None:
        wanted = self.contains
        if wanted is None:
            return
        if wanted.site != self.site:
            raise RecordError(f"it is the trail of site {self.site}, not {wanted.site}.")
        if wanted.head.number > last.number:
            raise RefutedError(
                f"its last line is {last.number}, and line {wanted.head.number} was noted: lines "
                "at its end were removed."
            )
        if not self._is_contained:
            raise RefutedError(
                f"line {wanted.head.number} is another than the one that was noted: the trail was "
                "rewritten."
            )


def is_signed(head: Head, signature: bytes, key: str) -> bool:
    """Return whether a key in hexadecimal has signed a head, or "" and no signature."""
    if not key:
        return not signature
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, head.signed_text)
    except (InvalidSignature, ValueError):
        return False
    return True


def is_signed_by(noted: SignedHead, keys: Collection[bytes]) -> bool:
    """Return whether one of `keys` has signed a head."""
    return any(is_signed(noted.head, noted.signature, key.hex()) for key in keys)


def last_entries(path: Path, number: int) -> list[tuple[int, str]]:
    """Return the numbers and sentences of the last lines of a trail.

    Raises:
        RecordError: A line was altered, or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            kept = deque(links(file), maxlen=number)
    except OSError as error:
        reason = why_unreadable(path, error, suffix=".jsonl")
        raise RecordError(f"cannot read the trail {path}: {reason}.") from error
    return [(link.head.number, _sentence(entries.decode_entry(link))) for link in kept]


def released_in(path: Path, key: bytes, session: str) -> SiteReleases:
    """Return the site's releases in a run, as its trail has them.

    Args:
        path: The trail, which is checked first.
        key: Present public key of the site.
        session: Session of the run, as hexadecimal digits.

    Raises:
        RecordError: A line was altered, or the file cannot be read.
        RequestError: The site has made no release in that run, or has accepted several studies
            under its session.
    """
    check_trail(path, (key,))
    made: list[tuple[int, int]] = []
    study, tables = "", set[str]()
    with path.open("rb") as file:
        for link in links(file):
            entry = entries.decode_entry(link)
            if isinstance(entry, entries.RunAccepted) and entry.session == session:
                study = entry.study
                tables.add(entry.tables)
            elif isinstance(entry, entries.Answered) and entry.session == session:
                made += [(entry.round, entry.attempt)] * entry.has_release
    if not made:
        raise RequestError(
            f"the trail has no release in the run {session[:8]} of this result; `cohortium trail` "
            "shows the runs that it has."
        )
    if len(tables) > 1:
        # The site forgets the invitation of an old run, and a coordinator draws the sessions.
        raise RequestError(
            f"the trail has several studies of the run {session[:8]}, so the site cannot tell for "
            "which of them it would sign; ask the coordinator to sign with --key."
        )
    return SiteReleases(
        session=bytes.fromhex(session),
        study=study,
        tables="".join(tables),
        attempts=tuple(made),
    )


def _sentence(entry: AnyEntry) -> str:
    """Return an entry for people on one line: its time, its kind and its facts.

    The trail may be another hospital's, and a name in it must not look like a further entry.
    """
    facts = msgspec.to_builtins(entry)
    del facts["at"], facts["event"]
    told = ", ".join(
        f"{name.replace('_', ' ')} {_short(value)}" for name, value in facts.items() if value != ""
    )
    kind = str(entry.__struct_config__.tag).replace("-", " ")
    return f"{entry.at:%Y-%m-%d %H:%M:%S}  {kind}" + (f": {told}" if told else "")


def _short(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = escape_control_characters(str(value))
    is_hash = len(text) > SHORT and all(c in "0123456789abcdef" for c in text)
    return f"{text[:SHORT]}…" if is_hash else text
