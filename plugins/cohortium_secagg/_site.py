"""A site's session: it masks its vector, and refuses what an honest coordinator would not ask.

A refusal carries one of these codes:

    order          a stage out of its order, or a second time
    attempt        an own part, or a whole request, of another attempt
    neighbourhood  too few neighbours, too many, the site itself, or a site that cannot be
    small-order    a public key of small order
    sealed         a share that does not authenticate
    vector         a vector of another length or ring than was agreed
    survivors      a set without the site itself, or with sites that cannot be in it
    floor          a set, or the part of it around this site, that is too small
    journal        what must be remembered could not be made durable

and, where the coordinator may lie, one of these:

    signature      keys that their site has not signed for this attempt, or not this site's own
    consent        survivors that fewer than `threshold` sites have signed for
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from cohortium.plugin import RefusalError, decode_either, encode
from cohortium_secagg._consent import Consented, Witness
from cohortium_secagg._memory import Memory
from cohortium_secagg._messages import (
    TRUSTING,
    WARY,
    AskConsent,
    AskKeys,
    AskOpening,
    AskShares,
    AskSharesAmong,
    AskUnmasking,
    AskVector,
    Request,
    Unmasking,
    Vector,
    most_bytes,
)
from cohortium_secagg._party import Advertised, Masked, Party, Shared
from cohortium_secagg._statements import Statements

if TYPE_CHECKING:
    from collections.abc import Callable

    from cohortium.plugin import Message, RingVector, SiteContext, SiteRequest
    from cohortium_secagg._rules import Rules, Scope


State: TypeAlias = Advertised | Shared | Masked | Consented
"""What a site holds after a request: of each kind, one answer can come."""

DUE = (
    (Advertised, AskShares | AskSharesAmong),
    (Shared, AskVector),
    (Masked, AskUnmasking | AskConsent),
    (Consented, AskOpening),
)
"""Which requests are due in which state."""


class SecAggSite:
    """Answers one attempt after another.

    Guarantees:
        A request is answered at most once: its state is spent before it is looked at further, so
        that a request that is refused ends the attempt for this site.
        An attempt's secrets are forgotten with its unmasking, or when the next one begins.  (The
        last reference goes; Python does not overwrite the memory.)
        That it has masked, or unmasked, is durable before the reply.  After a restart it takes no
        further part in any attempt in which it had masked, nor in an earlier one.
        It opens at most one sum an attempt, and then either a neighbour's mask seed or its
        masking key, never both.
    """

    def __init__(self, rules: Rules, member: SiteContext, *, threads: int) -> None:
        """Take the run's rules, what this site has to itself, and its threads."""
        self._rules = rules
        self._threads = threads
        rules.require_identity(member)
        self._member = member
        self._memory = Memory(member.journal, rules.setting.session)
        self._latest = self._memory.latest
        self._state: State | None = None

    def handle(self, request: SiteRequest, release: Callable[[], RingVector]) -> bytes:
        """The reply to one request.

        Raises:
            RefusalError: An honest coordinator would not have sent it.
            MessageError: It is malformed.
        """
        limit = most_bytes(self._rules.setting.cohort.sites)
        kinds = WARY if self._rules.is_active else TRUSTING
        message: Request = decode_either(request.own or request.broadcast, *kinds, limit=limit)
        if message.attempt != request.attempt:
            raise RefusalError("attempt", "the aggregator's request is of another attempt.")
        if isinstance(message, AskKeys):
            return encode(self._begin(request, message))
        if (request.attempt, request.round) != self._latest:
            raise RefusalError("attempt", "the request is of an attempt that was not begun here.")
        return encode(self._go_on(message, release))

    def _require_later(self, ask: SiteRequest) -> None:
        """Refuse to begin an attempt again, or an older one."""
        if ask.attempt <= self._latest[0]:
            raise RefusalError("order", "the attempt has begun already.")

    def _begin(self, ask: SiteRequest, request: AskKeys) -> Message:
        self._require_later(ask)
        self._latest = (ask.attempt, ask.round)
        scope, site = self._rules.scope(ask.round, ask.attempt), self._member.site
        party = Party(self._rules, scope, site, threads=self._threads)
        secret = self._member.secret.derive(ask.round, ask.attempt, site)
        self._state = None
        self._state = Advertised.fresh(party, secret, coordinator=request.tagging)
        if not self._rules.is_active:
            return self._state.keys
        return self._witness(party.scope).sign(self._state)

    def _witness(self, scope: Scope) -> Witness:
        """What signs and judges for this site, where the coordinator may lie."""
        assert self._member.identity is not None
        return Witness(self._member.identity, Statements(self._rules.directory, scope))

    def _go_on(self, request: Request, vector: Callable[[], RingVector]) -> Message:
        state, reply = self._step(self._take(request), request, vector)
        scope = self._rules.scope(self._latest[1], self._latest[0])
        if isinstance(reply, Vector):
            self._memory.keep(scope, "masked")
        elif isinstance(reply, Unmasking):
            self._memory.keep(scope, "unmasked")
        self._state = state
        return reply

    def _take(self, request: Request) -> State:
        """The state in which `request` is due; it is spent, whatever comes of the request."""
        state = self._state
        for due, kinds in DUE:
            if isinstance(state, due) and isinstance(request, kinds):
                self._state = None
                return state
        raise RefusalError("order", f"{type(request).__name__} is not due now.")

    def _step(
        self, state: State, request: Request, vector: Callable[[], RingVector]
    ) -> tuple[State | None, Message]:
        match state, request:
            case Advertised(), AskShares():
                return state.share(state.party, request.neighbours)
            case Advertised(), AskSharesAmong():
                return state.share(*self._witness(state.party.scope).admit(state, request))
            case Shared(), AskVector():
                return state.mask(request, vector)
            case Masked(), AskUnmasking():
                return None, state.unmask(request)
            case Masked(), AskConsent():
                return self._witness(state.party.scope).consent(state, request)
            case Consented(), AskOpening():
                return None, state.open(request)
        raise AssertionError(state, request)
