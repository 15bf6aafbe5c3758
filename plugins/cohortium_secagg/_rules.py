"""What both sides agree on before a run: thresholds, floors, and the labels of derived keys."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

from attrs import frozen

from cohortium.plugin import StudyError

if TYPE_CHECKING:
    from cohortium.plugin import Directory, Member, SiteId, SumSetting

PROTOCOL = b"cohortium secagg 1\x00"
"""Begins every label: a key of another protocol, or another version of this one, is another key."""


THRESHOLD, SHARES = 4, 5
"""What is chosen against an honest-but-curious coordinator."""


@frozen
class Scope:
    """One attempt of one run.

    Guarantees:
        Two different (purpose, session, round, attempt, sites) have two different labels: every
        part has a fixed length or ends in a zero byte.
    """

    session: bytes
    round: int
    attempt: int

    def label(self, purpose: str, *sites: SiteId) -> bytes:
        """What a derived key or a ciphertext is bound to."""
        numbers = struct.pack(f">{2 + len(sites)}Q", self.round, self.attempt, *sites)
        return PROTOCOL + purpose.encode() + b"\x00" + self.session + numbers

    def digest(self, purpose: str, site: SiteId, data: bytes) -> bytes:
        """A hash that fixes `data` of `site` in this attempt, and hides it where it is random."""
        fingerprint = hashlib.sha256(self.label(purpose, site))
        fingerprint.update(data)
        return fingerprint.digest()


@frozen
class Rules:
    """The numbers of a run, checked.

    Attributes:
        threshold: Shareholders that recover a secret.
        shares: Shareholders of a secret, where the attempt has as many sites.
        setting: What is summed, and who takes part.
    """

    threshold: int
    shares: int
    setting: SumSetting

    @classmethod
    def agreed(cls, threshold: int, shares: int, setting: SumSetting) -> Rules:
        """The rules of a run; where `threshold` or `shares` is 0, it is chosen here.

        Raises:
            StudyError: They cannot protect what they should, or cannot be met by the cohort.
        """
        cohort = setting.cohort
        is_active = cohort.adversary == "active"
        majority = (cohort.size + cohort.colluding) // 2 + 1
        threshold = threshold or (majority if is_active else THRESHOLD)
        # Where all share with all, a cohort that is too small is to be told of its own size.
        everyone = max(cohort.size, threshold, cohort.colluding + 2)
        shares = shares or (everyone if is_active else SHARES)
        rules = cls(threshold, shares, setting)
        if is_active:
            why = f"the coordinator is active, {_against(cohort.colluding)}"
            _require("threshold", threshold, majority, f"{why} (0 chooses it)")
            _require("shares", shares, cohort.size, "every site is a shareholder (0 chooses it)")
        _require("threshold", threshold, 2, "one shareholder alone must not recover a secret")
        _require("threshold", threshold, cohort.colluding + 1, _against(cohort.colluding))
        _require("shares", shares, threshold, f"threshold is {threshold}")
        _require("shares", shares, cohort.colluding + 2, _against(cohort.colluding))
        _require("cohort", cohort.size, rules.floor, f"a sum is opened over {rules.floor} or more")
        return rules

    @property
    def is_active(self) -> bool:
        """Whether the coordinator may lie."""
        return self.setting.cohort.adversary == "active"

    @property
    def directory(self) -> Directory:
        """Whose signatures are believed, where sites sign."""
        assert self.setting.directory is not None
        return self.setting.directory

    @property
    def most_neighbours(self) -> int:
        """The most neighbours a site can have.

        A random graph may give each site one more than `shares` says, to come out even; the
        majority that an active coordinator is held to counts every shareholder.
        """
        return self.setting.cohort.size - 1 if self.is_active else self.shares

    @property
    def dropouts(self) -> int:
        """Sites that may be lost, whichever they are, with the sum still to be had."""
        size, colluding = self.setting.cohort.size, self.setting.cohort.colluding
        circle = min(self.shares, size)
        is_complete = circle == size
        uncut = size if is_complete else circle - 2 - colluding
        return max(0, min(circle - self.threshold, size - self.floor, uncut))

    def require_directory(self) -> None:
        """Raise if an active coordinator is feared, and not every site's key is known."""
        if self.is_active:
            _require_directory(self.setting)

    def require_identity(self, member: Member) -> None:
        """Raise if others would not believe what this site signs."""
        if not self.is_active:
            return
        if member.identity is None:
            raise StudyError(f"secagg: site {member.site} has no signing key; make one (keygen).")
        if member.identity.public != self.directory.keys[member.site]:
            raise StudyError(
                f"secagg: the directory lists another key for site {member.site} than its own."
            )

    @property
    def quorum(self) -> int:
        """The least number of contributors among a contributor and its neighbours.

        Fewer than `threshold` cannot recover its secrets.  Fewer than colluding + 2 might all be
        colluding but one, and know every mask of that one.
        """
        return max(self.threshold, self.setting.cohort.colluding + 2)

    @property
    def floor(self) -> int:
        """The least number of contributors to a sum."""
        return max(self.quorum, self.setting.cohort.min_sites)

    def scope(self, round_: int, attempt: int) -> Scope:
        """The attempt that keys are bound to."""
        return Scope(self.setting.session, round_, attempt)


def _require_directory(setting: SumSetting) -> None:
    listed = 0 if setting.directory is None else len(setting.directory.keys)
    if listed != setting.cohort.sites:
        raise StudyError(
            f"secagg: the directory lists {listed} sites, but the study has "
            f"{setting.cohort.sites}: against an active coordinator each must have a signing key."
        )


def _require(name: str, value: int, least: int, why: str) -> None:
    if value < least:
        raise StudyError(f"secagg: {name} is {value}, but must be at least {least}: {why}.")


def _against(colluding: int) -> str:
    return f"colluding is {colluding}"
