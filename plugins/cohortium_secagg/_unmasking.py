"""The end of an attempt at the coordinator: signatures, shares and unmasking."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
from attrs import evolve, field, frozen

from cohortium.plugin import MessageError, RingSum, StageRequests, TooFewSitesError, decode, encode
from cohortium_secagg._attempt import Finished, MaskingGraph, Stage, named
from cohortium_secagg._keys import KeyPair
from cohortium_secagg._masks import Mask, pairwise
from cohortium_secagg._messages import (
    ConfirmedUnmaskRequest,
    ConsistencyCheck,
    Unmasking,
    max_message_bytes,
)
from cohortium_secagg._shamir import LagrangeInterpolation
from cohortium_secagg._site_states import KEY_SHARE, SEED_SHARE
from cohortium_secagg._vectors import unmask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cohortium.plugin import SiteId
    from cohortium_secagg._masks import Words
    from cohortium_secagg._stages import ShareKeys

MAX_TRIALS = 256
"""Sets of holders tried for one secret, in addition to the first."""


@frozen(eq=False)
class ConsistencyChecking(Stage):
    """Stage that collects signatures for one set of survivors, named to all."""

    unmask_stage: Unmask
    signatures: dict[SiteId, bytes] = field(factory=dict, init=False)

    def accept(self, site: SiteId, reply: bytes) -> None:
        """Keep a site's signature."""
        masking_graph, survivors = self.unmask_stage.masking_graph, self.unmask_stage.survivors
        signature = decode(reply, ConsistencyCheck, limit=max_message_bytes(0)).signature
        statements = masking_graph.attempt.statements
        if not statements.verify_survivors(site, masking_graph.roster_digest, survivors, signature):
            raise MessageError(f"site {site} has not signed for the survivors it was named.")
        self.signatures[site] = signature

    def close(self) -> tuple[Stage, StageRequests]:
        """Show the signatures to the sites that signed, and ask for shares."""
        attempt, signed = self.unmask_stage.masking_graph.attempt, sorted(self.signatures)
        if len(signed) < attempt.protocol.threshold:
            raise TooFewSitesError(
                f"{len(signed)} of {len(self.unmask_stage.survivors)} survivors signed for the "
                f"sum, but it takes {attempt.protocol.threshold}."
            )
        # Only those who signed are asked further, so only if all did can the next attempt be ready.
        prepared = self.unmask_stage.prepared if attempt.sites == self.signatures.keys() else None
        signatures = dict(sorted(self.signatures.items()))
        roster = None if prepared is None else prepared.roster
        broadcast = encode(ConfirmedUnmaskRequest(attempt.scope.attempt, signatures, roster))
        unmask_stage = evolve(self.unmask_stage, prepared=prepared)
        return unmask_stage, StageRequests(broadcast, dict.fromkeys(signed, b""), "unmasking")


