"""Base of the coordinator's stages, and the data that they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from cohortium.plugin import MessageError, RingSum, StageRequests, TooFewSitesError
from cohortium_secagg._keys import KEY_BYTES, KeyPair
from cohortium_secagg._statements import Statements

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from cohortium.plugin import KeyStream, Randomness, SiteId
    from cohortium_secagg._graph import Graph
    from cohortium_secagg._protocol_parameters import AttemptLabel, ProtocolParameters
    from cohortium_secagg._stages import ShareKeys


@frozen(eq=False)
class Attempt:
    """One attempt at the coordinator.

    Attributes:
        protocol: Parameters of the run.
        scope: Label that this attempt's keys are bound to.
        sites: Sites that are asked.
        shuffle: Key stream from which the graph is drawn.
        mac_agreement_key: Key pair that agrees with each site on the key of its vector's tag.
        threads: Number of threads that sum vectors and take masks off.
    """

    protocol: ProtocolParameters
    scope: AttemptLabel
    sites: frozenset[SiteId]
    shuffle: KeyStream
    mac_agreement_key: KeyPair
    threads: int
    _secret: Randomness = field(repr=False)

    @classmethod
    def fresh(
        cls,
        protocol: ProtocolParameters,
        scope: AttemptLabel,
        sites: frozenset[SiteId],
        secret: Randomness,
        *,
        threads: int,
        use: str = "set-up",
    ) -> Attempt:
        """Draw the coordinator's secrets of an attempt, for one `use` of one source `secret`."""
        own = secret.derive(use, scope.round, scope.attempt)
        key = KeyPair(own.secret_bytes(KEY_BYTES, "tagging"))
        return cls(protocol, scope, sites, own.stream("graph"), key, threads, secret)

    def following(self, sites: Collection[SiteId]) -> Attempt | None:
        """Return the attempt to prepare while `sites` take part in this one, or None.

        Only an attempt among the same sites can be prepared.
        """
        federation_spec = self.protocol.config.federation_spec
        if (
            federation_spec.cohort_size != federation_spec.sites
            or self.scope.round + 1 >= federation_spec.rounds
            or self.sites != frozenset(sites)
        ):
            return None
        scope = self.scope.following
        return Attempt.fresh(
            self.protocol, scope, self.sites, self._secret, threads=self.threads, use="prepared"
        )

    @property
    def statements(self) -> Statements:
        """The attempt's signed statements, where the coordinator may lie."""
        return Statements(self.protocol.directory, self.scope)

    def require(self, sites: Collection[SiteId], did: str) -> None:
        """Raise if `sites`, which alone `did` this step, are too few."""
        floor = self.protocol.floor
        if len(sites) < floor:
            raise TooFewSitesError(
                f"{len(sites)} of {len(self.sites)} sites {did}, "
                f"but a sum is opened over at least {floor}."
            )

    def require_holders(
        self, site: SiteId, holders: Collection[SiteId], wrong: Collection[SiteId] = ()
    ) -> None:
        """Raise if `holders` cannot recover a secret of `site`.

        `wrong` names the sites that sent wrong shares of it.
        """
        if len(holders) < self.protocol.threshold:
            lies = (
                f": the shares that {named(wrong)} sent are not those that it had committed to"
                if wrong
                else ""
            )
            raise TooFewSitesError(
                f"the masks of site {site} come off with {self.protocol.threshold} of their "
                f"shares, but only {len(holders)} of its shareholders are left{lies}."
            )

    def require_whole(self, graph: Graph, sites: Collection[SiteId]) -> None:
        """Raise if the sum over `sites` could be opened in parts.

        Colluding sites would help to open it.  If all neighbours of a survivor are lost or
        collude, the coordinator can take off all its masks.
        """
        tolerated_colluders = self.protocol.tolerated_colluders
        if not graph.is_connected_after_removing(sites, without=tolerated_colluders):
            raise TooFewSitesError(
                f"{len(self.sites) - len(sites)} of {len(self.sites)} sites are lost, and with "
                f"{tolerated_colluders} colluding sites the coordinator could open the sum of the "
                "others in parts; more shares prevent that."
            )


def named(sites: Collection[SiteId]) -> str:
    """Return the sites as part of a sentence."""
    return f"site{'s' * (len(sites) > 1)} {', '.join(map(str, sorted(sites)))}"


class Stage:
    """Base of the stages, which asks for nothing and never ends."""

    def accept(self, site: SiteId, reply: bytes) -> None:
        """Take in the one reply of `site`.

        Raises:
            MessageError: The reply is not of the kind that was asked for.
        """
        raise MessageError(f"nothing is asked of site {site} now, but {len(reply)} bytes came.")

    def close(self) -> tuple[Stage, StageRequests]:
        """Return the next stage, and the requests that it begins with.

        Raises:
            TooFewSitesError: Too few replies came.
        """
        return self, StageRequests()


@frozen(eq=False)
class Failed(Stage):
    """The attempt failed: there is no sum."""

    reason: str


@frozen(eq=False)
class Finished(Stage):
    """The attempt is complete: there is a sum.

    Attributes:
        total: The sum.
        prepared: The next attempt with the shares for it that have come, if any was prepared.
    """

    total: RingSum
    prepared: ShareKeys | None = None


@frozen(eq=False, kw_only=True)
class MaskingGraph:
    """The sites that mask with each other, settled before the first vector.

    Attributes:
        attempt: The attempt.
        graph: The graph as it was drawn.
        neighbours: Neighbours of each site that is asked for a vector.
        sealing: Public sealing keys of these sites.
        masking: Public masking keys of these sites.
        commitments: Commitments to their mask seeds.
        seed_share_commitments: Commitments to each shareholder's share of a site's mask seed, by
            site and holder.
        key_share_commitments: Commitments to each shareholder's share of a site's masking key, by
            site and holder.
        roster_digest: A hash of all keys where sites sign, otherwise empty.
    """

    attempt: Attempt
    graph: Graph
    neighbours: Mapping[SiteId, frozenset[SiteId]]
    sealing: Mapping[SiteId, bytes]
    masking: Mapping[SiteId, bytes]
    commitments: Mapping[SiteId, bytes]
    seed_share_commitments: Mapping[SiteId, Mapping[SiteId, bytes]]
    key_share_commitments: Mapping[SiteId, Mapping[SiteId, bytes]]
    roster_digest: bytes = b""

    def lost(self, survivors: frozenset[SiteId]) -> list[SiteId]:
        """Return the dropped sites for which a survivor's vector carries a mask."""
        gone = self.neighbours.keys() - survivors
        return [site for site in sorted(gone) if self.neighbours[site] & survivors]
