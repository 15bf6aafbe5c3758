"""A federation whose network may do anything, and what must hold of it whatever it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
from attrs import define, evolve, field, frozen
from numpy.typing import NDArray

from cohortium.plugin import (
    AggregationConfig,
    FederationSpec,
    Journal,
    KeyDirectory,
    MemoryJournal,
    Message,
    MessageError,
    Randomness,
    RefusalError,
    Ring,
    RingSum,
    RingVector,
    SigningKey,
    SiteContext,
    SiteRequest,
    SiteSession,
    StageRequests,
    TooFewSitesError,
    decode,
    decode_either,
    encode,
)
from cohortium_secagg import SecAgg
from cohortium_secagg._keys import KeyPair
from cohortium_secagg._messages import (
    ACTIVE_REQUESTS,
    HONEST_BUT_CURIOUS_REQUESTS,
    AdvertiseKeysRequest,
    ConfirmedUnmaskRequest,
    ConsistencyCheck,
    ConsistencyRequest,
    Keys,
    MaskedVectorRequest,
    ShareKeysAmongAllRequest,
    Shares,
    SignedKeys,
    Unmasking,
    UnmaskRequest,
    Vector,
)
from cohortium_secagg._protocol_parameters import AttemptLabel
from tests.support.adversary_view import AdversaryView

Words: TypeAlias = NDArray[np.unsignedinteger[Any]]

EXCHANGES = {"honest-but-curious": 4, "active": 5}
"""How often an attempt asks, at most."""

REMEMBERED = 120
"""Envelopes that may come again."""


@frozen(eq=False)
class Envelope:
    """A message on its way: a request to `site`, or its reply to one.

    Attributes:
        site: Whom it goes to, or whom it is said to come from.
        ask: The request; of a reply, the one that it answers.
        reply: None for a request.
    """

    site: int
    ask: SiteRequest
    reply: bytes | None = None


@define(eq=False)
class Attempt:
    """What has happened in an attempt, and what was prepared for it.

    Attributes:
        sites: Those that are asked.
        view: What a curious coordinator has seen of it, after a full set-up.
        prepared: What it has seen of it, after shares that came with the attempt before.
        set_up: Sites that have begun a full set-up.
        sent: The requests that the coordinator made, by site.
        released: The vectors that left their sites' trainers.
        unmasked: Sites that have given shares.
        signed: Signatures for survivors.
        is_twisted: Whether a site answered what the coordinator had not asked it.
    """

    sites: frozenset[int] = frozenset()
    view: AdversaryView | None = None
    prepared: AdversaryView | None = None
    set_up: set[int] = field(factory=set)
    sent: set[tuple[int, int, bytes, bytes]] = field(factory=set)
    released: dict[int, Words] = field(factory=dict)
    unmasked: set[int] = field(factory=set)
    signed: dict[int, bytes] = field(factory=dict)
    is_twisted: bool = False

    @property
    def views(self) -> list[AdversaryView]:
        """Both views; no mask of one is a mask of the other."""
        return [view for view in (self.view, self.prepared) if view is not None]

    def view_of(self, site: int) -> AdversaryView:
        """Where belongs what `site` says."""
        view = self.view if site in self.set_up else self.prepared
        assert view is not None, "a site takes part without a set-up."
        return view


class AdversarialNetwork:
    """A coordinator and sites that keep to the protocol, and envelopes between them."""

    def __init__(
        self, aggregator: SecAgg, sites: int, *, bits: int = 20, length: int = 2, **terms: Any
    ) -> None:
        self.aggregator = aggregator
        self._secret = Randomness.insecure_from_seed(1)
        self._identities = [
            SigningKey.generate(self._secret.derive("identity", k)) for k in range(sites)
        ]
        self._journals: list[Journal] = [MemoryJournal() for _ in range(sites)]
        self.config = AggregationConfig(
            session=b"sixteen bytes id",
            ring=Ring(bits),
            length=length,
            federation_spec=FederationSpec(
                sites=sites, cohort_size=sites, examples=9, rounds=1 << 20, **terms
            ),
            directory=KeyDirectory(tuple(identity.public for identity in self._identities)),
        )
        self.coordinator = aggregator.coordinator_session(
            self.config, self._secret.derive("coordinator")
        )
        self._lives, self._over = [0] * sites, [-1] * sites
        self.sites: list[SiteSession] = [self._begun(site) for site in range(sites)]
        self.fresh: list[Envelope] = []
        self.seen: list[Envelope] = []
        self.attempts: dict[int, Attempt] = {}
        self.round, self.attempt, self.exchanges = 0, -1, 0
        self.stage, self.is_short = "", False
        self.total: RingSum | None = None
        self.is_over = True

    def _begun(self, site: int) -> SiteSession:
        secret = self._secret.derive(site, self._lives[site])
        site_context = SiteContext(
            site=site,
            secret=secret,
            identity=self._identities[site],
            journal=self._journals[site],
        )
        return self.aggregator.site_session(self.config, site_context)

    @property
    def is_active(self) -> bool:
        return self.config.federation_spec.adversary == "active"

    @property
    def protocol(self) -> Any:
        return self.sites[0]._protocol  # type: ignore[attr-defined]

    @property
    def floor(self) -> int:
        """The least number of sites in a sum, as `docs/secagg.md` has it."""
        federation_spec, threshold = self.config.federation_spec, int(self.protocol.threshold)
        return max(threshold, federation_spec.min_contributors, federation_spec.max_colluding + 2)

    # --- What parties do ------------------------------------------------------------------------

    def open(self, sites: Iterable[int], *, rounds: int | None = None) -> None:
        """Begin an attempt whatever became of the one before, at the next round after a sum."""
        later = int(self.total is not None) if rounds is None else rounds
        self.round, self.attempt, self.exchanges = self.round + later, self.attempt + 1, 0
        self.stage, self.is_short = "", False
        self.total, self.is_over = None, False
        asked = sorted(sites)
        attempt = self.attempts.setdefault(self.attempt, Attempt())
        attempt.sites, attempt.view = frozenset(asked), self._view(self.round, self.attempt)
        self.coordinator.begin_attempt(self.round, self.attempt, asked)

    def _view(self, round_: int, attempt: int) -> AdversaryView:
        return AdversaryView(
            scope=AttemptLabel(self.config.session, round_, attempt),
            ring=self.config.ring,
            length=self.config.length,
            threshold=self.protocol.threshold,
        )

    def move_on(self) -> bool:
        """Let the coordinator ask what comes next; whether it asks anything."""
        requests: StageRequests = self.coordinator.next_requests()
        self.exchanges += bool(requests)
        if not requests:
            self._conclude()
            return False
        self.stage = requests.stage
        self.is_short |= self.exchanges == 1 and self.stage == "vectors"
        most = EXCHANGES[self.config.federation_spec.adversary] - 2 * self.is_short
        assert self.exchanges <= most, "it never ends."
        for site, own in requests.per_site.items():
            ask = SiteRequest(
                round=self.round, attempt=self.attempt, broadcast=requests.broadcast, own=own
            )
            self.attempts[self.attempt].sent.add((site, self.round, ask.broadcast, own))
            self.fresh.append(Envelope(site, ask))
        return True

    def deliver(self, envelope: Envelope) -> None:
        """Bring a envelope to its reader, who may turn it down."""
        self.seen.append(envelope)
        del self.seen[:-REMEMBERED]
        if envelope.reply is not None:
            with suppress(MessageError):
                self.coordinator.receive(envelope.site, envelope.reply)
            return
        ask = envelope.ask
        try:
            reply = self.sites[envelope.site].handle(ask, lambda: self._release(envelope.site, ask))
        except (MessageError, RefusalError):
            return
        self._note(envelope.site, ask, reply)
        self.fresh.append(Envelope(envelope.site, ask, reply))

    def deliver_requests(self, lost: Iterable[int] = ()) -> None:
        """Bring the requests that are on their way, and keep the replies back."""
        envelopes, self.fresh = self.fresh, []
        for envelope in envelopes:
            if envelope.reply is not None:
                self.fresh.append(envelope)
            elif envelope.site not in lost:
                self.deliver(envelope)

    def deliver_all(self, lost: Iterable[int] = ()) -> None:
        """Bring every envelope that is on its way, and the replies, but for those of `lost`."""
        while self.fresh:
            envelope = self.fresh.pop(0)
            if envelope.site not in lost:
                self.deliver(envelope)

    def restart(self, site: int) -> None:
        """A site loses all but its identity and its journal."""
        self._lives[site] += 1
        masked = [
            k
            for k, attempt in self.attempts.items()
            if any(site in view.masked for view in attempt.views)
        ]
        self._over[site] = max(masked, default=-1)
        self.sites[site] = self._begun(site)

    def lie(self, told: Mapping[int, Iterable[int]]) -> None:
        """Name each site survivors of its own; show it every signature that there is."""
        attempt = self.attempts[self.attempt]
        for site, survivors in told.items():
            kind = ConsistencyRequest if self.is_active else UnmaskRequest
            self._forge(site, kind(self.attempt, tuple(sorted(survivors))))
        for site in told if self.is_active else ():
            self._forge(site, ConfirmedUnmaskRequest(self.attempt, dict(attempt.signed)))

    def set_up_again(self, some: Iterable[int], others: Iterable[int]) -> None:
        """Have `some` begin the attempt anew, up to vectors, on a roster with the prepared others.

        They are told the keys that the others have sent for this attempt before.
        """
        attempt, some = self.attempts[self.attempt], sorted(some)
        pair = KeyPair(b"the coordinator of all attempts.")
        for site in some:
            self._forge(site, AdvertiseKeysRequest(self.attempt, pair.public))
        fresh = {} if attempt.view is None else attempt.view.keys
        told = {site: fresh[site] for site in some if site in fresh}
        if attempt.prepared is not None:
            told |= {site: attempt.prepared.keys[site] for site in others}
        sealed: dict[int, dict[int, bytes]] = {}
        for site in some:
            reply = self._forge(site, ShareKeysAmongAllRequest(self.attempt, dict(told)))
            if reply is not None:
                sealed[site] = decode(reply, Shares).sealed
        for site in some:
            theirs = {peer: to[site] for peer, to in sealed.items() if site in to}
            self._forge(site, MaskedVectorRequest(self.attempt, theirs))

    def prepare_apart(self, rosters: Mapping[int, Iterable[int]]) -> dict[int, dict[int, bytes]]:
        """Unmask, and show each site another roster of the next attempt; what each has sealed."""
        attempt = self.attempts[self.attempt]
        following = self.attempts.setdefault(self.attempt + 1, Attempt()).prepared
        keys = {} if following is None else following.keys
        sealed: dict[int, dict[int, bytes]] = {}
        for site, members in rosters.items():
            told = {peer: keys[peer] for peer in members if peer in keys}
            request = ConfirmedUnmaskRequest(self.attempt, dict(attempt.signed), told)
            reply = self._forge(site, request)
            shares = None if reply is None else decode(reply, Unmasking).next_shares
            if shares is not None:
                sealed[site] = shares.sealed
        return sealed

    def mask_apart(self, sealed: Mapping[int, Mapping[int, bytes]], groups: Any) -> None:
        """Have each site mask with those of its group that have sealed shares for it."""
        for site in sealed:
            theirs = {
                peer: to[site]
                for peer, to in sealed.items()
                if site in to and groups[peer] == groups[site]
            }
            self._forge(site, MaskedVectorRequest(self.attempt, theirs))

    def _forge(self, site: int, request: Message) -> bytes | None:
        """Ask a site for something; its reply, which does not reach the coordinator, if any."""
        ask = SiteRequest(
            round=self.round, attempt=self.attempt, broadcast=encode(request), own=b""
        )
        count = len(self.fresh)
        self.deliver(Envelope(site, ask))
        return self.fresh.pop().reply if len(self.fresh) > count else None

    def _release(self, site: int, ask: SiteRequest) -> RingVector:
        released = self.attempts[ask.attempt].released
        assert site not in released, "a site released two vectors in an attempt."
        stream = self._secret.stream("vector", site, ask.attempt)
        ring = self.config.ring
        data = stream.bytes(self.config.length * ring.dtype.itemsize)
        released[site] = np.frombuffer(data, ring.dtype)
        return RingVector(ring, released[site])

    # --- What must hold -------------------------------------------------------------------------

    def _note(self, site: int, ask: SiteRequest, reply: bytes) -> None:
        attempt = self.attempts[ask.attempt]
        assert ask.attempt > self._over[site], "a site took part again in what its journal ended."
        if (site, ask.round, ask.broadcast, ask.own) not in attempt.sent:
            attempt.is_twisted = True
        request = decode_either(
            ask.own or ask.broadcast,
            *(ACTIVE_REQUESTS if self.is_active else HONEST_BUT_CURIOUS_REQUESTS),
        )
        message = decode_either(
            reply, Keys, SignedKeys, Shares, Vector, ConsistencyCheck, Unmasking
        )
        if isinstance(request, AdvertiseKeysRequest):
            attempt.set_up.add(site)
        attempt.view_of(site).note(site, request, message)
        self._note_next(site, ask, request, message, attempt)
        if isinstance(message, ConsistencyCheck):
            attempt.signed[site] = message.signature
        if isinstance(message, Unmasking):
            assert not message.seeds.keys() & message.keys.keys(), "both kinds of share of one."
            assert site not in attempt.unmasked, "a site gave shares twice in an attempt."
            attempt.unmasked.add(site)
            self._check_secrecy(attempt)

    def _note_next(
        self, site: int, ask: SiteRequest, request: Message, message: Message, attempt: Attempt
    ) -> None:
        """What an answer has for the next attempt, which was drawn for the next round."""
        told: Message | None = None
        if isinstance(message, Vector):
            told = message.next_keys
        elif isinstance(message, Unmasking):
            told = message.next_shares
        if told is None:
            return
        following = self.attempts.setdefault(ask.attempt + 1, Attempt())
        if following.prepared is None:
            following.prepared = self._view(ask.round + 1, ask.attempt + 1)
        following.prepared.note(site, request, told)
        following.is_twisted |= attempt.is_twisted

    def _check_secrecy(self, attempt: Attempt) -> None:
        """Nothing but one sum can be had, over as many sites as the rules say.

        A trusted coordinator that learns from forged requests is not in the model.
        """
        if attempt.is_twisted and not self.is_active:
            return
        federation_spec = self.config.federation_spec
        for helping in combinations(range(federation_spec.sites), federation_spec.max_colluding):
            colluding = frozenset(helping)
            opened = [group for view in attempt.views for group in view.openable(colluding)]
            assert len(opened) <= 1, "more than one sum can be had."
            for group in opened:
                assert len(group) >= 2, "a site's vector can be had."
                assert len(group | colluding) >= self.floor, "a sum over too few can be had."

    def _conclude(self) -> None:
        try:
            total = self.coordinator.sum()
        except TooFewSitesError:
            assert self.total is None, "a sum was taken back."
        else:
            self._check_sum(total)
            self.total = total
        self.is_over = True

    def _check_sum(self, total: RingSum) -> None:
        attempt = self.attempts[self.attempt]
        assert set(total.contributors) <= attempt.sites & attempt.released.keys()
        assert len(total.contributors) >= self.floor, "a sum over too few."
        assert total.words.tolist() == self._sum(total.contributors), "a wrong sum."
        assert self.total is None or total.contributors == self.total.contributors

    def _sum(self, sites: Iterable[int]) -> list[int]:
        ring, released = self.config.ring, self.attempts[self.attempt].released
        words = sum((released[site] for site in sites), ring.zeros(self.config.length))
        return [word % (1 << ring.bits) for word in words.tolist()]

    def check_attack(self) -> None:
        """The attacker is no straw man: alone, it has the very sum that the coordinator has."""
        assert self.total is not None
        attempt = self.attempts[self.attempt]
        view = attempt.view_of(self.total.contributors[0])
        opened = [group for one in attempt.views for group in one.openable()]
        assert opened == [frozenset(self.total.contributors)]
        assert view.sum_over(self.total.contributors) == self._sum(self.total.contributors)


def elsewhere(envelope: Envelope, *, site: int | None = None, later: int = 0) -> Envelope:
    """The same bytes, said to be for or from another, or of another round."""
    ask = evolve(envelope.ask, round=max(0, envelope.ask.round + later))
    return Envelope(envelope.site if site is None else site, ask, envelope.reply)


def damaged(envelope: Envelope, change: Any, *, whole: bool = False) -> Envelope:
    """The envelope with its bytes changed: of a request, the part that is the site's own if any."""
    if envelope.reply is not None:
        return Envelope(envelope.site, envelope.ask, change(envelope.reply))
    if envelope.ask.own and not whole:
        return Envelope(envelope.site, evolve(envelope.ask, own=change(envelope.ask.own)))
    return Envelope(envelope.site, evolve(envelope.ask, broadcast=change(envelope.ask.broadcast)))
