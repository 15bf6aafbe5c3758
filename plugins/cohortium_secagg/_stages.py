"""The stages of an attempt at the coordinator.

    Setup → AdvertiseKeys → ShareKeys → CollectVectors → Unmask → Finished

Where the coordinator may lie, it forwards signatures:

    Setup → AdvertiseSignedKeys → ShareKeys
        → CollectVectors → ConsistencyChecking → Unmask → Finished

A stage takes in replies.  `close` ends it, and returns the next stage and its requests.
A stage passes on only the data that later stages need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from cohortium.plugin import MessageError, StageRequests, decode, encode
from cohortium_secagg._attempt import Attempt, MaskingGraph, Stage
from cohortium_secagg._graph import Graph, k_core
from cohortium_secagg._keys import verify_tag
from cohortium_secagg._messages import (
    AdvertiseKeysRequest,
    ConsistencyRequest,
    Keys,
    MaskedVectorRequest,
    ShareKeysAmongAllRequest,
    ShareKeysRequest,
    Shares,
    SignedKeys,
    UnmaskRequest,
    Vector,
    max_message_bytes,
)
from cohortium_secagg._unmasking import ConsistencyChecking, Unmask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.plugin import SiteId
    from cohortium_secagg._masks import Words


@frozen(eq=False)
class Setup(Stage):
    """Stage before the first request."""

    attempt: Attempt

    def close(self) -> tuple[Stage, StageRequests]:
        """Ask for keys."""
        self.attempt.require(self.attempt.sites, "are asked")
        attempt = self.attempt
        broadcast = encode(
            AdvertiseKeysRequest(attempt.scope.attempt, attempt.mac_agreement_key.public)
        )
        stage = (
            AdvertiseSignedKeys(attempt) if attempt.protocol.is_active else AdvertiseKeys(attempt)
        )
        return stage, StageRequests(broadcast, dict.fromkeys(sorted(attempt.sites), b""), "keys")


@frozen(eq=False)
class AdvertiseKeys(Stage):
    """Stage that collects public keys.

    A site without keys has no neighbours.
    """

    attempt: Attempt
    keys: dict[SiteId, Keys] = field(factory=dict, init=False)

    def accept(self, site: SiteId, reply: bytes) -> None:
        """Keep a site's keys."""
        keys = decode(reply, Keys, limit=max_message_bytes(1))
        _require_sound(self.attempt, site, keys)
        self.keys[site] = keys

    def close(self) -> tuple[Stage, StageRequests]:
        """Draw the graph, and send each site its neighbours."""
        self.attempt.require(self.keys, "sent keys")
        degree = self.attempt.protocol.shares - 1
        graph = Graph.draw(sorted(self.keys), degree, self.attempt.shuffle)
        neighbours = graph.neighbours()
        each = {
            site: encode(
                ShareKeysRequest(
                    self.attempt.scope.attempt,
                    {peer: self.keys[peer] for peer in sorted(neighbours[site])},
                )
            )
            for site in sorted(self.keys)
        }
        return ShareKeys(self.attempt, self.keys, graph, neighbours), StageRequests(
            b"", each, "shares"
        )


@frozen(eq=False)
class AdvertiseSignedKeys(Stage):
    """Stage that collects signed public keys and sends them to all.

    Every site shares with all others.
    """

    attempt: Attempt
    keys: dict[SiteId, SignedKeys] = field(factory=dict, init=False)

    def accept(self, site: SiteId, reply: bytes) -> None:
        """Keep a site's keys."""
        keys = decode(reply, SignedKeys, limit=max_message_bytes(1))
        _require_sound(self.attempt, site, keys)
        if not self.attempt.statements.verify_keys(site, keys):
            raise MessageError(f"site {site} sent keys that it has not signed for this attempt.")
        self.keys[site] = keys

    def close(self) -> tuple[Stage, StageRequests]:
        """Send the roster to every site."""
        attempt, sites = self.attempt, sorted(self.keys)
        attempt.require(sites, "sent keys")
        graph = Graph.draw(sites, len(sites) - 1, attempt.shuffle)
        roster = {site: self.keys[site] for site in sites}
        broadcast = encode(ShareKeysAmongAllRequest(attempt.scope.attempt, roster))
        digest = attempt.statements.roster_digest(roster)
        stage = ShareKeys(attempt, self.keys, graph, graph.neighbours(), digest)
        return stage, StageRequests(broadcast, dict.fromkeys(sites, b""), "shares")


def _require_sound(attempt: Attempt, site: SiteId, keys: Keys) -> None:
    """Refuse keys that would make the neighbours refuse.

    Otherwise the neighbours would drop out in the site's place.
    """
    if not all(map(attempt.mac_agreement_key.can_agree, (keys.sealing, keys.masking))):
        raise MessageError(f"site {site} sent a public key of small order.")


