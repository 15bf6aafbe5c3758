"""What both sides agree on before a run: thresholds, floors, and the labels of derived keys."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

from attrs import frozen

from cohortium.plugin import StudyError

if TYPE_CHECKING:
    from cohortium.plugin import SiteId, SumSetting

PROTOCOL = b"cohortium secagg 1\x00"
"""Begins every label: a key of another protocol, or another version of this one, is another key."""


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
        """The rules of a run.

        Raises:
            StudyError: They cannot protect what they should, or cannot be met by the cohort.
        """
        cohort, rules = setting.cohort, cls(threshold, shares, setting)
        if cohort.adversary == "active":
            raise StudyError(
                "secagg does not hold against an active coordinator yet; "
                'set adversary = "honest-but-curious".'
            )
        _require("threshold", threshold, 2, "one shareholder alone must not recover a secret")
        _require("threshold", threshold, cohort.colluding + 1, _against(cohort.colluding))
        _require("shares", shares, threshold, f"threshold is {threshold}")
        _require("shares", shares, cohort.colluding + 2, _against(cohort.colluding))
        _require("cohort", cohort.size, rules.floor, f"a sum is opened over {rules.floor} or more")
        return rules

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


def _require(name: str, value: int, least: int, why: str) -> None:
    if value < least:
        raise StudyError(f"secagg: {name} is {value}, but must be at least {least}: {why}.")


def _against(colluding: int) -> str:
    return f"colluding is {colluding}"
