"""The stages of an attempt at the coordinator.

    Opened → Keying → Sharing → Masking → Opening → Finished

Where sites are wary of it, it passes signatures on:

    Opened → SignedKeying → Sharing → Masking → Consenting → Opening → Finished

A stage takes in replies; `close` ends it, and gives the next stage and what to ask for it.
What later stages do not need is left behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from cohortium.plugin import MessageError, StageRequests, decode, encode
from cohortium_secagg._attempt import Attempt, Stage, Web
from cohortium_secagg._graph import Graph, core
from cohortium_secagg._keys import is_tagged
from cohortium_secagg._messages import (
    AskConsent,
    AskKeys,
    AskShares,
    AskSharesAmong,
    AskUnmasking,
    AskVector,
    Keys,
    Shares,
    SignedKeys,
    Vector,
    most_bytes,
)
from cohortium_secagg._opening import Consenting, Opening

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.plugin import SiteId
    from cohortium_secagg._masks import Words


@frozen(eq=False)
class Opened(Stage):
    """Nothing has been asked yet."""

    attempt: Attempt

    def close(self) -> tuple[Stage, StageRequests]:
        """Ask for keys."""
        self.attempt.require(self.attempt.sites, "are asked")
        attempt = self.attempt
        broadcast = encode(AskKeys(attempt.scope.attempt, attempt.tagging.public))
        stage = SignedKeying(attempt) if attempt.rules.is_active else Keying(attempt)
        return stage, StageRequests(broadcast, dict.fromkeys(sorted(attempt.sites), b""), "keys")


@frozen(eq=False)
class Keying(Stage):
    """Public keys come in; a site without them is no one's neighbour."""

    attempt: Attempt
    keys: dict[SiteId, Keys] = field(factory=dict, init=False)

    def accept(self, site: SiteId, reply: bytes) -> None:
        """Keep a site's keys."""
        keys = decode(reply, Keys, limit=most_bytes(1))
        _require_sound(self.attempt, site, keys)
        self.keys[site] = keys

    def close(self) -> tuple[Stage, StageRequests]:
        """Draw the graph, and tell each site its neighbours."""
        self.attempt.require(self.keys, "sent keys")
        degree = self.attempt.rules.shares - 1
        graph = Graph.draw(sorted(self.keys), degree, self.attempt.shuffle)
        neighbours = graph.neighbours()
        each = {
            site: encode(
                AskShares(
                    self.attempt.scope.attempt,
                    {peer: self.keys[peer] for peer in sorted(neighbours[site])},
                )
            )
            for site in sorted(self.keys)
        }
        return Sharing(self.attempt, self.keys, graph, neighbours), StageRequests(
            b"", each, "shares"
        )


@frozen(eq=False)
class SignedKeying(Stage):
    """Signed public keys come in; everyone is told all of them, and shares with all."""

    attempt: Attempt
    keys: dict[SiteId, SignedKeys] = field(factory=dict, init=False)

    def accept(self, site: SiteId, reply: bytes) -> None:
        """Keep a site's keys."""
        keys = decode(reply, SignedKeys, limit=most_bytes(1))
        _require_sound(self.attempt, site, keys)
        if not self.attempt.statements.believes_keys(site, keys):
            raise MessageError(f"site {site} sent keys that it has not signed for this attempt.")
        self.keys[site] = keys

    def close(self) -> tuple[Stage, StageRequests]:
        """Tell every site the roster."""
        attempt, sites = self.attempt, sorted(self.keys)
        attempt.require(sites, "sent keys")
        graph = Graph.draw(sites, len(sites) - 1, attempt.shuffle)
        roster = {site: self.keys[site] for site in sites}
        broadcast = encode(AskSharesAmong(attempt.scope.attempt, roster))
        digest = attempt.statements.roster(roster)
        stage = Sharing(attempt, self.keys, graph, graph.neighbours(), digest)
        return stage, StageRequests(broadcast, dict.fromkeys(sites, b""), "shares")


def _require_sound(attempt: Attempt, site: SiteId, keys: Keys) -> None:
    """Turn down keys for which the neighbours would refuse, and drop out in the site's place."""
    if not all(map(attempt.tagging.can_agree, (keys.sealing, keys.masking))):
        raise MessageError(f"site {site} sent a public key of small order.")