@frozen(eq=False)
class ShareKeys(Stage):
    """Stage that collects sealed shares.

    A site that too few neighbours have shared with could not be recovered.  The coordinator leaves
    it out before it has trained, then the sites that need it, and so on.
    """

    attempt: Attempt
    keys: Mapping[SiteId, Keys]
    graph: Graph
    neighbours: Mapping[SiteId, frozenset[SiteId]]
    roster_digest: bytes = b""
    shares: dict[SiteId, Shares] = field(factory=dict, init=False)

    def accept(self, site: SiteId, reply: bytes) -> None:
        """Keep a site's sealed shares."""
        shares = decode(reply, Shares, limit=max_message_bytes(len(self.neighbours[site])))
        neighbours = self.neighbours[site]
        holders = neighbours | {site}
        if shares.sealed.keys() != neighbours or not (
            shares.seeds.keys() == shares.keys.keys() == holders
        ):
            raise MessageError(f"site {site} did not share with exactly its neighbours.")
        self.shares[site] = shares

    def close(self) -> tuple[Stage, StageRequests]:
        """Forward the sealed shares, and ask for vectors."""
        sites = k_core(self.neighbours, self.shares, self.attempt.protocol.quorum)
        self.attempt.require(sites, "shared their secrets with enough neighbours")
        self.attempt.require_whole(self.graph, sites)
        neighbours = {site: self.neighbours[site] & sites for site in sorted(sites)}
        each = {
            site: encode(
                MaskedVectorRequest(
                    self.attempt.scope.attempt,
                    {peer: self.shares[peer].sealed[site] for peer in sorted(peers)},
                )
            )
            for site, peers in neighbours.items()
        }
        masking_graph = MaskingGraph(
            attempt=self.attempt,
            graph=self.graph,
            neighbours=neighbours,
            sealing={site: self.keys[site].sealing for site in sites},
            masking={site: self.keys[site].masking for site in sites},
            commitments={site: self.shares[site].commitment for site in sites},
            seed_share_commitments={site: self.shares[site].seeds for site in sites},
            key_share_commitments={site: self.shares[site].keys for site in sites},
            roster_digest=self.roster_digest,
        )
        return CollectVectors(masking_graph), StageRequests(b"", each, "vectors")


@frozen(eq=False)
class CollectVectors(Stage):
    """Stage that adds each masked vector to the total, and drops it."""

    masking_graph: MaskingGraph
    total: Words = field(init=False)
    survivors: set[SiteId] = field(factory=set, init=False)

    @total.default
    def _nothing(self) -> Words:
        config = self.masking_graph.attempt.protocol.config
        return config.ring.zeros(config.length)

    def accept(self, site: SiteId, reply: bytes) -> None:
        """Add a site's masked vector."""
        attempt = self.masking_graph.attempt
        config = attempt.protocol.config
        limit = config.ring.bytes_for(config.length) + max_message_bytes(0)
        vector = decode(reply, Vector, limit=limit)
        config.ring.require_length(vector.packed, config.length)
        key = attempt.mac_agreement_key.agree(
            self.masking_graph.sealing[site], attempt.scope.label("vector", site)
        )
        if not verify_tag(key, vector.packed, vector.tag):
            raise MessageError(f"the vector of site {site} is damaged, or of another attempt.")
        # On one thread: NumPy's loops are so short here that two threads would wait for each other.
        config.ring.add(vector.packed, self.total)
        self.survivors.add(site)

    def close(self) -> tuple[Stage, StageRequests]:
        """Ask the survivors for signatures, or for shares to unmask."""
        attempt, survivors = self.masking_graph.attempt, frozenset(self.survivors)
        attempt.require(survivors, "sent vectors")
        for site in (*survivors, *self.masking_graph.lost(survivors)):
            holders = (self.masking_graph.neighbours[site] | {site}) & survivors
            attempt.require_holders(site, holders)
        attempt.require_whole(self.masking_graph.graph, survivors)
        listed, each = tuple(sorted(survivors)), dict.fromkeys(sorted(survivors), b"")
        unmask_stage = Unmask(self.masking_graph, self.total, survivors)
        if attempt.protocol.is_active:
            broadcast = encode(ConsistencyRequest(attempt.scope.attempt, listed))
            return ConsistencyChecking(unmask_stage), StageRequests(broadcast, each, "consent")
        return unmask_stage, StageRequests(
            encode(UnmaskRequest(attempt.scope.attempt, listed)), each, "unmasking"
        )
