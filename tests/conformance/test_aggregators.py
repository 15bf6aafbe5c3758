from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from attrs import define, evolve, field, frozen

from cohortium.plugin import (
    AggregationConfig,
    AggregationGuarantee,
    FederationSpec,
    MessageError,
    RefusalError,
    RingSum,
    RingVector,
    SiteId,
    SiteRequest,
    StageRequests,
    StudyError,
    TooFewSitesError,
)
from cohortium.testing import ConformanceError, aggregators
from cohortium_secagg import SecAgg


@define
class Lead:
    """The coordinator of a clear sum, in one exchange."""

    config: AggregationConfig
    waiting: set[SiteId] = field(factory=set)
    held: dict[SiteId, Any] = field(factory=dict)
    is_asked: bool = False

    def begin_attempt(self, round: int, attempt: int, sites: Sequence[SiteId]) -> None:  # noqa: A002
        del round, attempt
        self.waiting, self.held, self.is_asked = set(sites), {}, False

    def next_requests(self) -> StageRequests:
        if self.is_asked:
            return StageRequests()
        self.is_asked = True
        return StageRequests(b"send it", dict.fromkeys(sorted(self.waiting), b"you"))

    def receive(self, site: SiteId, reply: bytes) -> None:
        if site not in self.waiting:
            raise MessageError("not asked.")
        words = self.config.ring.unpack(reply, self.config.length)
        self.waiting.discard(site)
        self.held[site] = words

    def sum(self) -> RingSum:
        if len(self.held) < max(1, self.config.federation_spec.min_contributors):
            raise TooFewSitesError("too few.")
        words = self.config.ring.zeros(self.config.length)
        for held in self.held.values():
            words = words + held
        return RingSum(self.config.ring, words, tuple(self.held))


@define
class Member:
    config: AggregationConfig
    latest: int = -1

    def handle(self, request: SiteRequest, release: Callable[[], RingVector]) -> bytes:
        if (request.broadcast, request.own) != (b"send it", b"you"):
            raise MessageError("what?")
        if request.attempt <= self.latest:
            raise RefusalError("out-of-order", "again?")
        self.latest = request.attempt
        return self.config.ring.pack(release().words)


@frozen
class Clear:
    lead: Any = Lead
    site_context: Any = Member
    hides: Any = None

    def confidentiality(self, federation_spec: FederationSpec) -> Any:
        del federation_spec
        return self.hides

    def coordinator_session(self, config: AggregationConfig, secret: Any) -> Any:
        del secret
        return self.lead(config)

    def site_session(self, config: AggregationConfig, site_context: Any) -> Any:
        del site_context
        return self.site_context(config)


class AllOrNothing(Lead):
    def sum(self) -> RingSum:
        if self.waiting:
            raise TooFewSitesError("somebody is missing.")
        return super().sum()


class LeavesOneOut(Lead):
    def sum(self) -> RingSum:
        total = super().sum()
        return evolve(total, contributors=total.contributors[:-1])


class ClaimsEveryone(Lead):
    """Names those who dropped out as contributors."""

    def sum(self) -> RingSum:
        total = super().sum()
        return evolve(total, contributors=tuple(range(self.config.federation_spec.sites)))


class NeverFails(Lead):
    def sum(self) -> RingSum:
        words = self.config.ring.zeros(self.config.length)
        return RingSum(self.config.ring, words, ()) if not self.held else super().sum()


class AsksForever(Lead):
    def next_requests(self) -> StageRequests:
        return StageRequests(b"send it", dict.fromkeys(sorted(self.waiting), b"you"))


class IgnoresTheFloor(Lead):
    def sum(self) -> RingSum:
        floor = evolve(self.config.federation_spec, min_contributors=1)
        self.config = evolve(self.config, federation_spec=floor)
        return super().sum()


class Pads(Lead):
    """Takes a damaged vector for what is left of it."""

    def receive(self, site: SiteId, reply: bytes) -> None:
        ring, length = self.config.ring, self.config.length
        super().receive(site, reply[: ring.bytes_for(length)].ljust(ring.bytes_for(length), b"\1"))


class Chokes(Lead):
    def receive(self, site: SiteId, reply: bytes) -> None:
        if len(reply) != self.config.ring.bytes_for(self.config.length):
            raise ValueError("what is this?")
        super().receive(site, reply)