@frozen(eq=False)
class Sharing(Stage):
    """Sealed shares come in.

    A site that too few neighbours have shared with could not be recovered.  It is left out before
    it has trained, and then those that need it, and so on.
    """

    attempt: Attempt
    keys: Mapping[SiteId, Keys]
    graph: Graph
    neighbours: Mapping[SiteId, frozenset[SiteId]]
    roster: bytes = b""
    shares: dict[SiteId, Shares] = field(factory=dict, init=False)

    def accept(self, site: SiteId, reply: bytes) -> None:
        """Keep a site's sealed shares."""
        shares = decode(reply, Shares, limit=most_bytes(len(self.neighbours[site])))
        neighbours = self.neighbours[site]
        holders = neighbours | {site}
        if shares.sealed.keys() != neighbours or not (
            shares.seeds.keys() == shares.keys.keys() == holders
        ):
            raise MessageError(f"site {site} did not share with exactly its neighbours.")
        self.shares[site] = shares

    def close(self) -> tuple[Stage, StageRequests]:
        """Pass the sealed shares on, and ask for vectors."""
        sites = core(self.neighbours, self.shares, self.attempt.rules.quorum)
        self.attempt.require(sites, "shared their secrets with enough neighbours")
        self.attempt.require_whole(self.graph, sites)
        neighbours = {site: self.neighbours[site] & sites for site in sorted(sites)}
        each = {
            site: encode(
                AskVector(
                    self.attempt.scope.attempt,
                    {peer: self.shares[peer].sealed[site] for peer in sorted(peers)},
                )
            )
            for site, peers in neighbours.items()
        }
        web = Web(
            attempt=self.attempt,
            graph=self.graph,
            neighbours=neighbours,
            sealing={site: self.keys[site].sealing for site in sites},
            masking={site: self.keys[site].masking for site in sites},
            commitments={site: self.shares[site].commitment for site in sites},
            seeds={site: self.shares[site].seeds for site in sites},
            keys={site: self.shares[site].keys for site in sites},
            roster=self.roster,
        )
        return Masking(web), StageRequests(b"", each, "vectors")


@frozen(eq=False)
class Masking(Stage):
    """Masked vectors come in, each added to the one running total and dropped."""

    web: Web
    total: Words = field(init=False)
    survivors: set[SiteId] = field(factory=set, init=False)

    @total.default
    def _nothing(self) -> Words:
        setting = self.web.attempt.rules.setting
        return setting.ring.zeros(setting.length)

    def accept(self, site: SiteId, reply: bytes) -> None:
        """Fold a site's masked vector in."""
        attempt = self.web.attempt
        setting = attempt.rules.setting
        limit = setting.ring.bytes_for(setting.length) + most_bytes(0)
        vector = decode(reply, Vector, limit=limit)
        setting.ring.require_length(vector.packed, setting.length)
        key = attempt.tagging.agree(self.web.sealing[site], attempt.scope.label("vector", site))
        if not is_tagged(key, vector.packed, vector.tag):
            raise MessageError(f"the vector of site {site} is damaged, or of another attempt.")
        # On one thread: NumPy's loops are so short here that two would wait for each other.
        setting.ring.add(vector.packed, self.total)
        self.survivors.add(site)

    def close(self) -> tuple[Stage, StageRequests]:
        """Ask the survivors for what takes the masks off."""
        attempt, survivors = self.web.attempt, frozenset(self.survivors)
        attempt.require(survivors, "sent vectors")
        for site in (*survivors, *self.web.lost(survivors)):
            holders = (self.web.neighbours[site] | {site}) & survivors
            attempt.require_holders(site, holders)
        attempt.require_whole(self.web.graph, survivors)
        listed, each = tuple(sorted(survivors)), dict.fromkeys(sorted(survivors), b"")
        opening = Opening(self.web, self.total, survivors)
        if attempt.rules.is_active:
            broadcast = encode(AskConsent(attempt.scope.attempt, listed))
            return Consenting(opening), StageRequests(broadcast, each, "consent")
        return opening, StageRequests(
            encode(AskUnmasking(attempt.scope.attempt, listed)), each, "unmasking"
        )
