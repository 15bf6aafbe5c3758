"""A coordinator of honest sites that sends them whatever it likes, and opens what it can."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import pytest

from cohortium.plugin import (
    AggregationConfig,
    FederationSpec,
    Journal,
    KeyDirectory,
    MemoryJournal,
    Message,
    Randomness,
    RefusalError,
    Ring,
    RingVector,
    SigningKey,
    SiteContext,
    SiteRequest,
    decode,
    encode,
)
from cohortium_secagg import SecAgg
from cohortium_secagg._keys import KeyPair
from cohortium_secagg._masks import Mask, apply, pairwise
from cohortium_secagg._messages import (
    AdvertiseKeysRequest,
    ConfirmedUnmaskRequest,
    ConsistencyCheck,
    ConsistencyRequest,
    Keys,
    MaskedVectorRequest,
    ShareKeysAmongAllRequest,
    ShareKeysRequest,
    Shares,
    SignedKeys,
    Unmasking,
    UnmaskRequest,
    Vector,
)
from cohortium_secagg._protocol_parameters import AttemptLabel, ProtocolParameters
from cohortium_secagg._shamir import SHARE_BYTES
from cohortium_secagg._site_states import Channel, SiteAttempt
from cohortium_secagg._statements import Statements
from tests.support.adversary_view import AdversaryView, Shareholders, Words

Pairs: TypeAlias = Mapping[int, tuple[Any, Any]]
"""Sealing and masking key pairs, by site."""

RING = Ring(20)

COORDINATOR = KeyPair(b"the coordinator of all attempts.").public


class MaliciousCoordinator:
    """Sites that keep to the protocol, and a coordinator that need not.

    With `prepared`, keys and shares of an attempt come with the attempt before it, which is honest.
    """

    def __init__(
        self,
        sites: int = 10,
        aggregator: SecAgg | None = None,
        *,
        adversary: str = "active",
        prepared: bool = False,
        journal: Callable[[int], Journal] = lambda _site: MemoryJournal(),
        **terms: Any,
    ) -> None:
        secret = Randomness.insecure_from_seed(1)
        numbers: dict[str, Any] = {"cohort_size": sites, "examples": 9, "rounds": 9, **terms}
        self.aggregator = aggregator or SecAgg()
        identities = [SigningKey.generate(secret.derive("identity", site)) for site in range(sites)]
        self.config = AggregationConfig(
            session=b"sixteen bytes id",
            ring=RING,
            length=4,
            federation_spec=FederationSpec(sites=sites, adversary=adversary, **numbers),  # type: ignore[arg-type]
            directory=KeyDirectory(tuple(identity.public for identity in identities)),
        )
        self.all_sites = range(sites)
        self.vectors = {
            site: RING.encode_signed(np.array([site + 1, 1 << site, 77, -site], np.int64))
            for site in self.all_sites
        }
        self._journal, self._identities, self.lives = journal, identities, 0
        self.prepared = prepared
        self._led: set[int] = set()
        self.restart()
        self.begin(0)

    def restart(self) -> None:
        """Every site loses what it held in memory; nothing it draws is drawn again."""
        self.lives += 1
        secret = Randomness.insecure_from_seed(self.lives)
        self.sites: dict[int, Any] = {
            site: self.aggregator.site_session(
                self.config,
                SiteContext(
                    site=site,
                    secret=secret.derive(site),
                    identity=self._identities[site],
                    journal=self._journal(site),
                ),
            )
            for site in self.all_sites
        }

    def begin(self, attempt: int) -> None:
        """Collect anew, in this attempt; between two prepared ones is that which prepares."""
        self.attempt = 2 * attempt + 1 if self.prepared else attempt
        self.is_ahead = False
        self.keys: dict[int, Any] = {}
        self.sealed: dict[int, Mapping[int, bytes]] = {}
        self.masked: dict[int, Words] = {}
        self.met: dict[int, set[int]] = {}
        self.seeds: Shareholders = defaultdict(dict)
        self.private: Shareholders = defaultdict(dict)

    @property
    def scope(self) -> AttemptLabel:
        return self.protocol.scope(self._round(self.attempt), self.attempt)

    def _round(self, attempt: int) -> int:
        """An attempt is prepared for the next round, and made again at the same."""
        return attempt if self.prepared else 0

    @property
    def protocol(self) -> ProtocolParameters:
        protocol: ProtocolParameters = self.sites[0]._protocol
        return protocol

    def ask(self, site: int, request: Message, attempt: int | None = None) -> bytes:
        number = self.attempt if attempt is None else attempt
        ask = SiteRequest(
            round=self._round(number), attempt=number, broadcast=encode(request), own=b""
        )
        reply: bytes = self.sites[site].handle(ask, lambda: RingVector(RING, self.vectors[site]))
        return reply

    # --- What a coordinator does -----------------------------------------------------------------

    def advertise(self, sites: Iterable[int] | None = None) -> dict[int, SignedKeys]:
        asked = list(self.all_sites if sites is None else sites)
        self.is_ahead = self.prepared and self.attempt not in self._led
        if self.is_ahead:
            self._led.add(self.attempt)
            self._lead_in(asked)
        else:
            self.keys |= {site: self._advertised(site, self.attempt) for site in asked}
        return self.keys

    def _advertised(self, site: int, attempt: int) -> Any:
        reply = self.ask(site, AdvertiseKeysRequest(attempt, COORDINATOR), attempt)
        return decode(reply, SignedKeys if self.protocol.is_active else Keys)

    def _lead_in(self, asked: list[int]) -> None:
        """The attempt before, honestly, up to its unmasking; `asked` send keys with vectors."""
        before = self.attempt - 1
        is_cohort = len(asked) >= self.protocol.floor
        members = asked if is_cohort else list(self.all_sites)
        keys = {site: self._advertised(site, before) for site in members}
        sealed = {site: self._shared(site, keys, before).sealed for site in members}
        for site in members:
            theirs = {peer: to[site] for peer, to in sealed.items() if site in to}
            tagging = COORDINATOR if site in asked else None
            reply = self.ask(site, MaskedVectorRequest(before, theirs, tagging), before)
            self.keys |= {site: decode(reply, Vector).next_keys} if tagging else {}
        self.survivors = tuple(sorted(members))
        self.agreed = {
            site: self._signed(site, self.survivors, before)
            for site in (members if self.protocol.is_active else ())
        }

    def share_one(self, site: int, roster: Mapping[int, Any]) -> Shares:
        """Have a site share its secrets of this attempt."""
        if not self.is_ahead:
            return self._shared(site, roster, self.attempt)
        before = self.attempt - 1
        request: Message = ConfirmedUnmaskRequest(before, self.agreed, dict(roster))
        if not self.protocol.is_active:
            others = {peer: keys for peer, keys in roster.items() if peer != site}
            request = UnmaskRequest(before, self.survivors, others)
        shares = decode(self.ask(site, request, before), Unmasking).next_shares
        assert shares is not None
        return shares

    def _shared(self, site: int, roster: Mapping[int, Any], attempt: int) -> Shares:
        request: Message = ShareKeysAmongAllRequest(attempt, dict(roster))
        if not self.protocol.is_active:
            others = {peer: keys for peer, keys in roster.items() if peer != site}
            request = ShareKeysRequest(attempt, others)
        return decode(self.ask(site, request, attempt), Shares)

    def share(self, roster: Mapping[int, SignedKeys], sites: Iterable[int] | None = None) -> None:
        for site in roster if sites is None else sites:
            self.sealed[site] = self.share_one(site, roster).sealed

    def pairs(self, site: int) -> tuple[KeyPair, KeyPair]:
        """The private halves of the keys that a site has sent for this attempt."""
        session = self.sites[site]
        state = session._prepared if self.is_ahead else session._state
        return state.sealing, state.masking

    def collect(self, sites: Iterable[int]) -> None:
        for site in sites:
            sealed = {s: to[site] for s, to in self.sealed.items() if site in to}
            self.collect_one(site, sealed)

    def collect_one(self, site: int, sealed: dict[int, bytes]) -> None:
        vector = decode(self.ask(site, MaskedVectorRequest(self.attempt, sealed)), Vector)
        self.met[site] = set(sealed)
        self.masked[site] = RING.unpack(vector.packed, self.config.length)

    def consent(self, sets: Mapping[int, Iterable[int]]) -> dict[int, bytes]:
        return {
            site: self._signed(site, sorted(chosen), self.attempt) for site, chosen in sets.items()
        }

    def _signed(self, site: int, survivors: Iterable[int], attempt: int) -> bytes:
        request = ConsistencyRequest(attempt, tuple(survivors))
        return decode(self.ask(site, request, attempt), ConsistencyCheck).signature

    def open(self, site: int, signatures: Mapping[int, bytes]) -> None:
        reply = decode(
            self.ask(site, ConfirmedUnmaskRequest(self.attempt, dict(signatures))), Unmasking
        )
        for peer, share in reply.seeds.items():
            self.seeds[peer][site] = share
        for peer, share in reply.keys.items():
            self.private[peer][site] = share

    def agree_and_open(self, chosen: Iterable[int], sites: Iterable[int] | None = None) -> None:
        """What an honest coordinator would do with `chosen` for survivors."""
        chosen = list(chosen)
        asked = chosen if sites is None else list(sites)
        signatures = self.consent(dict.fromkeys(asked, chosen))
        for site in asked:
            self.open(site, signatures)

    def up_to_vectors(self) -> None:
        """All sites, honestly, up to their masked vectors."""
        self.share(self.advertise())
        self.collect(self.all_sites)

    # --- What it can open -------------------------------------------------------------------------

    def true_sum(self, *chosen: int) -> list[int]:
        total = sum((self.vectors[site] for site in chosen), RING.zeros(4))
        return [word % (1 << RING.bits) for word in total.tolist()]

    def recovered_sum(self, *chosen: int) -> list[int]:
        """The sum over `chosen`, once the masks come off for which there are shares.

        Raises:
            ValueError: There are too few.
        """
        return self.view.sum_over(chosen)

    @property
    def view(self) -> AdversaryView:
        return AdversaryView(
            scope=self.scope,
            ring=RING,
            length=self.config.length,
            threshold=self.protocol.threshold,
            keys=self.keys,
            masked=self.masked,
            met=self.met,
            seeds=self.seeds,
            private=self.private,
        )

    # --- The man in the middle --------------------------------------------------------------------

    def impersonate(self, victim: int, roster: Mapping[int, Any], pairs: Pairs) -> list[int]:
        """Play all of the victim's peers, with key pairs that it was told are theirs."""
        told = {**roster, victim: self.keys[victim]}
        digest = b""
        if self.protocol.is_active:
            digest = Statements(self.protocol.directory, self.scope).roster_digest(told)
        shares = self.share_one(victim, told)
        junk = bytes(SHARE_BYTES) * 2
        forged, masks, seeds = {}, [], {}
        for peer, (sealing, masking) in pairs.items():
            site_attempt = SiteAttempt(self.protocol, self.scope, peer, digest)
            channel = Channel(site_attempt, sealing, roster[peer])
            seeds[peer] = channel.unseal(victim, told[victim], shares.sealed[peer])[:SHARE_BYTES]
            forged[peer] = channel.seal(victim, told[victim], junk)
            masks.append(pairwise(masking, told[victim].masking, self.scope, peer, victim))
        self.collect_one(victim, forged)
        words = self.masked[victim].copy()
        apply([*masks, Mask(self.view.recovered(seeds), subtract=True)], words)
        return [word % (1 << RING.bits) for word in words.tolist()]


def is_refused(
    code: str, attack: Callable[[MaliciousCoordinator], object], attacker: MaliciousCoordinator
) -> None:
    with pytest.raises(RefusalError) as refusal:
        attack(attacker)
    assert refusal.value.code == code


def nothing(*_arguments: object) -> None:
    """A check that lets everything pass."""
