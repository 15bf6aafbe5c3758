"""What the stages of an attempt have in common at the coordinator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from cohortium.plugin import MessageError, RingSum, StageRequests, TooFewSitesError
from cohortium_secagg._statements import Statements

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from cohortium.plugin import KeyStream, SiteId
    from cohortium_secagg._graph import Graph
    from cohortium_secagg._keys import KeyPair
    from cohortium_secagg._rules import AttemptLabel, ProtocolParameters


@frozen(eq=False)
class Attempt:
    """One attempt.

    Attributes:
        protocol: Of the run.
        scope: What this attempt's keys are bound to.
        sites: Those that are asked.
        shuffle: Draws the graph.
        mac_key: Agrees with each site on the key of its vector's tag.
        threads: How many sum vectors and take masks off.
    """

    protocol: ProtocolParameters
    scope: AttemptLabel
    sites: frozenset[SiteId]
    shuffle: KeyStream
    mac_key: KeyPair
    threads: int

    @property
    def statements(self) -> Statements:
        """What sites sign in it, where the coordinator may lie."""
        return Statements(self.protocol.directory, self.scope)

    def require(self, sites: Collection[SiteId], did: str) -> None:
        """Raise if `sites`, which alone `did` what was asked, are too few for a sum."""
        floor = self.protocol.floor
        if len(sites) < floor:
            raise TooFewSitesError(
                f"{len(sites)} of {len(self.sites)} sites {did}, "
                f"but a sum is opened over at least {floor}."
            )

    def require_holders(
        self, site: SiteId, holders: Collection[SiteId], wrong: Collection[SiteId] = ()
    ) -> None:
        """Raise if `holders` cannot recover a secret of `site`, of which `wrong` sent others."""
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
        """Raise if the sum over `sites` could be opened in parts, with the help of colluding ones.

        A survivor whose neighbours are all lost or colluding is alone behind masks that the
        coordinator can take off.
        """
        tolerated_colluders = self.protocol.tolerated_colluders
        if not graph.is_connected_after_removing(sites, without=tolerated_colluders):
            raise TooFewSitesError(
                f"{len(self.sites) - len(sites)} of {len(self.sites)} sites are lost, and with "
                f"{tolerated_colluders} colluding sites the coordinator could open the sum of the "
                "others in parts; more shares prevent that."
            )


def named(sites: Collection[SiteId]) -> str:
    """Sites, in a sentence."""
    return f"site{'s' * (len(sites) > 1)} {', '.join(map(str, sorted(sites)))}"


class Stage:
    """Base of the stages: one in which nothing is asked, and after which nothing comes."""

    def accept(self, site: SiteId, reply: bytes) -> None:
        """Take in the one reply of `site`.

        Raises:
            MessageError: It is not what was asked.
        """
        raise MessageError(f"nothing is asked of site {site} now, but {len(reply)} bytes came.")

    def close(self) -> tuple[Stage, StageRequests]:
        """The next stage, and what to ask the sites for it.

        Raises:
            TooFewSitesError: Too few replies came.
        """
        return self, StageRequests()


@frozen(eq=False)
class Failed(Stage):
    """The attempt came to nothing."""

    reason: str


@frozen(eq=False)
class Finished(Stage):
    """The sum is there."""

    total: RingSum


@frozen(eq=False, kw_only=True)
class MaskingGraph:
    """Who masks with whom, settled before the first vector.

    Attributes:
        attempt: The attempt.
        graph: As it was drawn.
        neighbours: Those of each site that is asked for a vector.
        sealing: Their public sealing keys.
        masking: Their public masking keys.
        commitments: To their mask seeds.
        seeds: To each shareholder's share of a site's mask seed, by site and holder.
        keys: To each shareholder's share of its masking key.
        roster: A hash of all keys, where sites sign what they open; else empty.
    """

    attempt: Attempt
    graph: Graph
    neighbours: Mapping[SiteId, frozenset[SiteId]]
    sealing: Mapping[SiteId, bytes]
    masking: Mapping[SiteId, bytes]
    commitments: Mapping[SiteId, bytes]
    seeds: Mapping[SiteId, Mapping[SiteId, bytes]]
    keys: Mapping[SiteId, Mapping[SiteId, bytes]]
    roster: bytes = b""

    def lost(self, survivors: frozenset[SiteId]) -> list[SiteId]:
        """Sites that dropped out while a survivor's vector carries a mask for them."""
        gone = self.neighbours.keys() - survivors
        return [site for site in sorted(gone) if self.neighbours[site] & survivors]
