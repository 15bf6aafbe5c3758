"""A coordinator and its sites in memory, joined by function calls that lose or damage anything."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cohortium.plugin import (
    AggregationConfig,
    Aggregator,
    FederationSpec,
    KeyDirectory,
    MessageError,
    Randomness,
    RefusalError,
    Ring,
    RingSum,
    RingVector,
    SigningKey,
    SiteContext,
    SiteRequest,
)

Words: TypeAlias = NDArray[np.unsignedinteger[Any]]
Tamper: TypeAlias = Callable[[str, int, int, bytes], Iterable[bytes]]
"""What arrives, given the direction ("ask" or "reply"), the stage, the site and the bytes."""


def untouched(_direction: str, _stage: int, _site: int, data: bytes) -> list[bytes]:
    return [data]


class InMemoryAggregation:
    """A coordinator and its sites, with random vectors, joined by function calls."""

    def __init__(
        self,
        aggregator: Aggregator,
        sites: int,
        *,
        bits: int = 20,
        length: int = 9,
        **terms: Any,
    ) -> None:
        self.ring = Ring(bits)
        secret = Randomness.insecure_from_seed(1)
        identities = [SigningKey.generate(secret.derive("identity", site)) for site in range(sites)]
        self.config = AggregationConfig(
            session=b"sixteen bytes id",
            ring=self.ring,
            length=length,
            federation_spec=FederationSpec(
                **{"sites": sites, "cohort_size": sites, "examples": 100, "rounds": 9, **terms}
            ),
            directory=KeyDirectory(tuple(identity.public for identity in identities)),
        )
        self.coordinator = aggregator.coordinator_session(self.config, secret.derive("coordinator"))
        self.contexts = {
            site: SiteContext(site=site, secret=secret.derive(site), identity=identities[site])
            for site in range(sites)
        }
        self.sites = {
            site: aggregator.site_session(self.config, site_context)
            for site, site_context in self.contexts.items()
        }
        self.vectors: dict[int, Words] = {
            site: np.frombuffer(
                secret.stream("vector", site).bytes(length * self.ring.dtype.itemsize),
                self.ring.dtype,
            )
            for site in self.sites
        }
        self.trained: list[int] = []
        self.transcript = hashlib.sha256()
        self.uploads: dict[int, int] = {}
        self.stages: list[str] = []

    def run(
        self,
        *,
        lost: Mapping[int, int] | None = None,
        tamper: Tamper = untouched,
        round_: int = 0,
        attempt: int = 0,
        among: Iterable[int] | None = None,
    ) -> RingSum:
        """One attempt; a site in `lost` answers no more from that stage on."""
        self.coordinator.begin_attempt(
            round_, attempt, tuple(self.sites if among is None else among)
        )
        self.stages.clear()
        for stage in itertools.count():
            requests = self.coordinator.next_requests()
            if not requests:
                return self.coordinator.sum()
            self.transcript.update(requests.broadcast)
            self.stages.append(requests.stage)
            for site, own in requests.per_site.items():
                if stage >= (lost or {}).get(site, 9):
                    continue
                for data in tamper("ask", stage, site, own):
                    ask = SiteRequest(
                        round=round_, attempt=attempt, broadcast=requests.broadcast, own=data
                    )
                    for reply in self._replies(ask, stage, site, tamper):
                        self._deliver(site, reply)
        raise AssertionError

    def _replies(self, ask: SiteRequest, stage: int, site: int, tamper: Tamper) -> Iterable[bytes]:
        try:
            reply = self.sites[site].handle(ask, lambda: self._release(site))
        except (RefusalError, MessageError):
            return ()
        self.transcript.update(ask.own + reply)
        self.uploads[site] = self.uploads.get(site, 0) + len(reply)
        return tamper("reply", stage, site, reply)

    def _deliver(self, site: int, reply: bytes) -> None:
        with suppress(MessageError):
            self.coordinator.receive(site, reply)

    def _release(self, site: int) -> RingVector:
        self.trained.append(site)
        return RingVector(self.ring, self.vectors[site])

    def is_exact(self, total: RingSum) -> bool:
        """Whether `total` is the modular sum of its contributors' vectors, in canonical form."""
        modulus = 1 << self.ring.bits
        expected = [0] * self.config.length
        for site in total.contributors:
            words = self.vectors[site].tolist()
            expected = [(a + b) % modulus for a, b in zip(expected, words, strict=True)]
        return total.ring == self.ring and total.words.tolist() == expected
