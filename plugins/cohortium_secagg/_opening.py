"""The end of an attempt at the coordinator: consent, then shares, and the masks come off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen

from cohortium.plugin import MessageError, Requests, RingSum, TooFewSitesError, decode, encode
from cohortium_secagg._attempt import Finished, Stage, Web
from cohortium_secagg._keys import KeyPair
from cohortium_secagg._masks import Mask, pairwise
from cohortium_secagg._messages import AskOpening, Consent, Unmasking, most_bytes
from cohortium_secagg._shamir import Interpolation
from cohortium_secagg._vectors import unmask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cohortium.plugin import SiteId
    from cohortium_secagg._masks import Words


@frozen(eq=False)
class Consenting(Stage):
    """Signatures come in, for the one set of survivors that was named to all."""

    opening: Opening
    signatures: dict[SiteId, bytes] = field(factory=dict, init=False)

    def accept(self, site: SiteId, reply: bytes) -> None:
        """Keep a site's signature."""
        web, survivors = self.opening.web, self.opening.survivors
        signature = decode(reply, Consent, limit=most_bytes(0)).signature
        statements = web.attempt.statements
        if not statements.believes_survivors(site, web.roster, survivors, signature):
            raise MessageError(f"site {site} has not signed for the survivors it was named.")
        self.signatures[site] = signature

    def close(self) -> tuple[Stage, Requests]:
        """Show the signatures to those who gave them, and ask for shares."""
        attempt, signed = self.opening.web.attempt, sorted(self.signatures)
        if len(signed) < attempt.rules.threshold:
            raise TooFewSitesError(
                f"{len(signed)} of {len(self.opening.survivors)} survivors signed for the sum, "
                f"but it takes {attempt.rules.threshold}."
            )
        common = encode(AskOpening(attempt.scope.attempt, dict(sorted(self.signatures.items()))))
        return self.opening, Requests(common, dict.fromkeys(signed, b""), "unmasking")


@frozen(eq=False)
class Opening(Stage):
    """Shares come in: of a survivor's mask seed, of the masking key of a site that is lost.

    Guarantees:
        Every secret is recovered, and found to be the one its site had committed to, before the
        first mask comes off: the sum is exact, or there is none.
    """

    web: Web
    total: Words
    survivors: frozenset[SiteId]
    replies: dict[SiteId, Unmasking] = field(factory=dict, init=False)
    _interpolations: dict[tuple[SiteId, ...], Interpolation] = field(factory=dict, init=False)

    def accept(self, site: SiteId, reply: bytes) -> None:
        """Keep a site's shares."""
        neighbours = self.web.neighbours[site]
        shares = decode(reply, Unmasking, limit=most_bytes(len(neighbours)))
        survived = (neighbours | {site}) & self.survivors
        if shares.seeds.keys() != survived or shares.keys.keys() != neighbours - survived:
            raise MessageError(f"site {site} sent other shares than those it was asked for.")
        self.replies[site] = shares

    def close(self) -> tuple[Stage, Requests]:
        """Take the masks off."""
        masks = [*self._own_masks(), *self._masks_for_the_lost()]
        attempt = self.web.attempt
        ring = attempt.rules.setting.ring
        unmask(self.total, masks, ring, threads=attempt.threads)
        low = self.total.dtype.type((1 << ring.bits) - 1)
        np.bitwise_and(self.total, low, out=self.total)
        return Finished(RingSum(ring, self.total, tuple(sorted(self.survivors)))), Requests()

    def _own_masks(self) -> Iterator[Mask]:
        scope = self.web.attempt.scope
        for site in sorted(self.survivors):
            seed = self._recover(site, {h: r.seeds[site] for h, r in self._holders(site)})
            if scope.digest("seed", site, seed) != self.web.commitments[site]:
                raise _contradiction(site)
            yield Mask(seed, subtract=True)

    def _masks_for_the_lost(self) -> Iterator[Mask]:
        """The masks that survivors put on for sites whose vectors never came."""
        scope, masking = self.web.attempt.scope, self.web.masking
        for site in self.web.lost(self.survivors):
            key = self._recover(site, {h: r.keys[site] for h, r in self._holders(site)})
            pair = KeyPair(key)
            if pair.public != masking[site]:
                raise _contradiction(site)
            for peer in sorted(self.web.neighbours[site] & self.survivors):
                # What the lost site would have sent is just what takes its neighbours' masks off.
                yield pairwise(pair, masking[peer], scope, site, peer)

    def _holders(self, site: SiteId) -> list[tuple[SiteId, Unmasking]]:
        """As many shareholders of `site` that answered as it takes to recover a secret."""
        circle = self.web.neighbours[site] | {site}
        answered = sorted(circle & self.replies.keys())
        self.web.attempt.require_holders(site, answered)
        chosen = answered[: self.web.attempt.rules.threshold]
        return [(holder, self.replies[holder]) for holder in chosen]

    def _recover(self, site: SiteId, shares: Mapping[SiteId, bytes]) -> bytes:
        holders = tuple(shares)
        if holders not in self._interpolations:
            self._interpolations[holders] = Interpolation(holders)
        try:
            return self._interpolations[holders].secret(shares)
        except ValueError:
            raise _contradiction(site) from None


def _contradiction(site: SiteId) -> TooFewSitesError:
    return TooFewSitesError(
        f"the shares of the masks of site {site} contradict what it had committed to."
    )
