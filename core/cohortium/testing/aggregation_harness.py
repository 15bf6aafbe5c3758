"""Harness that runs an aggregation in one process, with message faults.

The faults are those that networks and people cause.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from attrs import define, field

from cohortium.crypto.randomness import Randomness
from cohortium.crypto.signing import KeyDirectory, SigningKey
from cohortium.errors import MessageError, RefusalError, StudyError, TooFewSitesError
from cohortium.ring.ring import Ring, RingVector
from cohortium.roles.sessions import MAX_STAGES
from cohortium.roles.values import (
    Adversary,
    AggregationConfig,
    FederationSpec,
    SiteContext,
    SiteId,
    SiteRequest,
)
from cohortium.testing.contract import ConformanceError, ensure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cohortium.ring.ring import RingSum
    from cohortium.roles.protocols import Aggregator
    from cohortium.roles.sessions import CoordinatorSession, SiteSession
    from cohortium.roles.values import StageRequests

Fault: TypeAlias = Callable[[int, SiteId, bytes], Sequence[bytes]]
"""Arrivals for a reply, by stage and site.

They are the reply, nothing, other bytes, or the reply twice.
"""

RequestTampering: TypeAlias = Callable[[int, SiteId, SiteRequest], Sequence[SiteRequest]]
"""Requests that reach a site before the genuine one."""

SIZES: tuple[tuple[int, int, int, Adversary], ...] = (
    (5, 12, 1, "honest-but-curious"),
    (7, 20, 16, "active"),
    (8, 27, 100, "honest-but-curious"),
    (9, 64, 33, "honest-but-curious"),
)
"""Sizes and adversaries of the sums.

