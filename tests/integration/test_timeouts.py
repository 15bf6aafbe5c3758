"""Stragglers: what comes too late is never taken for what is due, whoever passes it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest
from attrs import define, field, frozen

from cohortium.errors import RunError, StudyError
from cohortium.plugin import EngineSession, SiteFactory, SiteId
from cohortium.roles.events import AttemptFailed, SiteFailed
from cohortium_gaussian import Gaussian
from cohortium_inline import Inline, InlineExchange
from cohortium_secagg import SecAgg
from tests.support.federations import FaultyEngine, RecordingObserver, tiny_federation

Delay = Callable[[int, SiteId], float]
"""From (exchange, site) to the seconds that the reply is on its way."""

DEADLINE = 10.0


@frozen
class DelayedEngine:
    """An engine on a clock of its own that hands over what is late, in a later exchange.

    That breaks the contract; the coordinator must not count on it.
    """

    delay: Delay = field(eq=False)

    def connect(self, sites: Mapping[SiteId, SiteFactory] | None) -> EngineSession:
        return DelayedSession(Inline().connect(sites), self.delay)


@define
class DelayedSession:
    inner: EngineSession
    delay: Delay
    clock: float = 0.0
    count: int = -1
    under_way: list[tuple[float, SiteId, bytes]] = field(factory=list)

    def exchange(
        self, broadcast: bytes, per_site: Mapping[SiteId, bytes], timeout: float | None = None
    ) -> Iterator[tuple[SiteId, bytes]]:
        assert timeout == DEADLINE
        self.count += 1
        for site, reply in self.inner.exchange(broadcast, per_site):
            self.under_way.append((self.clock + self.delay(self.count, site), site, reply))
        self.clock += timeout
        arrived = sorted(letter for letter in self.under_way if letter[0] <= self.clock)
        self.under_way = [letter for letter in self.under_way if letter[0] > self.clock]
        for _, site, reply in arrived:
            yield site, reply

    def close(self) -> None:
        self.inner.close()


def lost(exchange: int, site: SiteId) -> FaultyEngine:
    """Where the reply of `site` in `exchange` is lost outright."""
    return FaultyEngine(lambda count, k, reply: None if (count, k) == (exchange, site) else reply)


@pytest.mark.parametrize(
    "later", [1, *(pytest.param(later, marks=pytest.mark.slow) for later in (2, 3, 4, 9))]
)
@pytest.mark.parametrize("stage", range(4))
def test_late_reply_counts_as_lost(stage: int, later: int) -> None:
    slow = DelayedEngine(lambda count, k: DEADLINE * later + 1 if (count, k) == (stage, 2) else 0)
    study = {"aggregator": SecAgg(), "rounds": 3, "evaluate_every": 0}
    late = tiny_federation(engine=slow, reply_timeout=DEADLINE, **study).run()
    gone = tiny_federation(engine=lost(stage, 2), **study).run()
    assert late.weights_sha256 == gone.weights_sha256
    assert [e.contributors for e in late.history] == [e.contributors for e in gone.history]


@pytest.mark.parametrize("aggregator", ["plain", "secagg"])
def test_late_site_takes_part_in_next_round(aggregator: str) -> None:
    stages = 1 if aggregator == "plain" else 4
    slow = DelayedEngine(lambda count, k: DEADLINE * stages + 1 if (count, k) == (0, 2) else 0)
    recorder = RecordingObserver()
    result = tiny_federation(engine=slow, reply_timeout=DEADLINE, aggregator=aggregator).run(
        observers=[recorder]
    )
    assert [event.dropped for event in result.history] == [(2,), ()]
    assert not [event for event in recorder.events if isinstance(event, SiteFailed)]


def test_site_with_only_late_replies_is_failed() -> None:
    slow = DelayedEngine(lambda count, k: DEADLINE + 1 if k == 2 else 0)
    recorder = RecordingObserver()
    result = tiny_federation(engine=slow, reply_timeout=DEADLINE).run(observers=[recorder])
    assert [event.dropped for event in result.history] == [(2,), (2,)]
    (failure,) = [event for event in recorder.events if isinstance(event, SiteFailed)]
    assert (failure.round, failure.site, failure.code) == (1, 2, "stale")


def test_straggler_round_is_retried_and_charged() -> None:
    slow = DelayedEngine(lambda count, k: DEADLINE * 2 + 1 if count == 0 and k < 4 else 0)
    recorder = RecordingObserver()
    study = {"min_contributors": 3, "privatizer": Gaussian(unit="site"), "reply_timeout": DEADLINE}
    result = tiny_federation(engine=slow, retries=1, **study).run(observers=[recorder])
    failed = [event for event in recorder.events if isinstance(event, AttemptFailed)]
    assert [(event.round, event.attempt) for event in failed] == [(0, 0)]
    assert failed[0].reason.startswith("2 sites answered")
    assert [event.attempt for event in result.history] == [1, 2]
    assert [event.dropped for event in result.history] == [(), ()]
    spent = [
        event.guarantee_so_far.epsilon
        for event in result.history
        if event.guarantee_so_far is not None
    ]
    assert result.guarantee is not None
    assert spent[0] < spent[1] <= result.guarantee.epsilon
    with pytest.raises(RunError, match="round 1 failed: 2 sites answered"):
        tiny_federation(engine=slow, **study).run()


def test_a_repeated_reply_changes_nothing() -> None:
    twice = FaultyEngine(lambda _, __, reply: reply)
    study = {"aggregator": SecAgg(), "evaluate_every": 0}
    once = tiny_federation(**study).run()

    class Echoing:
        def __init__(self, inner: EngineSession) -> None:
            self.inner = inner

        def exchange(
            self, broadcast: bytes, per_site: Mapping[SiteId, bytes], timeout: float | None = None
        ) -> Iterator[tuple[SiteId, bytes]]:
            for letter in self.inner.exchange(broadcast, per_site, timeout):
                yield letter
                yield letter

        def close(self) -> None:
            self.inner.close()

    @frozen
    class Echo:
        def connect(self, sites: Mapping[SiteId, SiteFactory] | None) -> EngineSession:
            return Echoing(twice.connect(sites))

    again = tiny_federation(engine=Echo(), **study).run()
    assert again.weights_sha256 == once.weights_sha256
    assert again.dropouts == 0


def test_inline_timeout_applies_per_site() -> None:
    now = 0.0

    @define
    class Slow:
        takes: float

        def answer(self, broadcast: bytes, own: bytes) -> bytes:
            nonlocal now
            now += self.takes
            return own

    sites = {0: Slow(3.0), 1: Slow(11.0), 2: Slow(9.0)}
    exchange = InlineExchange(sites, clock=lambda: now)
    each = dict.fromkeys(sites, b"own")
    assert [site for site, _ in exchange.exchange(b"", each, DEADLINE)] == [0, 2]
    assert [site for site, _ in exchange.exchange(b"", each)] == [0, 1, 2]


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_invalid_reply_timeout_is_refused(value: float) -> None:
    with pytest.raises((StudyError, ValueError), match="reply_timeout"):
        tiny_federation(reply_timeout=value)
