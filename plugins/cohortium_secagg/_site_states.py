"""States of a site between requests, each left by one method."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from attrs import field, frozen

from cohortium.plugin import RefusalCode, RefusalError
from cohortium_secagg._codes import SecAggRefusalCode
from cohortium_secagg._keys import KEY_BYTES, KeyPair, seal, tag, unseal
from cohortium_secagg._masks import Mask, pairwise
from cohortium_secagg._messages import Keys, Shares, Unmasking, Vector
from cohortium_secagg._shamir import SECRET_BYTES, SHARE_BYTES, split
from cohortium_secagg._vectors import masked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cohortium.plugin import Randomness, RingVector, SiteId
    from cohortium_secagg._keys import KnownAgreements
    from cohortium_secagg._masks import Words
    from cohortium_secagg._messages import MaskedVectorRequest, SignedKeys, UnmaskRequest
    from cohortium_secagg._protocol_parameters import AttemptLabel, ProtocolParameters

SEED_SHARE, KEY_SHARE = "seed share", "masking key share"
"""Label of the hashes of seed shares, and of key shares."""

Pair: TypeAlias = tuple[bytes, bytes]
"""A share of a site's mask seed, and one of its masking key."""


@frozen(eq=False)
class SiteAttempt:
    """A site in one attempt.

    Attributes:
        protocol: Parameters of the run.
        scope: Label of the attempt.
        site: Number of the site.
        roster_digest: A hash of all sites' keys as the coordinator sent them.  Empty where no site
            signs.
        threads: Number of threads that mask and pack the site's vector.
    """

    protocol: ProtocolParameters
    scope: AttemptLabel
    site: SiteId
    roster_digest: bytes = b""
    threads: int = 1

    def check_neighbours(self, peers: Mapping[SiteId, object]) -> None:
        """Refuse neighbours that no honest graph would give this site."""
        federation_spec = self.protocol.config.federation_spec
        least, most = self.protocol.quorum - 1, self.protocol.most_neighbours
        if self.site in peers or not all(peer < federation_spec.sites for peer in peers):
            raise RefusalError(
                SecAggRefusalCode.NEIGHBOURHOOD, "a neighbour is no other site of this federation."
            )
        if not least <= len(peers) <= most:
            raise RefusalError(
                SecAggRefusalCode.NEIGHBOURHOOD,
                f"{len(peers)} neighbours are not between {least} and {most}.",
            )


@frozen(eq=False)
class Advertised:
    """State after the site has sent its public keys.

    Attributes:
        site_attempt: The site, and the attempt.
        sealing: Key pair that agrees on the keys that seal shares.
        masking: Key pair that agrees on masks.
        mac_key: The key of its vector's tag.  Only the coordinator can derive it as well.
    """

    site_attempt: SiteAttempt
    sealing: KeyPair
    masking: KeyPair
    mac_key: bytes = field(repr=False)
    _secret: Randomness = field(repr=False)

    @classmethod
    def fresh(
        cls,
        site_attempt: SiteAttempt,
        secret: Randomness,
        *,
        coordinator: bytes,
        known: KnownAgreements,
    ) -> Advertised:
        """Draw new keys for an attempt with the coordinator's public key `coordinator`.

        Their agreements are listed in `known` (see `KeyPair`).

        Raises:
            RefusalError: That key is of small order.
        """
        sealing, masking = (
            KeyPair(secret.secret_bytes(KEY_BYTES, use), known) for use in ("sealing", "masking")
        )
        mac_key = sealing.agree(coordinator, site_attempt.scope.label("vector", site_attempt.site))
        return cls(site_attempt, sealing, masking, mac_key, secret)

    @property
    def keys(self) -> Keys:
        """Public keys that are sent to every party."""
        return Keys(self.sealing.public, self.masking.public)

    def share(
        self, site_attempt: SiteAttempt, neighbours: Mapping[SiteId, Keys]
    ) -> tuple[Shared, Shares]:
        """Share a new mask seed and the masking key with the neighbours.

        This site holds a share of both, too.
        """
        site_attempt.check_neighbours(neighbours)
        site, threshold = site_attempt.site, site_attempt.protocol.threshold
        seed = self._secret.secret_bytes(SECRET_BYTES, "seed")
        holders = [site, *neighbours]
        seeds, keys = (
            split(secret, holders, threshold=threshold, stream=self._secret.stream("shares", use))
            for use, secret in (("seed", seed), ("masking", self.masking.private))
        )
        channel = Channel(site_attempt, self.sealing, self.keys)
        sealed = {
            peer: channel.seal(peer, theirs, seeds[peer] + keys[peer])
            for peer, theirs in neighbours.items()
        }
        own = (seeds[site], keys[site])
        state = Shared(channel, self.masking, self.mac_key, seed, own, neighbours)
        scope = site_attempt.scope
        return state, Shares(
            sealed,
            scope.digest("seed", seed, site),
            committed(scope, SEED_SHARE, site, seeds),
            committed(scope, KEY_SHARE, site, keys),
        )


