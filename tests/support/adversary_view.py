"""What a coordinator that is curious can make of what it has seen in one attempt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from attrs import define, field
from numpy.typing import NDArray

from cohortium.plugin import Message, Ring
from cohortium_secagg._keys import KeyPair
from cohortium_secagg._masks import Mask, apply, pairwise
from cohortium_secagg._messages import Keys, MaskedVectorRequest, Shares, Unmasking, Vector
from cohortium_secagg._protocol_parameters import AttemptLabel
from cohortium_secagg._shamir import LagrangeInterpolation

Words: TypeAlias = NDArray[np.unsignedinteger[Any]]
Shareholders: TypeAlias = defaultdict[int, dict[int, bytes]]
"""Shares of a site's secret, by site and shareholder."""


def _by_site() -> Shareholders:
    return defaultdict(dict)


@define(eq=False)
class AdversaryView:
    """Everything that sites said in an attempt, seen at their doors, and the algebra on it.

    Attributes:
        scope: The attempt.
        ring: Where the sum is taken.
        length: Elements of a vector.
        threshold: Shares that recover a secret.
        keys: Public keys.
        holders: To whom a site gave shares of its secrets.
        masked: Masked vectors.
        met: Whom each masked with.
        seeds: Shares of mask seeds.
        private: Shares of masking keys.
    """

    scope: AttemptLabel
    ring: Ring
    length: int
    threshold: int
    keys: dict[int, Any] = field(factory=dict)
    holders: dict[int, set[int]] = field(factory=dict)
    masked: dict[int, Words] = field(factory=dict)
    met: dict[int, set[int]] = field(factory=dict)
    seeds: Shareholders = field(factory=_by_site)
    private: Shareholders = field(factory=_by_site)

    def note(self, site: int, request: Message, reply: Message) -> None:
        """Take in one answer."""
        match reply:
            case Keys():
                self.keys[site] = reply
            case Shares():
                self.holders.setdefault(site, set()).update(reply.sealed)
            case Vector():
                assert isinstance(request, MaskedVectorRequest)
                self.met[site] = set(request.sealed)
                self.masked[site] = self.ring.unpack(reply.packed, self.length)
            case Unmasking():
                for peer, share in reply.seeds.items():
                    self.seeds[peer][site] = share
                for peer, share in reply.keys.items():
                    self.private[peer][site] = share

    # --- Whose sum can be had -------------------------------------------------------------------

    def openable(self, colluding: frozenset[int] = frozenset()) -> Iterator[frozenset[int]]:
        """The smallest sets of other sites whose sum the masks come off, `colluding` helping.

        Two sites hang together by a mask that nobody else knows; a set that does is opened if
        each of its own masks is known, and none of it has an unknown mask to the outside.
        """
        left = self.masked.keys() - colluding
        while left:
            found, group = [min(left)], set[int]()
            while found:
                site = found.pop()
                group.add(site)
                found += self._bound_to(site, colluding) - group
            is_closed = all(
                self._is_known(site, self.seeds, colluding)
                and all(site in self.met.get(peer, ()) for peer in self._bound_to(site, colluding))
                for site in group
            )
            if is_closed:
                yield frozenset(group)
            left -= group

    def _bound_to(self, site: int, colluding: frozenset[int]) -> set[int]:
        """Those with whom `site` has a mask that is not known."""
        if self._is_known(site, self.private, colluding):
            return set()
        return {
            peer
            for peer in self.met.get(site, ())
            if not self._is_known(peer, self.private, colluding)
        }

    def _is_known(self, site: int, shares: Shareholders, colluding: frozenset[int]) -> bool:
        """Whether a secret of `site` is; a colluding site shows each share it was ever sent."""
        shown = colluding & self.holders.get(site, set())
        return site in colluding or len(shares[site].keys() | shown) >= self.threshold

    # --- What it is -----------------------------------------------------------------------------

    def sum_over(self, chosen: Iterable[int]) -> list[int]:
        """The sum over `chosen`, once the masks come off for which there are shares.

        Raises:
            ValueError: There are too few.
        """
        chosen = list(chosen)
        words = sum((self.masked[site] for site in chosen), self.ring.zeros(self.length))
        masks = [Mask(self.recovered(self.seeds[site]), subtract=True) for site in chosen]
        for site in chosen:
            masks += [self._between(site, peer) for peer in self.met[site] - set(chosen)]
        apply(masks, words)
        return [word % (1 << self.ring.bits) for word in words.tolist()]

    def _between(self, site: int, peer: int) -> Mask:
        """What takes off the mask that `site` put on for `peer`, by the private key of either."""
        try:
            pair = KeyPair(self.recovered(self.private[peer]))
            return pairwise(pair, self.keys[site].masking, self.scope, peer, site)
        except ValueError:
            pair = KeyPair(self.recovered(self.private[site]))
            mask = pairwise(pair, self.keys[peer].masking, self.scope, site, peer)
            return Mask(mask.seed, subtract=not mask.subtract)

    def recovered(self, shares: Mapping[int, bytes]) -> bytes:
        """A secret from its shares.

        Raises:
            ValueError: They are too few.
        """
        if len(shares) < self.threshold:
            raise ValueError("too few shares.")
        holders = tuple(sorted(shares))[: self.threshold]
        return LagrangeInterpolation(holders).secret(shares)
