"""A site's session: it masks its vector, and refuses dishonest requests.

An honest coordinator never sends such a request.  A refusal carries one of these codes:

    out-of-order   a stage out of its order, or a second time
    attempt        an own part, or a whole request, that belongs to another attempt
    neighbourhood  too few neighbours, too many, the site itself, or an impossible site
    small-order    a public key of small order
    sealed         a share that does not authenticate
    vector         a vector of another length or ring than was agreed
    survivors      a set without the site itself, or with sites that cannot be in it
    floor          a set, or the part of it around this site, that is too small
    journal        a necessary entry could not be made durable

and, where the coordinator may lie, one of these:

    signature      keys that their site has not signed for this attempt, or not this site's own
    consent        survivors that fewer than `threshold` sites have signed for
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakValueDictionary

from cohortium.plugin import RefusalCode, RefusalError, decode_either, encode
from cohortium_secagg._codes import SecAggRefusalCode
from cohortium_secagg._consistency_check import Confirmed, SurvivorSigner
from cohortium_secagg._messages import (
    ACTIVE_REQUESTS,
    HONEST_BUT_CURIOUS_REQUESTS,
    AdvertiseKeysRequest,
    ConfirmedUnmaskRequest,
    ConsistencyRequest,
    MaskedVectorRequest,
    Request,
    ShareKeysAmongAllRequest,
    ShareKeysRequest,
    Unmasking,
    UnmaskRequest,
    Vector,
    max_message_bytes,
)
from cohortium_secagg._site_journal import AnsweredAttempts
from cohortium_secagg._site_states import Advertised, Masked, Shared, SiteAttempt
from cohortium_secagg._statements import Statements

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cohortium.plugin import Message, RingVector, SiteContext, SiteId, SiteRequest
    from cohortium_secagg._keys import KnownAgreements
    from cohortium_secagg._messages import Keys, Shares, SignedKeys
    from cohortium_secagg._protocol_parameters import AttemptLabel, ProtocolParameters


State: TypeAlias = Advertised | Shared | Masked | Confirmed
"""State of a site after a request.  Each kind of state allows one answer."""

Prepared: TypeAlias = Advertised | Shared
"""State of a site in the next attempt, while this one runs."""

DUE = (
    (Advertised, ShareKeysRequest | ShareKeysAmongAllRequest),
    (Shared, MaskedVectorRequest),
    (Masked, UnmaskRequest | ConsistencyRequest),
    (Confirmed, ConfirmedUnmaskRequest),
)
"""Requests that are due in each state."""


class SecAggSite:
    """Session that answers one attempt after another.

    Guarantees:
        A site answers a request at most once.  It spends its state before it looks at the request
        further, so a refused request ends the attempt for this site.
        A site forgets an attempt's secrets with its unmasking, or when the next attempt begins.
        (It drops the last reference.  Python does not overwrite the memory.)
        It draws the secrets of the next attempt with its vector, if it is asked to.  They serve
        the next attempt at the next round alone, and at most once.  A full set-up of any attempt
        drops them, and they are never written.
        The fact that it has masked, or unmasked, is durable before the reply.  After a restart it
        takes no further part in any attempt in which it had masked, nor in an earlier one.
        It opens at most one sum an attempt.  For that sum it gives either a neighbour's mask seed
        or its masking key, never both.
    """

    def __init__(
        self, protocol: ProtocolParameters, site_context: SiteContext, *, threads: int
    ) -> None:
        """Take the run's parameters, this site's private context, and its threads."""
        self._protocol = protocol
        self._threads = threads
        protocol.require_identity(site_context)
        self._member = site_context
        self._known: KnownAgreements = site_context.shared.setdefault(
            "secagg agreements", WeakValueDictionary()
        )
        self._answered = AnsweredAttempts(site_context.journal, protocol.config.session)
        self._latest = self._answered.latest
        self._state: State | None = None
        self._prepared: Prepared | None = None

    def handle(self, request: SiteRequest, release: Callable[[], RingVector]) -> bytes:
        """Return the reply to one request.

        Raises:
            RefusalError: An honest coordinator would not have sent it.
            MessageError: The request is malformed.
        """
        limit = max_message_bytes(self._protocol.config.federation_spec.sites)
        kinds = ACTIVE_REQUESTS if self._protocol.is_active else HONEST_BUT_CURIOUS_REQUESTS
        message: Request = decode_either(request.own or request.broadcast, *kinds, limit=limit)
        if message.attempt != request.attempt:
            raise RefusalError(
                SecAggRefusalCode.ATTEMPT, "the aggregator's request is of another attempt."
            )
        if isinstance(message, AdvertiseKeysRequest):
            return encode(self._begin(request, message))
        self._enter_prepared(request, message)
        if (request.attempt, request.round) != self._latest:
            raise RefusalError(
                SecAggRefusalCode.ATTEMPT, "the request is of an attempt that was not started here."
            )
        return encode(self._go_on(message, release))

    def _require_later(self, ask: SiteRequest) -> None:
        """Refuse to begin an attempt again, or an older one."""
        if ask.attempt <= self._latest[0]:
            raise RefusalError(RefusalCode.OUT_OF_ORDER, "the attempt has started already.")

    def _begin(self, ask: SiteRequest, request: AdvertiseKeysRequest) -> Message:
        self._require_later(ask)
        self._latest = (ask.attempt, ask.round)
        self._forget()
        scope = self._protocol.scope(ask.round, ask.attempt)
        self._state = self._advertised(scope, request.tagging, "set-up")
        return self._public_keys(self._state)

    def _forget(self) -> None:
        """Drop all secrets, of the attempt before and of a prepared one."""
        self._state = self._prepared = None

    def _enter_prepared(self, ask: SiteRequest, request: Request) -> None:
        """Begin the prepared attempt if `request` is its first one."""
        prepared = self._prepared
        if (
            isinstance(request, MaskedVectorRequest)
            and isinstance(prepared, Shared)
            and prepared.scope == self._protocol.scope(ask.round, ask.attempt)
        ):
            self._latest = (ask.attempt, ask.round)
            self._forget()
            self._state = prepared

    def _advertised(self, scope: AttemptLabel, tagging: bytes, use: str) -> Advertised:
        """Draw the keys of an attempt, for one `use` of this site's secrets."""
        site = self._member.site
        site_attempt = SiteAttempt(self._protocol, scope, site, threads=self._threads)
        secret = self._member.secret.derive(use, scope.round, scope.attempt, site)
        return Advertised.fresh(site_attempt, secret, coordinator=tagging, known=self._known)

    def _public_keys(self, state: Advertised) -> Keys | SignedKeys:
        if not self._protocol.is_active:
            return state.keys
        return self._signer(state.site_attempt.scope).sign(state)

    def _signer(self, scope: AttemptLabel) -> SurvivorSigner:
        """Return this site's signer, where the coordinator may lie."""
        assert self._member.identity is not None
        return SurvivorSigner(self._member.identity, Statements(self._protocol.directory, scope))

    def _go_on(self, request: Request, vector: Callable[[], RingVector]) -> Message:
        state, prepared, reply = self._step(*self._take(request), request, vector)
        scope = self._protocol.scope(self._latest[1], self._latest[0])
        if isinstance(reply, Vector):
            self._answered.keep(scope, "masked")
        elif isinstance(reply, Unmasking):
            self._answered.keep(scope, "unmasked")
        self._state, self._prepared = state, prepared
        return reply

    def _take(self, request: Request) -> tuple[State, Prepared | None]:
        """Return the state in which `request` is due and the prepared one, and spend both.

        They are spent for any outcome of the request.
        """
        state, prepared = self._state, self._prepared
        for due, kinds in DUE:
            if isinstance(state, due) and isinstance(request, kinds):
                self._forget()
                return state, prepared
        raise RefusalError(RefusalCode.OUT_OF_ORDER, f"{type(request).__name__} is not due now.")

    def _step(
        self,
        state: State,
        prepared: Prepared | None,
        request: Request,
        vector: Callable[[], RingVector],
    ) -> tuple[State | None, Prepared | None, Message]:
        """Return the next state, the state in the next attempt, and the reply."""
        match state, request:
            case Advertised(), ShareKeysRequest():
                shared, shares = state.share(state.site_attempt, request.neighbours)
                return shared, None, shares
            case Advertised(), ShareKeysAmongAllRequest():
                shared, shares = self._share_among_all(state, request.roster)
                return shared, None, shares
            case Shared(), MaskedVectorRequest():
                advertised, keys = self._advertise_next(state.scope, request.next_tagging)
                masked, vector_reply = state.mask(request, vector, keys)
                return masked, advertised, vector_reply
            case Masked(), UnmaskRequest():
                following, next_shares = self._share_next(prepared, request)
                return None, following, state.unmask(request, next_shares)
            case Masked(), ConsistencyRequest():
                confirmed, check = self._signer(state.site_attempt.scope).consent(state, request)
                return confirmed, prepared, check
            case Confirmed(), ConfirmedUnmaskRequest():
                following, next_shares = self._share_next(prepared, request)
                return None, following, state.open(request, next_shares)
        raise AssertionError(state, request)

    def _share_among_all(
        self, state: Advertised, roster: Mapping[SiteId, SignedKeys]
    ) -> tuple[Shared, Shares]:
        return state.share(*self._signer(state.site_attempt.scope).admit(state, roster))

    def _advertise_next(
        self, scope: AttemptLabel, tagging: bytes | None
    ) -> tuple[Advertised | None, Keys | SignedKeys | None]:
        """Draw keys for the attempt after `scope`, if the coordinator sends its own."""
        if tagging is None:
            return None, None
        state = self._advertised(scope.following, tagging, "prepared")
        return state, self._public_keys(state)

    def _share_next(
        self, prepared: Prepared | None, request: UnmaskRequest | ConfirmedUnmaskRequest
    ) -> tuple[Shared | None, Shares | None]:
        """Share the secrets of the next attempt, if `request` also asks for that."""
        match request:
            case UnmaskRequest(next_neighbours=dict(neighbours)):
                state = _require_advertised(prepared)
                return state.share(state.site_attempt, neighbours)
            case ConfirmedUnmaskRequest(next_roster=dict(roster)):
                return self._share_among_all(_require_advertised(prepared), roster)
        return None, None


def _require_advertised(prepared: Prepared | None) -> Advertised:
    """Refuse to share for an attempt for which this site has sent no keys."""
    if not isinstance(prepared, Advertised):
        raise RefusalError(
            RefusalCode.OUT_OF_ORDER, "this site has sent no keys of the next attempt."
        )
    return prepared
