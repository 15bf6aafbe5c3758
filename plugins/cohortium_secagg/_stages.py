"""The stages of an attempt at the coordinator.

    Setup → AdvertiseKeys → ShareKeys → CollectVectors → Unmask → Finished

Where the coordinator may lie, it forwards signatures:

    Setup → AdvertiseSignedKeys → ShareKeys
        → CollectVectors → ConsistencyChecking → Unmask → Finished

`CollectVectors` and `Unmask` also take in the keys and the shares of the next attempt, on behalf of
its own first stages.  If nothing is missing, that attempt begins where `ShareKeys` closes.

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
    from cohortium_secagg._protocol_parameters import AttemptLabel


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
        return _advertise(attempt), StageRequests(
            broadcast, dict.fromkeys(sorted(attempt.sites), b""), "keys"
        )


@frozen(eq=False)
class AdvertiseKeys(Stage):
    """Stage that collects public keys.

    A site without keys has no neighbours.
    """

    attempt: Attempt
    keys: dict[SiteId, Keys] = field(factory=dict, init=False)

    def accept(self, site: SiteId, reply: bytes) -> None:
        """Keep a site's keys."""
        self.keep(site, decode(reply, Keys, limit=max_message_bytes(1)))

    def keep(self, site: SiteId, keys: Keys | None) -> None:
        """Keep a site's keys.

        Raises:
            MessageError: They are missing, or their neighbours would refuse them.
        """
        if keys is None or isinstance(keys, SignedKeys):
            raise MessageError(f"site {site} sent no keys of the kind that it was asked for.")
        _require_sound(self.attempt, site, keys)
        self.keys[site] = keys

    def close(self) -> tuple[Stage, StageRequests]:
        """Draw the graph, and send each site its neighbours."""
        self.attempt.require(self.keys, "sent keys")
        stage = self.share_keys()
        each = {
            site: encode(ShareKeysRequest(self.attempt.scope.attempt, stage.neighbour_keys(site)))
            for site in sorted(self.keys)
        }
        return stage, StageRequests(b"", each, "shares")

    def share_keys(self) -> ShareKeys:
        """Draw the graph, and return the next stage."""
        degree = self.attempt.protocol.shares - 1
        graph = Graph.draw(sorted(self.keys), degree, self.attempt.shuffle)
        return ShareKeys(self.attempt, self.keys, graph, graph.neighbours())


@frozen(eq=False)
class AdvertiseSignedKeys(Stage):
    """Stage that collects signed public keys and sends them to all.

    Every site shares with all others.
    """

    attempt: Attempt
    keys: dict[SiteId, SignedKeys] = field(factory=dict, init=False)

    def accept(self, site: SiteId, reply: bytes) -> None:
        """Keep a site's keys."""
        self.keep(site, decode(reply, SignedKeys, limit=max_message_bytes(1)))

    def keep(self, site: SiteId, keys: Keys | None) -> None:
        """Keep a site's keys.

        Raises:
            MessageError: They are missing, or the other sites would refuse them.
        """
        if not isinstance(keys, SignedKeys):
            raise MessageError(f"site {site} sent no keys of the kind that it was asked for.")
        _require_sound(self.attempt, site, keys)
        if not self.attempt.statements.verify_keys(site, keys):
            raise MessageError(f"site {site} sent keys that it has not signed for this attempt.")
        self.keys[site] = keys

    def close(self) -> tuple[Stage, StageRequests]:
        """Send the roster to every site."""
        self.attempt.require(self.keys, "sent keys")
        stage = self.share_keys()
        broadcast = encode(ShareKeysAmongAllRequest(self.attempt.scope.attempt, stage.roster))
        return stage, StageRequests(broadcast, dict.fromkeys(stage.roster, b""), "shares")

    def share_keys(self) -> ShareKeys:
        """Return the next stage, in which all share with all."""
        attempt, sites = self.attempt, sorted(self.keys)
        graph = Graph.draw(sites, len(sites) - 1, attempt.shuffle)
        digest = attempt.statements.roster_digest(self.keys)
        return ShareKeys(attempt, self.keys, graph, graph.neighbours(), digest)