def committed(
    scope: AttemptLabel, kind: str, dealer: SiteId, shares: Mapping[SiteId, bytes]
) -> dict[SiteId, bytes]:
    """Return a hash of each of the `shares` of `dealer`, by holder.

    Guarantees:
        A hash reveals nothing of a share that cannot be guessed.  One guess tries one share,
        because no two hashes of an attempt have the same label.  Each of the shares that fewer than
        `threshold` others leave open is uniform over more than 2**256 values.
    """
    return {holder: scope.digest(kind, share, dealer, holder) for holder, share in shares.items()}


@frozen(eq=False)
class Channel:
    """Sealed channel for shares between this site and its neighbours.

    Guarantees:
        A key seals one message: it is bound to session, round, attempt, sender and receiver.  A
        sealed share is bound to all four public keys as its sender knows them, and to the roster if
        there is one.  So neighbours that received different keys or rosters find out before either
        masks.
    """

    site_attempt: SiteAttempt
    sealing: KeyPair
    keys: Keys

    def seal(self, peer: SiteId, theirs: Keys, plain: bytes) -> bytes:
        """Encrypt for `peer`."""
        label = self.site_attempt.scope.label("shares", self.site_attempt.site, peer)
        key = self.sealing.agree(theirs.sealing, label)
        return seal(key, plain, bound_to=label + self._joined(self.keys, theirs))

    def unseal(self, peer: SiteId, theirs: Keys, sealed: bytes) -> bytes:
        """Decrypt a text that `peer` sealed for this site."""
        label = self.site_attempt.scope.label("shares", peer, self.site_attempt.site)
        key = self.sealing.agree(theirs.sealing, label)
        try:
            return unseal(key, sealed, bound_to=label + self._joined(theirs, self.keys))
        except RefusalError as refusal:
            # Name the sender, and not only the site that could not open the share.
            raise RefusalError(refusal.code, f"site {peer}: {refusal.reason}") from None

    def _joined(self, sender: Keys, receiver: Keys) -> bytes:
        keys = sender.sealing + sender.masking + receiver.sealing + receiver.masking
        return keys + self.site_attempt.roster_digest


@frozen(eq=False)
class Shared:
    """State after the site has shared its secrets.

    Attributes:
        channel: Channel to its neighbours.
        masking: Key pair that agrees on masks.
        mac_key: The key of its vector's tag.
        seed: Seed of its own mask.
        own: Its own shares of its secrets.
        neighbours: Keys of the neighbours that it shared with.
    """

    channel: Channel
    masking: KeyPair
    mac_key: bytes = field(repr=False)
    seed: bytes = field(repr=False)
    own: Pair = field(repr=False)
    neighbours: Mapping[SiteId, Keys]

    @property
    def scope(self) -> AttemptLabel:
        """Label of the attempt."""
        return self.channel.site_attempt.scope

    def mask(
        self,
        request: MaskedVectorRequest,
        vector: Callable[[], RingVector],
        next_keys: Keys | SignedKeys | None = None,
    ) -> tuple[Masked, Vector]:
        """Mask the vector with its own seed and every neighbour that shared.

        The public keys of the next attempt, `next_keys`, are sent with it.
        """
        site_attempt, sealed = self.channel.site_attempt, request.sealed
        site_attempt.check_neighbours(sealed)
        if not sealed.keys() <= self.neighbours.keys():
            raise RefusalError(
                SecAggRefusalCode.NEIGHBOURHOOD, "a share comes from a site that is no neighbour."
            )
        shares = {site_attempt.site: self.own}
        masks = [Mask(self.seed)]
        for peer, text in sealed.items():
            keys = self.neighbours[peer]
            plain = self.channel.unseal(peer, keys, text)
            shares[peer] = plain[:SHARE_BYTES], plain[SHARE_BYTES:]
            masks.append(
                pairwise(self.masking, keys.masking, site_attempt.scope, site_attempt.site, peer)
            )
        ring = site_attempt.protocol.config.ring
        packed = masked(self._released(vector), masks, ring, threads=site_attempt.threads)
        unmasked_neighbours = frozenset(self.neighbours.keys() - sealed.keys())
        return Masked(site_attempt, shares, unmasked_neighbours), Vector(
            packed, tag(self.mac_key, packed), next_keys
        )

    def _released(self, vector: Callable[[], RingVector]) -> Words:
        """Return the words that the site releases."""
        config = self.channel.site_attempt.protocol.config
        words = vector().words
        if words.dtype != config.ring.dtype or words.shape != (config.length,):
            raise RefusalError(
                RefusalCode.VECTOR, "the release is not of the ring and length agreed on."
            )
        return words


