"""Parameters of a run that both sides agree on, and key labels."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

from attrs import frozen

from cohortium.plugin import StudyError
from cohortium_secagg._parameter_selection import choose_parameters

if TYPE_CHECKING:
    from cohortium.plugin import AggregationConfig, KeyDirectory, SiteContext, SiteId
    from cohortium_secagg import SecAgg
    from cohortium_secagg._parameter_selection import Sharing

PROTOCOL = b"cohortium secagg 3\x00"
"""Start of every label.  A key of another protocol, or of another version of this one, differs."""


@frozen
class AttemptLabel:
    """Label of one attempt of one run.

    Guarantees:
        Two different (purpose, session, round, attempt, sites) have two different labels: every
        part has a fixed length or ends in a zero byte.
    """

    session: bytes
    round: int
    attempt: int

    def label(self, purpose: str, *sites: SiteId) -> bytes:
        """Return the label that binds a derived key or a ciphertext."""
        numbers = struct.pack(f">{2 + len(sites)}Q", self.round, self.attempt, *sites)
        return PROTOCOL + purpose.encode() + b"\x00" + self.session + numbers

    @property
    def following(self) -> AttemptLabel:
        """The label of the attempt that follows a complete one."""
        return AttemptLabel(self.session, self.round + 1, self.attempt + 1)

    def digest(self, purpose: str, data: bytes, *sites: SiteId) -> bytes:
        """Return a hash that fixes `data` of `sites` in this attempt.

        It hides `data` where they are random.
        """
        fingerprint = hashlib.sha256(self.label(purpose, *sites))
        fingerprint.update(data)
        return fingerprint.digest()


@frozen
class ProtocolParameters:
    """The checked numbers of a run.

    Attributes:
        sharing: Thresholds and floors, and the adversary that they are to hold against.
        config: Public configuration of the sum, and of the sites that take part.
    """

    sharing: Sharing
    config: AggregationConfig

    @classmethod
    def agreed(cls, secagg: SecAgg, config: AggregationConfig) -> ProtocolParameters:
        """Return the parameters of a run.

        Raises:
            StudyError: They cannot protect as they should, or the cohort cannot meet them.
        """
        if config.federation_spec.adversary == "active":
            _require_directory(config)
        return cls(choose_parameters(secagg, config.federation_spec), config)

    @property
    def threshold(self) -> int:
        """Number of shareholders that recover a secret."""
        return self.sharing.reconstruction_threshold

    @property
    def shares(self) -> int:
        """Number of a secret's shareholders, if the attempt has as many sites."""
        return self.sharing.shares

    @property
    def is_active(self) -> bool:
        """Whether the coordinator may lie."""
        return self.config.federation_spec.adversary == "active"

    @property
    def directory(self) -> KeyDirectory:
        """Directory whose signatures are believed, where sites sign."""
        assert self.config.directory is not None
        return self.config.directory

    @property
    def most_neighbours(self) -> int:
        """The most neighbours that a site can have.

        A random graph may give each site one more than `shares` says, to come out even.  Against an
        active coordinator, the required majority counts every shareholder.
        """
        return self.config.federation_spec.cohort_size - 1 if self.is_active else self.shares

    def require_identity(self, site_context: SiteContext) -> None:
        """Raise if other sites would not believe this site's signatures."""
        if not self.is_active:
            return
        if site_context.identity is None:
            raise StudyError(
                f"secagg: site {site_context.site} has no signing key; make one (keygen)."
            )
        if site_context.identity.public != self.directory.keys[site_context.site]:
            raise StudyError(
                f"secagg: the directory lists another key for site {site_context.site} than its "
                "own."
            )

    @property
    def quorum(self) -> int:
        """The least number of contributors among a contributor and its neighbours.

        Fewer than `threshold` cannot recover its secrets.
        """
        return self.sharing.quorum

    @property
    def floor(self) -> int:
        """The least number of contributors to a sum."""
        return self.sharing.min_contributors

    @property
    def tolerated_colluders(self) -> int:
        """Number of any contributors whose removal must not cut the graph.

        A calculated graph already holds against sites that collude, in any places.  There, 0 is
        returned, and only the remaining graph is checked.
        """
        return 0 if self.sharing.statistical_security_bits is not None else self.sharing.colluding

    def scope(self, round_: int, attempt: int) -> AttemptLabel:
        """Return the label of the attempt, which keys are bound to."""
        return AttemptLabel(self.config.session, round_, attempt)


def _require_directory(config: AggregationConfig) -> None:
    listed = 0 if config.directory is None else len(config.directory.keys)
    if listed != config.federation_spec.sites:
        raise StudyError(
            f"secagg: the directory lists {listed} sites, but the study has "
            f"{config.federation_spec.sites}: against an active coordinator each must have a "
            "signing key."
        )
