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
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cohortium.plugin import RefusalError, decode_either, encode
from cohortium_secagg._messages import (
    REQUESTS,
    AskKeys,
    AskShares,
    AskUnmasking,
    AskVector,
    Request,
    most_bytes,
)
from cohortium_secagg._party import Advertised, Masked, Party, Shared

if TYPE_CHECKING:
    from collections.abc import Callable

    from cohortium.plugin import Ask, Member, Message, RingVector
    from cohortium_secagg._rules import Rules


class SecAggSite:
    """Answers one attempt after another.

    Guarantees:
        A request is answered at most once: its state is spent before it is looked at further, so
        that a request that is refused ends the attempt for this site.
        An attempt's secrets are forgotten with its unmasking, or when the next one begins.
        It opens at most one sum an attempt, and then either a neighbour's mask seed or its
        masking key, never both.
    """

    def __init__(self, rules: Rules, member: Member) -> None:
        """Take the run's rules, and what this site has to itself."""
        self._rules = rules
        self._member = member
        self._latest = (-1, -1)
        self._state: Advertised | Shared | Masked | None = None

    def answer(self, ask: Ask, vector: Callable[[], RingVector]) -> bytes:
        """The reply to one request.

        Raises:
            RefusalError: An honest coordinator would not have sent it.
            MessageError: It is malformed.
        """
        limit = most_bytes(self._rules.setting.cohort.sites)
        request: Request = decode_either(ask.own or ask.common, *REQUESTS, limit=limit)
        if request.attempt != ask.attempt:
            raise RefusalError("attempt", "the aggregator's request is of another attempt.")
        if isinstance(request, AskKeys):
            return encode(self._begin(ask))
        if (ask.attempt, ask.round) != self._latest:
            raise RefusalError("attempt", "the request is of an attempt that was not begun here.")
        return encode(self._go_on(request, vector))

    def _begin(self, ask: Ask) -> Message:
        if ask.attempt <= self._latest[0]:
            raise RefusalError("order", "the attempt has begun already.")
        self._latest = (ask.attempt, ask.round)
        party = Party(self._rules, self._rules.scope(ask.round, ask.attempt), self._member.site)
        secret = self._member.secret.fork(ask.round, ask.attempt, self._member.site)
        self._state = Advertised.fresh(party, secret)
        return self._state.keys

    def _go_on(self, request: Request, vector: Callable[[], RingVector]) -> Message:
        state = self._state
        reply: Message
        match state, request:
            case Advertised(), AskShares():
                self._state = None
                self._state, reply = state.share(request)
            case Shared(), AskVector():
                self._state = None
                self._state, reply = state.mask(request, vector)
            case Masked(), AskUnmasking():
                self._state = None
                reply = state.unmask(request)
            case _:
                raise RefusalError("order", f"{type(request).__name__} is not due now.")
        return reply