class CountsTwice(Lead):
    def receive(self, site: SiteId, reply: bytes) -> None:
        before = self.held.get(site, 0)
        self.waiting.add(site)
        super().receive(site, reply)
        self.held[site] = self.held[site] + before


class TakesStrangers(Lead):
    def receive(self, site: SiteId, reply: bytes) -> None:
        self.waiting.add(site)
        super().receive(site, reply)


class NeverBeginsAnew(Lead):
    def begin_attempt(self, round: int, attempt: int, sites: Sequence[SiteId]) -> None:  # noqa: A002
        kept = dict(self.held)
        super().begin_attempt(round, attempt, sites)
        self.held = kept


class TrainsTwice(Member):
    def handle(self, request: SiteRequest, release: Callable[[], RingVector]) -> bytes:
        release()
        return super().handle(request, release)


class Believes(Member):
    """Parses a request as if nobody lied."""

    def handle(self, request: SiteRequest, release: Callable[[], RingVector]) -> bytes:
        assert hashlib.sha256(request.broadcast).digest() == hashlib.sha256(b"send it").digest()
        return super().handle(request, release)


class Forgets(Member):
    def handle(self, request: SiteRequest, release: Callable[[], RingVector]) -> bytes:
        self.latest = -1
        return super().handle(request, release)


class Talks(Member):
    def handle(self, request: SiteRequest, release: Callable[[], RingVector]) -> Any:
        return list(super().handle(request, release))


def nobody(config: AggregationConfig) -> Any:
    raise StudyError("not for you.")


HIDDEN = AggregationGuarantee(min_contributors=2, reconstruction_threshold=2, max_dropouts=0)
BOASTED = AggregationGuarantee(min_contributors=4, reconstruction_threshold=2, max_dropouts=1)

BAD = [
    (aggregators.check_exact_sum, Clear(lead=LeavesOneOut), "is not the sum of these"),
    (aggregators.check_exact_sum, Clear(lead=nobody), "served no cohort.*not for you"),
    (aggregators.check_exact_sum, Clear(site_context=TrainsTwice), r"made to train \[2\] times"),
    (aggregators.check_exact_sum, Clear(site_context=Talks), "answered with a list"),
    (aggregators.check_dropouts, Clear(lead=ClaimsEveryone), "is not the sum of these"),
    (aggregators.check_dropouts, Clear(lead=AsksForever), "still asks after 20"),
    (aggregators.check_dropouts, Clear(lead=NeverFails), r"released over \(\)"),
    (aggregators.check_min_sites, Clear(lead=IgnoresTheFloor), "at least 7 different sites"),
    (aggregators.check_secrecy, Clear(hides=HIDDEN), "below min_contributors"),
    (aggregators.check_secrecy, Clear(hides=evolve(HIDDEN, min_contributors=6)), "one over"),
    (aggregators.check_secrecy, Clear(AllOrNothing, hides=BOASTED), "dropouts are survived"),
    (aggregators.check_garbage_replies, Clear(lead=Pads), "is not the sum of these"),
    (aggregators.check_garbage_replies, Clear(lead=Chokes), "raised ValueError"),
    (aggregators.check_repeated_replies, Clear(lead=CountsTwice), "is not the sum of these"),
    (aggregators.check_unasked_replies, Clear(lead=TakesStrangers), "was released over"),
    (aggregators.check_garbage_requests, Clear(site_context=Believes), "raised AssertionError"),
    (aggregators.check_repeated_requests, Clear(site_context=Forgets), "train and release twice"),
    (aggregators.check_sessions_last, Clear(lead=NeverBeginsAnew), "is not the sum of these"),
]


@pytest.mark.parametrize(("check", "bad", "words"), BAD)
def test_a_bad_aggregator_fails(check: Any, bad: Any, words: str) -> None:
    with pytest.raises(ConformanceError, match=words):
        check(bad)


@pytest.mark.parametrize("aggregator", [Clear(), SecAgg()], ids=["clear", "secagg"])
@pytest.mark.parametrize("check", aggregators.CHECKS)
def test_valid_plugin_passes_check(check: Any, aggregator: Any) -> None:
    assert "not needed" in (check(aggregator) or "not needed")


def test_aggregator_surviving_no_dropout_is_noted() -> None:
    note = aggregators.check_dropouts(Clear(lead=AllOrNothing))
    assert note == "no dropout is survived at any stage"


def test_every_check_has_bad_implementation() -> None:
    assert {check for check, _, _ in BAD} == set(aggregators.CHECKS)