@frozen(eq=False)
class Unmask(Stage):
    """Stage that collects shares of survivors' mask seeds and lost sites' keys.

    These keys are the masking keys.

    Guarantees:
        Every secret is recovered before the first mask comes off, and is checked against its site's
        commitment.  So the sum is exact, or there is none.
        The coordinator leaves out a share that does not match its site's commitment, and names its
        sender.  Any other shareholder's share replaces it.  So wrong shares have no more effect
        than shares that never come.  No more is asked of any site for that.

    Attributes:
        masking_graph: The sites that mask with each other.
        total: The sum, under masks.
        survivors: Sites in it.
        prepared: The stage that takes in shares of the next attempt, or None.
        held: Right shares, by the site of the secret and the holder.
        wrong: Holders that sent wrong shares, by the site of the secret.
    """

    masking_graph: MaskingGraph
    total: Words = field(repr=False)
    survivors: frozenset[SiteId]
    prepared: ShareKeys | None
    held: dict[SiteId, dict[SiteId, bytes]] = field(factory=dict, init=False)
    wrong: dict[SiteId, set[SiteId]] = field(factory=dict, init=False)
    _interpolations: dict[tuple[SiteId, ...], LagrangeInterpolation] = field(
        factory=dict, init=False
    )

    def accept(self, site: SiteId, reply: bytes) -> None:
        """Keep a site's shares, except the wrong ones."""
        neighbours = self.masking_graph.neighbours[site]
        next_neighbours = () if self.prepared is None else self.prepared.neighbours[site]
        limit = max_message_bytes(len(neighbours) + len(next_neighbours))
        shares = decode(reply, Unmasking, limit=limit)
        survived = (neighbours | {site}) & self.survivors
        if shares.seeds.keys() != survived or shares.keys.keys() != neighbours - survived:
            raise MessageError(f"site {site} sent other shares than those it was asked for.")
        wrong = {
            *self._keep(SEED_SHARE, site, shares.seeds, self.masking_graph.seed_share_commitments),
            *self._keep(KEY_SHARE, site, shares.keys, self.masking_graph.key_share_commitments),
        }
        if wrong:
            raise MessageError(
                f"site {site} sent shares of the masks of {named(wrong)} that are not those that "
                "had been committed to; they are left out."
            )
        if self.prepared is not None:
            self.prepared.keep(site, shares.next_shares)

    def _keep(
        self,
        kind: str,
        holder: SiteId,
        shares: Mapping[SiteId, bytes],
        commitments: Mapping[SiteId, Mapping[SiteId, bytes]],
    ) -> Iterator[SiteId]:
        """Keep the shares that match their owners' commitments.

        Yields the owners of the other shares.
        """
        scope = self.masking_graph.attempt.scope
        for dealer, share in shares.items():
            if scope.digest(kind, share, dealer, holder) == commitments[dealer][holder]:
                self.held.setdefault(dealer, {})[holder] = share
            else:
                self.wrong.setdefault(dealer, set()).add(holder)
                yield dealer

    def close(self) -> tuple[Stage, StageRequests]:
        """Take the masks off."""
        masks = [*self._own_masks(), *self._masks_for_the_lost()]
        attempt = self.masking_graph.attempt
        ring = attempt.protocol.config.ring
        unmask(self.total, masks, ring, threads=attempt.threads)
        low = self.total.dtype.type((1 << ring.bits) - 1)
        np.bitwise_and(self.total, low, out=self.total)
        ring_sum = RingSum(ring, self.total, tuple(sorted(self.survivors)))
        return Finished(ring_sum, self.prepared), StageRequests()

    def _own_masks(self) -> Iterator[Mask]:
        for site in sorted(self.survivors):
            yield Mask(self._recover(site, self._is_seed), subtract=True)

    def _masks_for_the_lost(self) -> Iterator[Mask]:
        """Yield the masks that survivors added for sites whose vectors never came."""
        scope, masking = self.masking_graph.attempt.scope, self.masking_graph.masking
        for site in self.masking_graph.lost(self.survivors):
            pair = KeyPair(self._recover(site, self._is_key))
            for peer in sorted(self.masking_graph.neighbours[site] & self.survivors):
                # The lost site's own masks for its neighbours are exactly the ones that take theirs
                # off.
                yield pairwise(pair, masking[peer], scope, site, peer)

    def _is_seed(self, site: SiteId, secret: bytes) -> bool:
        digest = self.masking_graph.attempt.scope.digest("seed", secret, site)
        return digest == self.masking_graph.commitments[site]

    def _is_key(self, site: SiteId, secret: bytes) -> bool:
        return KeyPair(secret).public == self.masking_graph.masking[site]

    def _recover(self, site: SiteId, fits: Callable[[SiteId, bytes], bool]) -> bytes:
        """Return the secret of `site` that `fits`, from the shares received.

        Raises:
            TooFewSitesError: Too few shareholders sent shares that match the commitments.  Or these
                shares are of no secret that the site had committed to: the site itself sent wrong
                ones.
        """
        shares = self.held.get(site, {})
        attempt = self.masking_graph.attempt
        attempt.require_holders(site, shares, self.wrong.get(site, ()))
        for holders in trials(sorted(shares), attempt.protocol.threshold):
            if holders not in self._interpolations:
                self._interpolations[holders] = LagrangeInterpolation(holders)
            try:
                secret = self._interpolations[holders].secret(shares)
            except ValueError:
                continue
            if fits(site, secret):
                return secret
        raise TooFewSitesError(
            f"the shares of the masks of site {site} contradict its commitments."
        )


def trials(holders: list[SiteId], threshold: int) -> Iterator[tuple[SiteId, ...]]:
    """Yield the first `threshold` holders, and sets with one holder exchanged.

    Shares are known to match the commitments of the site that made them.  So they disagree only
    where that site is wrong.  One wrong share of it is made up for, with a bounded amount of work.
    """
    first, others = tuple(holders[:threshold]), holders[threshold:]
    yield first
    exchanges = ((place, other) for other in others for place in range(threshold))
    for place, other in itertools.islice(exchanges, MAX_TRIALS):
        yield tuple(sorted((*first[:place], *first[place + 1 :], other)))