def _advertise(attempt: Attempt) -> AdvertiseKeys | AdvertiseSignedKeys:
    """Return the stage that collects the public keys of an attempt."""
    return AdvertiseSignedKeys(attempt) if attempt.protocol.is_active else AdvertiseKeys(attempt)


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
        limit = max_message_bytes(len(self.neighbours[site]))
        self.keep(site, decode(reply, Shares, limit=limit))

    def keep(self, site: SiteId, shares: Shares | None) -> None:
        """Keep a site's sealed shares.

        Raises:
            MessageError: They are missing, or not for its neighbours.
        """
        neighbours = self.neighbours[site]
        holders = neighbours | {site}
        if (
            shares is None
            or shares.sealed.keys() != neighbours
            or not (shares.seeds.keys() == shares.keys.keys() == holders)
        ):
            raise MessageError(f"site {site} did not share with exactly its neighbours.")
        self.shares[site] = shares

    def neighbour_keys(self, site: SiteId) -> dict[SiteId, Keys]:
        """Return the keys of a site's neighbours."""
        return {peer: self.keys[peer] for peer in sorted(self.neighbours[site])}

    @property
    def roster(self) -> dict[SiteId, SignedKeys]:
        """The signed keys of all sites, where the coordinator may lie."""
        return {
            site: keys for site, keys in sorted(self.keys.items()) if isinstance(keys, SignedKeys)
        }

    def is_complete(self, scope: AttemptLabel, sites: frozenset[SiteId]) -> bool:
        """Return whether this is the attempt `scope` among `sites`, and all of them shared."""
        return self.attempt.scope == scope and self.attempt.sites == sites == self.shares.keys()

    def close(self) -> tuple[Stage, StageRequests]:
        """Forward the sealed shares, and ask for vectors."""
        sites = k_core(self.neighbours, self.shares, self.attempt.protocol.quorum)
        self.attempt.require(sites, "shared their secrets with enough neighbours")
        self.attempt.require_whole(self.graph, sites)
        neighbours = {site: self.neighbours[site] & sites for site in sorted(sites)}
        following = self.attempt.following(sites)
        tagging = None if following is None else following.mac_agreement_key.public
        each = {
            site: encode(
                MaskedVectorRequest(
                    self.attempt.scope.attempt,
                    {peer: self.shares[peer].sealed[site] for peer in sorted(peers)},
                    tagging,
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
        next_keys = None if following is None else _advertise(following)
        return CollectVectors(masking_graph, next_keys), StageRequests(b"", each, "vectors")


@frozen(eq=False)
class CollectVectors(Stage):
    """Stage that adds each masked vector to the total, and drops it.

    Attributes:
        masking_graph: The sites that mask with each other.
        next_keys: The stage that takes in keys of the next attempt, or None.
        total: The sum so far.
        survivors: Sites in it.
    """

    masking_graph: MaskingGraph
    next_keys: AdvertiseKeys | AdvertiseSignedKeys | None
    total: Words = field(init=False, repr=False)
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
        if self.next_keys is not None:
            self.next_keys.keep(site, vector.next_keys)
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
        number, listed = attempt.scope.attempt, tuple(sorted(survivors))
        each = dict.fromkeys(listed, b"")
        # Of a part of the sites no attempt is prepared: the others may return.
        whole = self.next_keys if survivors == attempt.sites else None
        prepared = None if whole is None else whole.share_keys()
        unmask_stage = Unmask(self.masking_graph, self.total, survivors, prepared)
        if attempt.protocol.is_active:
            broadcast = encode(ConsistencyRequest(number, listed))
            return ConsistencyChecking(unmask_stage), StageRequests(broadcast, each, "consent")
        if prepared is None:
            broadcast = encode(UnmaskRequest(number, listed))
            return unmask_stage, StageRequests(broadcast, each, "unmasking")
        each = {
            site: encode(UnmaskRequest(number, listed, prepared.neighbour_keys(site)))
            for site in listed
        }
        return unmask_stage, StageRequests(b"", each, "unmasking")
