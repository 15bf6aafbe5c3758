"""The contract of an `Aggregator`: its contributors' exact sum, or an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import evolve

from cohortium.errors import StudyError
from cohortium.testing.aggregation_harness import AggregationHarness, harnesses
from cohortium.testing.contract import Check, ensure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cohortium.roles.protocols import Aggregator
    from cohortium.roles.values import SiteId, SiteRequest
    from cohortium.testing.aggregation_harness import Fault

JUNK = np.random.default_rng(0).bytes(61)
"""Bytes that nobody sent."""


def check_exact_sum(aggregator: Aggregator) -> None:
    """If all sites reply, all are in the sum.

    Each site trains once.
    """
    for play in harnesses(aggregator):
        who = play.attempt()
        ensure(
            who is not None and set(who) == set(play.sites),
            f"{len(play.sites)} sites answered everything, and the sum was over {who}; without a "
            "dropout every site contributes.",
        )
        ensure(
            set(play.calls.values()) == {1},
            f"sites were made to train {sorted(set(play.calls.values()))} times in one attempt; "
            "call `parameters` once, when a vector is due.",
        )


def check_dropouts(aggregator: Aggregator) -> str | None:
    """Dropouts at any stage give an exact sum, or `TooFewSitesError`."""
    play = harnesses(aggregator)[-1]
    play.attempt()
    sites, survived = list(play.sites), 0
    for stage in range(play.stages):
        for number in (1, 2, len(sites) - 1, len(sites)):
            gone = set(sites[:number])
            survived += number == 1 and play.attempt(_losing(gone, since=stage)) is not None
            play.attempt(_losing(gone, since=stage, until=stage))
    return None if survived else "no dropout is survived at any stage"


def check_min_sites(aggregator: Aggregator) -> None:
    """Below the study's `min_contributors` nothing is released."""
    play = _first_of_eight(aggregator, min_contributors=7)
    who = play.attempt(_losing({0, 3}, since=0))
    ensure(
        who is None,
        f"min_contributors is 7 and a sum over {who} was released; hold it as a floor.",
    )


def check_secrecy(aggregator: Aggregator) -> str | None:
    """The declared bounds on sums and dropouts hold.

    The coordinator opens no smaller sum, and every dropout within the bound leaves a sum.
    """
    play = _first_of_eight(aggregator, min_contributors=4)
    confidentiality = aggregator.confidentiality(play.config.federation_spec)
    if confidentiality is None:
        return "not needed: the coordinator sees every release"
    least, sites = confidentiality.min_contributors, list(play.sites)
    ensure(
        least >= play.config.federation_spec.min_contributors,
        f"confidentiality() says that a sum over {least} sites may be opened, below "
        "min_contributors; "
        f"hold it.",
    )
    play.attempt()
    for stage in range(play.stages):
        for number in (confidentiality.max_dropouts, len(sites) - least + 1):
            who = play.attempt(_losing(set(sites[:number]), since=stage))
            ensure(
                who is not None or number > confidentiality.max_dropouts,
                f"confidentiality() says that {number} dropouts are survived, and with as many at "
                f"stage "
                f"{stage} there was no sum.",
            )
            ensure(
                who is None or len(who) >= least,
                f"confidentiality() says that no sum over fewer than {least} sites is opened, and "
                f"there was "
                f"one over {who}.",
            )
    return None


def check_garbage_replies(aggregator: Aggregator) -> None:
    """A damaged reply drops its site, without a wrong sum or exception."""
    play = harnesses(aggregator)[-1]
    play.attempt()
    for stage in range(play.stages):
        for damage in (b"", JUNK), (JUNK,), ("cut",), ("longer",):
            play.attempt(_damaging(2, stage, damage))


def check_repeated_replies(aggregator: Aggregator) -> None:
    """A reply that arrives twice counts once."""
    play = harnesses(aggregator)[-1]
    play.attempt(lambda _stage, _site, reply: (reply, reply))


def check_unasked_replies(aggregator: Aggregator) -> None:
    """A reply of a site that was not asked does not count."""
    play = harnesses(aggregator)[-1]
    stranger: SiteId = 10_000

    def fault(_stage: int, site: SiteId, reply: bytes) -> Sequence[bytes]:
        if site == 0:
            play._receive(stranger, reply)  # noqa: SLF001 - the harness is ours
        return (reply,)

    play.attempt(fault)


def check_garbage_requests(aggregator: Aggregator) -> None:
    """A site refuses or answers a damaged request.

    Its session stays usable.
    """
    play = harnesses(aggregator)[-1]
    play.attempt()
    for stage in range(play.stages):

        def mischief(
            now: int, site: SiteId, ask: SiteRequest, due: int = stage
        ) -> Sequence[SiteRequest]:
            if now != due or site > 1:
                return ()
            return [
                evolve(ask, broadcast=broadcast, own=own)
                for broadcast in (b"", JUNK, ask.broadcast[:-1])
                for own in (b"", JUNK, ask.own[:-1])
                if (broadcast, own) != (ask.broadcast, ask.own)
            ]

        play.attempt(mischief=mischief)


def check_repeated_requests(aggregator: Aggregator) -> None:
    """A site trains and releases at most once an attempt.

    This holds for any number of requests.
    """
    play = harnesses(aggregator)[-1]
    play.attempt(mischief=lambda _stage, _site, ask: (ask,))
    ensure(
        max(play.calls.values()) <= 1,
        "a request that was sent twice made a site train and release twice in one attempt: two "
        "noises on one vector, where privacy was spent for one. Remember the attempt, and refuse.",
    )


def check_sessions_last(aggregator: Aggregator) -> None:
    """Sessions serve attempt after attempt, even after failed ones."""
    for play in harnesses(aggregator):
        every = set(play.sites)
        for fault in (None, _losing(every, since=0), None, _losing({1}, since=0), None):
            who = play.attempt() if fault is None else play.attempt(fault)
            ensure(
                fault is not None or set(who or ()) == every,
                f"after earlier attempts, one in which all answered gave a sum over {who}; `open` "
                "begins anew.",
            )


CHECKS: tuple[Check, ...] = (
    check_exact_sum,
    check_dropouts,
    check_min_sites,
    check_secrecy,
    check_garbage_replies,
    check_repeated_replies,
    check_unasked_replies,
    check_garbage_requests,
    check_repeated_requests,
    check_sessions_last,
)
"""Every check of an aggregator."""


def _first_of_eight(aggregator: Aggregator, *, min_contributors: int) -> AggregationHarness:
    try:
        return AggregationHarness.of(aggregator, 8, 27, 100, min_contributors=min_contributors)
    except StudyError:
        return AggregationHarness.of(aggregator, 9, 27, 100, min_contributors=8)


def _losing(gone: set[SiteId], *, since: int, until: int | None = None) -> Fault:
    """Return a fault that loses replies of `gone`.

    The loss lasts from one stage on, or up to another.
    """

    def fault(stage: int, site: SiteId, reply: bytes) -> Sequence[bytes]:
        lost = site in gone and since <= stage and (until is None or stage <= until)
        return () if lost else (reply,)

    return fault


def _damaging(site: SiteId, stage: int, damage: tuple[bytes | str, ...]) -> Fault:
    """Return a fault that replaces one reply by `damage`.

    These are other bytes, or the reply itself, "cut" or "longer".
    """

    def fault(now: int, who: SiteId, reply: bytes) -> Sequence[bytes]:
        if (now, who) != (stage, site):
            return (reply,)
        kinds = {"cut": reply[:-1], "longer": reply + b"\0"}
        return [kinds[d] if isinstance(d, str) else d for d in damage]

    return fault