Each has the number of sites, bits of the ring, length of the vectors and adversary.
"""


def no_faults(stage: int, site: SiteId, reply: bytes) -> Sequence[bytes]:  # noqa: ARG001
    """Return every reply unchanged."""
    return (reply,)


def no_tampering(stage: int, site: SiteId, ask: SiteRequest) -> Sequence[SiteRequest]:  # noqa: ARG001
    """Return no request, so that a site receives only genuine ones."""
    return ()


@define(eq=False)
class AggregationHarness:
    """Sessions of a coordinator and its sites, for a run.

    Attributes:
        config: The configuration on which all agree.
        calls: Number of times that each site trained, in the latest attempt.
        stages: Stages of the latest attempt.
    """

    config: AggregationConfig
    coordinator: CoordinatorSession
    sites: Mapping[SiteId, SiteSession]
    calls: dict[SiteId, int] = field(factory=dict)
    stages: int = 0
    _attempt: int = -1
    _vectors: dict[SiteId, RingVector] = field(factory=dict)

    @classmethod
    def of(
        cls,
        aggregator: Aggregator,
        sites: int,
        bits: int,
        length: int,
        *,
        min_contributors: int = 1,
        adversary: Adversary = "honest-but-curious",
    ) -> AggregationHarness:
        """Build sessions for random vectors.

        It passes on a `StudyError` of the aggregator.
        """
        federation_spec = FederationSpec(
            sites=sites,
            cohort_size=sites,
            min_contributors=min_contributors,
            examples=sites,
            rounds=1 << 10,
            adversary=adversary,
        )
        secret = Randomness.insecure_from_seed(1)
        keys = [SigningKey.generate(secret.derive("identity", k)) for k in range(sites)]
        config = AggregationConfig(
            session=bytes(16),
            ring=Ring(bits),
            length=length,
            federation_spec=federation_spec,
            directory=KeyDirectory(tuple(key.public for key in keys)),
        )
        return cls(
            config,
            aggregator.coordinator_session(config, secret.derive("coordinator")),
            {
                k: aggregator.site_session(
                    config, SiteContext(site=k, secret=secret.derive("site", k), identity=keys[k])
                )
                for k in range(sites)
            },
        )

    def attempt(
        self, fault: Fault = no_faults, mischief: RequestTampering = no_tampering
    ) -> tuple[SiteId, ...] | None:
        """Run one attempt.

        Returns:
            The contributors, or None if the attempt was refused for too few sites.

        Raises:
            ConformanceError: The sum is wrong, or a session raised an error that it must not raise.
        """
        self._begin()
        while requests := self.coordinator.next_requests():
            ensure(
                self.stages < MAX_STAGES,
                f"the coordinator still asks after {MAX_STAGES} exchanges; end the attempt when "
                "replies no longer come.",
            )
            self._exchange(requests, fault, mischief)
            self.stages += 1
        try:
            total = self.coordinator.sum()
        except TooFewSitesError:
            return None
        self._ensure_exact(total)
        return total.contributors

    def _begin(self) -> None:
        self._attempt += 1
        self.stages, self.calls = 0, dict.fromkeys(self.sites, 0)
        rng, ring = np.random.default_rng(self._attempt), self.config.ring
        self._vectors = {
            site: RingVector(
                ring,
                ring.encode_signed(
                    rng.integers(-(1 << 62), 1 << 62, self.config.length, dtype=np.int64)
                ),
            )
            for site in self.sites
        }
        self.coordinator.begin_attempt(self._attempt, self._attempt, tuple(self.sites))

    def _exchange(self, requests: StageRequests, fault: Fault, mischief: RequestTampering) -> None:
        for site, own in requests.per_site.items():
            ask = SiteRequest(
                round=self._attempt, attempt=self._attempt, broadcast=requests.broadcast, own=own
            )
            for other in mischief(self.stages, site, ask):
                self._answer(site, other)
            reply = self._answer(site, ask)
            for arrived in () if reply is None else fault(self.stages, site, reply):
                self._receive(site, arrived)

    def _answer(self, site: SiteId, ask: SiteRequest) -> bytes | None:
        """Return a site's reply, or None if it refused."""

        def vector() -> RingVector:
            self.calls[site] += 1
            return self._vectors[site]

        try:
            reply = self.sites[site].handle(ask, vector)
        except (RefusalError, MessageError):
            return None
        except Exception as error:
            raise ConformanceError(
                f"a site's session raised {type(error).__name__} ({error}) on a request; on any "
                "request, it may raise only RefusalError and MessageError."
            ) from error
        ensure(
            isinstance(reply, bytes),
            f"a site answered with a {type(reply).__name__}; messages are bytes.",
        )
        return reply

    def _receive(self, site: SiteId, reply: bytes) -> None:
        try:
            self.coordinator.receive(site, reply)
        except MessageError:
            return
        except Exception as error:
            raise ConformanceError(
                f"the coordinator's session raised {type(error).__name__} ({error}) on a reply; "
                "one site's bytes must not stop a round. Raise MessageError."
            ) from error

    def _ensure_exact(self, total: RingSum) -> None:
        ring, who = self.config.ring, total.contributors
        least = max(1, self.config.federation_spec.min_contributors)
        ensure(
            len(set(who)) == len(who) >= least and set(who) <= set(self.sites),
            f"a sum was released over {who}, where at least {least} different sites of "
            f"{len(self.sites)} are needed; raise TooFewSitesError.",
        )
        wanted = ring.zeros(self.config.length)
        for site in who:
            wanted = wanted + self._vectors[site].words
        ensure(
            total.ring == ring
            and total.words.shape == wanted.shape
            and np.array_equal(ring.signed(total.words), ring.signed(wanted)),
            f"the sum over {who} is not the sum of these sites' releases; an aggregation gives "
            "the exact sum over its contributors, or an error.",
        )


def harnesses(aggregator: Aggregator) -> list[AggregationHarness]:
    """Return sessions for every size and adversary that `aggregator` does not refuse.

    Raises:
        ConformanceError: It refuses all of them.
    """
    found, refusals = [], []
    for sites, bits, length, adversary in SIZES:
        try:
            found.append(
                AggregationHarness.of(aggregator, sites, bits, length, adversary=adversary)
            )
        except StudyError as error:
            refusals.append(str(error))
    ensure(
        found,
        f"the aggregator served no cohort of {' or '.join(str(size[0]) for size in SIZES)} sites: "
        f"{' '.join(dict.fromkeys(refusals))}",
    )
    return found