@frozen(eq=False)
class Masked:
    """State after the site has sent its masked vector.

    Attributes:
        site_attempt: The site, and the attempt.
        shares: Shares that it holds of its own secrets, and of those of each neighbour it masked
            with.
        unmasked_neighbours: Neighbours it did not mask with.
    """

    site_attempt: SiteAttempt
    shares: Mapping[SiteId, Pair] = field(repr=False)
    unmasked_neighbours: frozenset[SiteId]

    def unmask(self, request: UnmaskRequest, next_shares: Shares | None = None) -> Unmasking:
        """Return shares of survivors' mask seeds and of the others' masking keys.

        The sealed shares of the next attempt, `next_shares`, are sent with them.
        """
        self.check(request.survivors)
        return self.shares_for(frozenset(request.survivors), next_shares)

    def shares_for(
        self, survivors: frozenset[SiteId], next_shares: Shares | None = None
    ) -> Unmasking:
        """Return one share for each shareholder's secret.

        For one site it never returns both kinds.
        """
        seeds = {peer: seed for peer, (seed, _) in self.shares.items() if peer in survivors}
        keys = {peer: key for peer, (_, key) in self.shares.items() if peer not in survivors}
        return Unmasking(seeds, keys, next_shares)

    def check(self, listed: tuple[SiteId, ...]) -> None:
        """Refuse survivors that are impossible or too few."""
        protocol, survivors = self.site_attempt.protocol, frozenset(listed)
        federation_spec = protocol.config.federation_spec
        if len(survivors) != len(listed) or len(survivors) > federation_spec.cohort_size:
            raise RefusalError(
                SecAggRefusalCode.SURVIVORS, "sites are listed twice, or more than were asked."
            )
        if max(listed, default=0) >= federation_spec.sites or survivors & self.unmasked_neighbours:
            raise RefusalError(
                SecAggRefusalCode.SURVIVORS, "a site that cannot have sent a vector is listed."
            )
        if protocol.is_active:
            self.require_acquainted(survivors)
        if self.site_attempt.site not in survivors:
            raise RefusalError(
                SecAggRefusalCode.SURVIVORS, "this site sent its vector, but is not listed."
            )
        if len(survivors) < protocol.floor:
            raise RefusalError(
                SecAggRefusalCode.FLOOR,
                f"a sum over {len(survivors)} sites is not opened, only over {protocol.floor}.",
            )
        near = len(survivors & self.shares.keys())
        if near < protocol.quorum:
            raise RefusalError(
                SecAggRefusalCode.FLOOR,
                f"{near} survivors here are too few; it takes {protocol.quorum}.",
            )

    def require_acquainted(self, survivors: frozenset[SiteId]) -> None:
        """Refuse a survivor that has shared nothing with this site.

        Where all share with all, such a site cannot have masked with the sites that did share.  It
        would only make a small sum look large.
        """
        if not survivors <= self.shares.keys():
            raise RefusalError(
                SecAggRefusalCode.SURVIVORS, "a site that has shared nothing is listed."
            )
