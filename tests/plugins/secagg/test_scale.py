"""A thousand sites: an exact sum, and what memory and bytes grow with."""

from __future__ import annotations

import itertools
import random
import tracemalloc
from collections.abc import Callable
from functools import partial

import pytest

from cohortium.plugin import Randomness, RingVector, SiteContext, SiteRequest
from cohortium_secagg import SecAgg
from tests.support.in_memory_aggregation import InMemoryAggregation

STAGES = 4
VECTOR = 2


class Recording(InMemoryAggregation):
    """An attempt in which nothing is lost; either side can be played again, its secrets alike."""

    def __init__(self, aggregator: SecAgg, sites: int, *, length: int = 1) -> None:
        super().__init__(aggregator, sites, length=length)
        self.aggregator = aggregator
        self.replies: list[tuple[int, int, bytes]] = []
        assert self.is_exact(self.run(tamper=self._record))

    def _record(self, direction: str, stage: int, site: int, data: bytes) -> list[bytes]:
        if direction == "reply":
            self.replies.append((stage, site, data))
        return [data]

    def coordinate(
        self, listen: Callable[[SiteRequest, int], None] = lambda _ask, _site: None
    ) -> None:
        """Play the coordinator again; `listen` hears what it asks of whom."""
        secret = Randomness.insecure_from_seed(1)
        coordinator = self.aggregator.coordinator_session(self.config, secret.derive("coordinator"))
        coordinator.begin_attempt(0, 0, tuple(self.sites))
        for _, replies in itertools.groupby(self.replies, lambda reply: reply[0]):
            requests = coordinator.next_requests()
            for site, own in requests.per_site.items():
                listen(SiteRequest(round=0, attempt=0, broadcast=requests.broadcast, own=own), site)
            del requests
            for _, site, reply in replies:
                coordinator.receive(site, reply)
        assert not coordinator.next_requests()
        assert coordinator.sum().contributors == tuple(self.sites)

    def asks(self, site: int) -> list[SiteRequest]:
        """What is asked of one site."""
        heard: list[SiteRequest] = []
        self.coordinate(lambda ask, asked: heard.append(ask) if asked == site else None)
        return heard

    def answer(self, site: int, asks: list[SiteRequest]) -> None:
        """Play one site again."""
        site_context = SiteContext(site=site, secret=Randomness.insecure_from_seed(1).derive(site))
        session = self.aggregator.site_session(self.config, site_context)
        vector = RingVector(self.ring, self.vectors[site])
        for stage, ask in enumerate(asks):
            assert (stage, site, session.handle(ask, lambda: vector)) in self.replies


def peak(work: Callable[[], None]) -> int:
    """The most bytes that are allocated at a time while it runs."""
    tracemalloc.start()
    work()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


@pytest.mark.slow
def test_the_coordinators_memory_grows_as_sites_times_neighbours() -> None:
    few, dense, many = (
        peak(Recording(SecAgg(reconstruction_threshold=4, num_shares=shares), sites).coordinate)
        for sites, shares in ((60, 9), (60, 33), (240, 9))
    )
    # Keys, two sealed shares and two hashes for each neighbour of each site, as objects and as
    # messages, and the objects of the next attempt.
    assert few < 1100 * 60 * 9
    assert many < 1.05 * 4 * few
    assert dense < 1.05 * 33 / 9 * few


@pytest.mark.parametrize("sites", [12, 36])
def test_coordinator_memory_is_one_vector(sites: int) -> None:
    short, long = (
        peak(Recording(SecAgg(), sites, length=length).coordinate) for length in (1, 200_000)
    )
    # The sum, one reply as it came and unpacked, and what adding and packing it takes.
    assert long - short < 5 * 4 * 200_000


@pytest.mark.slow
def test_site_memory_is_independent_of_neighbours() -> None:
    peaks = []
    for shares in (5, 41):
        recording = Recording(
            SecAgg(reconstruction_threshold=4, num_shares=shares), 42, length=200_000
        )
        asks = recording.asks(7)
        peaks.append(peak(partial(recording.answer, 7, asks)) / (4 * 200_000))
    assert max(peaks) < 3.5
    assert abs(peaks[0] - peaks[1]) < 0.25


def test_upload_grows_with_neighbours_not_sites() -> None:
    few, dense, many = (
        max(
            Recording(SecAgg(reconstruction_threshold=4, num_shares=shares), sites).uploads.values()
        )
        for sites, shares in ((60, 9), (60, 33), (240, 9))
    )
    # Beside the vector: a number above 127 takes a byte more, and 34 entries have one, and of the
    # next attempt 26.
    assert many <= few + 34 + 26
    assert dense <= 33 / 9 * few


@pytest.mark.slow
def test_thousand_sites_survive_five_percent_dropout() -> None:
    aggregation = InMemoryAggregation(
        SecAgg(max_dropout_rate=0.05), 1_000, bits=27, length=1_000, max_colluding=50
    )
    gone = random.Random(1).sample(range(1_000), 50)
    lost = {site: place % STAGES for place, site in enumerate(gone)}
    total = aggregation.run(lost=lost)
    assert aggregation.is_exact(total)
    assert total.contributors == tuple(
        site for site in range(1_000) if lost.get(site, STAGES) > VECTOR
    )
