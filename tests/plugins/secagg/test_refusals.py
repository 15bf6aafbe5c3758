"""What a site refuses: everything that an honest coordinator would not ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pytest

from cohortium.plugin import (
    AggregationConfig,
    FederationSpec,
    MessageError,
    Randomness,
    RefusalError,
    Ring,
    RingVector,
    SiteContext,
    SiteRequest,
    StageRequests,
    decode,
    encode,
)
from cohortium_secagg import SecAgg
from cohortium_secagg._keys import KeyPair
from cohortium_secagg._messages import (
    AdvertiseKeysRequest,
    Keys,
    MaskedVectorRequest,
    ShareKeysRequest,
    Unmasking,
    UnmaskRequest,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from cohortium.plugin import Message

    M = TypeVar("M", bound=Message)

RING = Ring(20)

COORDINATOR = KeyPair(b"the coordinator of all attempts.").public


class Attempt:
    """Honest parties, driven up to the request of some stage, which is left in `requests`."""

    def __init__(
        self, stage: int, *, sites: int = 6, without: dict[int, int] | None = None
    ) -> None:
        self.config = AggregationConfig(
            session=b"sixteen bytes id",
            ring=RING,
            length=3,
            federation_spec=FederationSpec(sites=sites, cohort_size=sites, examples=9, rounds=9),
        )
        secret = Randomness.insecure_from_seed(1)
        self.coordinator = SecAgg().coordinator_session(self.config, secret.derive("coordinator"))
        self.sites = {
            i: SecAgg().site_session(self.config, SiteContext(site=i, secret=secret.derive(i)))
            for i in range(sites)
        }
        self.attempt, self.trained = 0, 0
        self.go(stage, without or {})

    def go(self, stage: int, without: dict[int, int]) -> None:
        self.coordinator.begin_attempt(0, self.attempt, tuple(self.sites))
        self.requests: StageRequests = self.coordinator.next_requests()
        for number in range(stage):
            for site, own in self.requests.per_site.items():
                if without.get(site, 9) > number:
                    self.coordinator.receive(site, self.ask(self.requests.broadcast or own, site))
            self.requests = self.coordinator.next_requests()

    def ask(self, body: bytes | Message, site: int = 0, *, round_: int = 0) -> bytes:
        """Put a request to a site, and count how often it trains."""
        body = body if isinstance(body, bytes) else encode(body)
        ask = SiteRequest(round=round_, attempt=self.attempt, broadcast=b"", own=body)
        return self.sites[site].handle(ask, self.train)

    def train(self) -> RingVector:
        self.trained += 1
        return RingVector(RING, np.ones(3, RING.dtype))

    def own(self, kind: type[M], site: int = 0) -> M:
        """The honest request that is due at a site."""
        return decode(self.due(site), kind)

    def due(self, site: int = 0) -> bytes:
        """The honest request that is due at a site, as bytes."""
        return self.requests.per_site[site] or self.requests.broadcast

    def refuses(self, code: str, body: bytes | Message, *, round_: int = 0) -> None:
        with pytest.raises(RefusalError) as refusal:
            self.ask(body, round_=round_)
        assert refusal.value.code == code


def test_malformed_request_is_refused() -> None:
    attempt = Attempt(0)
    for body in (b"", b"x" * 50, encode(Keys(bytes(32), bytes(32)))):
        with pytest.raises(MessageError):
            attempt.ask(body)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_repeated_stage_is_refused(stage: int) -> None:
    attempt = Attempt(stage)
    due = attempt.due()
    attempt.ask(due)
    attempt.refuses("out-of-order", due)
    attempt.refuses("out-of-order", AdvertiseKeysRequest(0, COORDINATOR))
    assert attempt.trained == 6 * (stage == 3) + (stage == 2)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_out_of_order_stage_is_refused(stage: int) -> None:
    others = {
        1: ShareKeysRequest(0, {}),
        2: MaskedVectorRequest(0, {}),
        3: UnmaskRequest(0, tuple(range(6))),
    }
    del others[stage]
    attempt = Attempt(stage)
    for other in others.values():
        attempt.refuses("out-of-order", other)
    assert attempt.ask(attempt.due())


def test_second_survivor_set_is_refused() -> None:
    attempt = Attempt(3)
    reply = decode(attempt.ask(UnmaskRequest(0, (0, 1, 2, 3, 4, 5))), Unmasking)
    assert not reply.keys
    attempt.refuses("out-of-order", UnmaskRequest(0, (0, 1, 2, 3, 4)))


def test_unmasking_reveals_one_share_kind_per_peer() -> None:
    attempt = Attempt(3, sites=5, without={3: 2})
    reply = decode(attempt.ask(attempt.requests.broadcast), Unmasking)
    assert reply.seeds.keys() == {0, 1, 2, 4}
    assert reply.keys.keys() == {3}


def test_request_of_another_attempt_is_refused() -> None:
    attempt = Attempt(2)
    older = attempt.own(MaskedVectorRequest)
    attempt.attempt = 1
    attempt.refuses("attempt", older)
    attempt.refuses("attempt", MaskedVectorRequest(1, older.sealed))
    attempt.go(2, {})
    attempt.refuses("attempt", older)
    # Relabelled, its shares still do not authenticate: they are bound to their attempt.
    due = attempt.own(MaskedVectorRequest)
    stale = {peer: older.sealed.get(peer, due.sealed[peer]) for peer in due.sealed}
    attempt.refuses("sealed", MaskedVectorRequest(1, stale))


def test_attempt_changing_its_round_is_refused() -> None:
    attempt = Attempt(1)
    attempt.refuses("attempt", attempt.own(ShareKeysRequest), round_=1)


def test_an_older_attempt_does_not_begin_again() -> None:
    attempt = Attempt(0)
    attempt.attempt = 4
    attempt.ask(AdvertiseKeysRequest(4, COORDINATOR))
    attempt.attempt = 3
    attempt.refuses("out-of-order", AdvertiseKeysRequest(3, COORDINATOR))


@pytest.mark.parametrize("change", ["itself", "nobody", "too few", "too many"])
def test_invalid_neighbourhood_is_refused(change: str) -> None:
    attempt = Attempt(1, sites=9)
    honest = attempt.own(ShareKeysRequest).neighbours
    some = next(iter(honest.values()))
    neighbours: dict[int, Keys] = {
        "itself": {0: some, **dict(list(honest.items())[1:])},
        "nobody": {9: some, **dict(list(honest.items())[1:])},
        "too few": dict(list(honest.items())[:2]),
        "too many": dict.fromkeys(range(1, 7), some),
    }[change]
    attempt.refuses("neighbourhood", ShareKeysRequest(0, neighbours))
    attempt.refuses("out-of-order", attempt.own(ShareKeysRequest))


def test_neighbour_key_of_small_order_is_refused() -> None:
    attempt = Attempt(1)
    honest = attempt.own(ShareKeysRequest).neighbours
    one = next(iter(honest))
    small = Keys(bytes(32), honest[one].masking)
    attempt.refuses("small-order", ShareKeysRequest(0, {**honest, one: small}))


def test_neighbours_with_different_keys_are_refused() -> None:
    attempt = Attempt(1, sites=5)
    honest = attempt.own(ShareKeysRequest).neighbours
    changed = Keys(honest[1].sealing, honest[2].masking)
    replies = {s: attempt.ask(own, s) for s, own in attempt.requests.per_site.items() if s}
    replies[0] = attempt.ask(ShareKeysRequest(0, {**honest, 1: changed}))
    for site, reply in replies.items():
        attempt.coordinator.receive(site, reply)
    attempt.requests = attempt.coordinator.next_requests()
    attempt.refuses("sealed", attempt.requests.per_site[0])
    with pytest.raises(RefusalError, match="authenticate"):
        attempt.ask(attempt.requests.per_site[1], 1)


def test_coordinator_key_of_small_order_is_refused() -> None:
    Attempt(0).refuses("small-order", AdvertiseKeysRequest(0, bytes(32)))


def test_coordinator_rejects_key_of_small_order() -> None:
    attempt = Attempt(0)
    with pytest.raises(MessageError, match="small order"):
        attempt.coordinator.receive(0, encode(Keys(bytes(32), b"\x09" + bytes(31))))


@pytest.mark.parametrize("change", ["flipped", "exchanged", "stranger", "too few"])
def test_wrong_or_missing_shares_are_refused(change: str) -> None:
    attempt = Attempt(2, sites=9)
    honest = attempt.own(MaskedVectorRequest).sealed
    one, two, *others = honest
    stranger = next(site for site in range(1, 9) if site not in honest)
    flipped = bytes([honest[one][0] ^ 1]) + honest[one][1:]
    sealed, code = {
        "flipped": ({**honest, one: flipped}, "sealed"),
        "exchanged": ({**honest, one: honest[two], two: honest[one]}, "sealed"),
        "stranger": ({stranger: honest[one], **honest}, "neighbourhood"),
        "too few": ({peer: honest[peer] for peer in others}, "neighbourhood"),
    }[change]
    attempt.refuses(code, MaskedVectorRequest(0, sealed))
    assert not attempt.trained


@pytest.mark.parametrize(
    "vector",
    [
        lambda: RingVector(RING, np.ones(4, RING.dtype)),
        lambda: RingVector(RING, np.ones(3, np.uint64)),
    ],
)
def test_vector_of_wrong_length_or_ring_is_refused(vector: Callable[[], RingVector]) -> None:
    attempt = Attempt(2)
    ask = SiteRequest(round=0, attempt=0, broadcast=b"", own=attempt.requests.per_site[0])
    with pytest.raises(RefusalError, match="ring and length"):
        attempt.sites[0].handle(ask, vector)


def test_failed_site_does_not_train_again() -> None:
    attempt = Attempt(2)

    def fail() -> RingVector:
        raise RefusalError("not-finite", "the update is not finite.")

    ask = SiteRequest(round=0, attempt=0, broadcast=b"", own=attempt.requests.per_site[0])
    with pytest.raises(RefusalError, match="not finite"):
        attempt.sites[0].handle(ask, fail)
    attempt.refuses("out-of-order", attempt.requests.per_site[0])


@pytest.mark.parametrize(
    ("survivors", "code"),
    [
        ((0, 1, 2, 2, 3, 4), "survivors"),
        ((0, 1, 2, 3, 6), "survivors"),
        ((1, 2, 3, 4, 5), "survivors"),
        ((), "survivors"),
        ((0, 1, 2), "floor"),
    ],
)
def test_dishonest_survivor_sets_are_refused(survivors: tuple[int, ...], code: str) -> None:
    attempt = Attempt(3)
    attempt.refuses(code, UnmaskRequest(0, survivors))
    attempt.refuses("out-of-order", attempt.due())


def test_survivor_declared_dropped_is_refused() -> None:
    attempt = Attempt(3, sites=5, without={2: 1})
    attempt.refuses("survivors", UnmaskRequest(0, (0, 1, 2, 3, 4)))


def test_survivors_with_few_neighbours_are_refused() -> None:
    attempt = Attempt(3, sites=12)
    near = attempt.sites[0]._state.shares.keys()  # type: ignore[attr-defined]
    gone = [site for site in near if site != 0][:2]
    survivors = tuple(site for site in range(12) if site not in gone)
    attempt.refuses("floor", UnmaskRequest(0, survivors))


def test_secrets_are_forgotten_after_unmasking() -> None:
    attempt = Attempt(3)
    site = attempt.sites[0]
    attempt.ask(attempt.due())
    assert site._state is None  # type: ignore[attr-defined]
    first = Attempt(2)
    before = first.sites[0]._state  # type: ignore[attr-defined]
    first.attempt = 1
    first.go(1, {})
    assert first.sites[0]._state is not before  # type: ignore[attr-defined]
    first.refuses("out-of-order", MaskedVectorRequest(1, {}))
