"""Keys and shares that come with the attempt before: when they serve, and when they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import pytest
from msgspec.structs import replace

from cohortium.plugin import (
    FileJournal,
    MemoryJournal,
    Message,
    MessageError,
    RefusalError,
    RingVector,
    SiteRequest,
    TooFewSitesError,
    decode,
    decode_either,
    encode,
)
from cohortium_secagg import SecAgg
from cohortium_secagg._keys import TAG_BYTES, KeyPair
from cohortium_secagg._messages import (
    AdvertiseKeysRequest,
    ConfirmedUnmaskRequest,
    ConsistencyCheck,
    ConsistencyRequest,
    Keys,
    MaskedVectorRequest,
    ShareKeysAmongAllRequest,
    Shares,
    SignedKeys,
    Unmasking,
    UnmaskRequest,
    Vector,
    max_message_bytes,
)
from cohortium_secagg._shamir import SHARE_BYTES
from tests.support.in_memory_aggregation import InMemoryAggregation
from tests.support.malicious_coordinator import COORDINATOR, MaliciousCoordinator, is_refused

Adversary = Literal["honest-but-curious", "active"]
ADVERSARIES: tuple[Adversary, ...] = ("honest-but-curious", "active")

FULL = {
    "honest-but-curious": ["keys", "shares", "vectors", "unmasking"],
    "active": ["keys", "shares", "vectors", "consent", "unmasking"],
}
SHORT = {adversary: stages[2:] for adversary, stages in FULL.items()}

REPLIES = (Keys, SignedKeys, Shares, Vector, ConsistencyCheck, Unmasking)

in_both = pytest.mark.parametrize("adversary", ADVERSARIES)


def begun(adversary: Adversary, sites: int = 7, **terms: Any) -> InMemoryAggregation:
    """Sites after one complete attempt."""
    there = InMemoryAggregation(SecAgg(), sites, adversary=adversary, **terms)
    assert there.is_exact(there.run())
    assert there.stages == FULL[adversary]
    return there


# --- When it serves -------------------------------------------------------------------------------


@in_both
@pytest.mark.parametrize("sites", [5, 11])
def test_next_attempts_take_two_or_three_exchanges(adversary: Adversary, sites: int) -> None:
    there = begun(adversary, sites)
    for number in range(1, 9):
        total = there.run(round_=number, attempt=number)
        assert total.contributors == tuple(range(sites))
        assert there.is_exact(total)
        assert there.stages == SHORT[adversary]


@in_both
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("site", [0, 4])
def test_dropout_of_prepared_attempt_is_survived(
    adversary: Adversary, site: int, stage: int
) -> None:
    there = begun(adversary)
    total = there.run(round_=1, attempt=1, lost={site: stage})
    assert total.contributors == tuple(s for s in range(7) if s != site or stage > 0)
    assert there.is_exact(total)
    assert there.stages == SHORT[adversary]
    stages = SHORT if stage == len(SHORT[adversary]) else FULL
    assert there.is_exact(there.run(round_=2, attempt=2))
    assert there.stages == stages[adversary]


@in_both
def test_all_keys_and_hashes_of_all_attempts_differ(adversary: Adversary) -> None:
    there, seen = InMemoryAggregation(SecAgg(), 5, adversary=adversary), list[bytes]()

    def listen(direction: str, _stage: int, _site: int, data: bytes) -> list[bytes]:
        if direction == "reply":
            message = decode_either(data, *REPLIES)
            keys = message.next_keys if isinstance(message, Vector) else message
            shares = message.next_shares if isinstance(message, Unmasking) else message
            seen.extend([keys.sealing, keys.masking] if isinstance(keys, Keys) else [])
            if isinstance(shares, Shares):
                seen.extend([*shares.seeds.values(), *shares.keys.values(), shares.commitment])
                seen.extend(shares.sealed.values())
        return [data]

    # A full set-up, then a prepared one, then one beside what was prepared, for another attempt
    # and for the same one.
    places = [(0, 0), (1, 1), (1, 2)]
    for round_, attempt in places:
        there.run(round_=round_, attempt=attempt, tamper=listen)
    assert there.stages == FULL[adversary]
    there.coordinator = SecAgg().coordinator_session(
        there.config, there.contexts[0].secret.derive("another coordinator")
    )
    there.run(round_=2, attempt=3, tamper=listen)
    assert there.stages == FULL[adversary]
    # Three full set-ups, and one prepared in each attempt.  In each, a site has two keys, five
    # hashes of shares of both kinds and one of the seed, and four sealed shares.
    assert len(seen) == len(set(seen)) == (3 + 4) * 5 * (2 + 2 * 5 + 1 + 4)


@in_both
def test_transcript_with_prepared_keys_is_unchanged(adversary: Adversary) -> None:
    there = InMemoryAggregation(SecAgg(), 6, bits=27, length=1000, adversary=adversary)
    there.run()
    there.run(round_=1, attempt=1, lost={4: 1})
    assert there.transcript.hexdigest() == FROZEN[adversary]


FROZEN = {
    "honest-but-curious": "fc32e48acf4e25b690851ce0eb2664d50ad758e6f92121846fba051fdcf491a3",
    "active": "50f0fc961870e9c12343be9a64225bd2c06aad08a15b8eef375a4dd4bf59d413",
}
"""Taken when the format got its third version, and keys of the next attempt."""


# --- When it does not -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adversary", "stage"),
    [(adversary, stage) for adversary in ADVERSARIES for stage in range(len(FULL[adversary]))],
)
def test_dropout_leads_to_a_full_set_up(adversary: Adversary, stage: int) -> None:
    """Wherever a site is lost, it is asked again, and takes part."""
    there = InMemoryAggregation(SecAgg(), 7, adversary=adversary)
    there.run(lost={3: stage})
    total = there.run(round_=1, attempt=1)
    assert there.stages == FULL[adversary]
    assert total.contributors == tuple(range(7))
    there.run(round_=2, attempt=2)
    assert there.stages == SHORT[adversary]


@in_both
def test_failed_attempt_leads_to_a_full_set_up(adversary: Adversary) -> None:
    there = begun(adversary)
    with pytest.raises(TooFewSitesError):
        there.run(round_=1, attempt=1, lost=dict.fromkeys(range(5), 0))
    assert there.stages == ["vectors"]
    for attempt, stages in ((2, FULL), (3, SHORT)):
        assert there.is_exact(there.run(round_=attempt - 1, attempt=attempt))
        assert there.stages == stages[adversary]


@in_both
@pytest.mark.parametrize(
    ("round_", "attempt", "among"),
    [
        pytest.param(0, 1, range(7), id="the round again"),
        pytest.param(2, 1, range(7), id="another round"),
        pytest.param(1, 2, range(7), id="another attempt"),
        pytest.param(1, 1, range(6), id="another cohort"),
    ],
)
def test_other_attempt_leads_to_a_full_set_up(
    adversary: Adversary, round_: int, attempt: int, among: Iterable[int]
) -> None:
    there = begun(adversary)
    total = there.run(round_=round_, attempt=attempt, among=among)
    assert there.is_exact(total)
    assert total.contributors == tuple(among)
    assert there.stages == FULL[adversary]


@in_both
def test_resumed_coordinator_begins_with_a_full_set_up(adversary: Adversary) -> None:
    there = begun(adversary)
    secret = there.contexts[0].secret.derive("another coordinator")
    there.coordinator = SecAgg().coordinator_session(there.config, secret)
    for attempt, stages in ((1, FULL), (2, SHORT)):
        assert there.is_exact(there.run(round_=attempt, attempt=attempt))
        assert there.stages == stages[adversary]


@in_both
def test_restarted_site_drops_out_once(adversary: Adversary) -> None:
    there = begun(adversary)
    there.sites[2] = SecAgg().site_session(there.config, there.contexts[2])
    seen = [there.run(round_=attempt, attempt=attempt).contributors for attempt in (1, 2, 3)]
    assert seen == [(0, 1, 3, 4, 5, 6), tuple(range(7)), tuple(range(7))]
    assert there.stages == SHORT[adversary]


class Listener:
    """Keeps the requests and replies that pass."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def __call__(self, _direction: str, _stage: int, _site: int, data: bytes) -> list[bytes]:
        self.seen.append(data)
        return [data]

    def prepared(self) -> list[object]:
        """What was asked and sent for next attempts."""
        kinds = (MaskedVectorRequest, UnmaskRequest, ConfirmedUnmaskRequest, Vector, Unmasking)
        found: list[object] = []
        for data in self.seen:
            try:
                message = decode_either(data, *kinds)
            except MessageError:
                continue
            fields = [name for name in message.__struct_fields__ if name.startswith("next_")]
            found += [getattr(message, name) for name in fields]
        return [one for one in found if one is not None]


@in_both
@pytest.mark.parametrize(
    ("sites", "round_"),
    [pytest.param(7, 8, id="the last round"), pytest.param(9, 0, id="a sampled cohort")],
)
def test_nothing_is_prepared_that_cannot_serve(
    adversary: Adversary, sites: int, round_: int
) -> None:
    there = InMemoryAggregation(SecAgg(), sites, adversary=adversary, cohort_size=7, rounds=9)
    listener = Listener()
    there.run(round_=round_, among=range(7), tamper=listener)
    assert not listener.prepared()
    assert all(site._prepared is None for site in there.sites.values())  # type: ignore[attr-defined]
    there.run(round_=round_ + 1, attempt=1, among=range(7))
    assert there.stages == FULL[adversary]


# --- What the coordinator turns down --------------------------------------------------------------


class Named(InMemoryAggregation):
    """Keeps the complaints about replies."""

    def __init__(self, adversary: Adversary) -> None:
        super().__init__(SecAgg(), 6, adversary=adversary)
        self.complaints: list[str] = []

    def _deliver(self, site: int, reply: bytes) -> None:
        try:
            self.coordinator.receive(site, reply)
        except MessageError as error:
            self.complaints.append(str(error))

    def run_with(self, kind: type[Message], change: Callable[[Any], Message]) -> Any:
        """An attempt in which the replies of site 2 of this `kind` are changed."""

        def tamper(direction: str, _stage: int, site: int, data: bytes) -> list[bytes]:
            if (direction, site) != ("reply", 2):
                return [data]
            try:
                message = decode(data, kind)
            except MessageError:
                return [data]
            return [encode(change(message))]

        return self.run(tamper=tamper)


BAD_KEYS: dict[str, Callable[[Any], Any]] = {
    "none": lambda _keys: None,
    "of the other kind": lambda keys: (
        Keys(keys.sealing, keys.masking)
        if isinstance(keys, SignedKeys)
        else SignedKeys(keys.sealing, keys.masking, bytes(64))
    ),
    "of small order": lambda keys: replace(keys, masking=bytes(32)),
}


@in_both
@pytest.mark.parametrize("bad", BAD_KEYS)
def test_site_with_bad_next_keys_is_dropped(adversary: Adversary, bad: str) -> None:
    there = Named(adversary)
    total = there.run_with(
        Vector, lambda vector: replace(vector, next_keys=BAD_KEYS[bad](vector.next_keys))
    )
    assert total.contributors == (0, 1, 3, 4, 5)
    assert there.is_exact(total)
    (complaint,) = there.complaints
    assert complaint.startswith("site 2 sent")
    assert there.is_exact(there.run(round_=1, attempt=1))
    assert there.stages == FULL[adversary]


def test_site_with_unsigned_next_keys_is_dropped() -> None:
    there = Named("active")
    total = there.run_with(
        Vector,
        lambda vector: replace(
            vector, next_keys=replace(vector.next_keys, masking=vector.next_keys.sealing)
        ),
    )
    assert total.contributors == (0, 1, 3, 4, 5)
    assert "not signed for this attempt" in there.complaints[0]


BAD_SHARES: dict[str, Callable[[Any], Any]] = {
    "none": lambda _shares: None,
    "for others": lambda shares: replace(shares, sealed=dict(list(shares.sealed.items())[1:])),
    "without hashes": lambda shares: replace(shares, keys={}),
}


@in_both
@pytest.mark.parametrize("bad", BAD_SHARES)
def test_sum_stands_without_next_shares(adversary: Adversary, bad: str) -> None:
    there = Named(adversary)
    total = there.run_with(
        Unmasking, lambda reply: replace(reply, next_shares=BAD_SHARES[bad](reply.next_shares))
    )
    assert total.contributors == tuple(range(6))
    assert there.is_exact(total)
    assert there.complaints == ["site 2 did not share with exactly its neighbours."]
    assert there.is_exact(there.run(round_=1, attempt=1))
    assert there.stages == FULL[adversary]


# --- What a site turns down -----------------------------------------------------------------------


def ahead(*, shared: bool = True) -> MaliciousCoordinator:
    """An active coordinator whose sites have prepared attempt 1."""
    attacker = MaliciousCoordinator(prepared=True)
    keys = attacker.advertise()
    if shared:
        attacker.share(keys)
    return attacker


def due(attacker: MaliciousCoordinator, site: int, attempt: int | None = None) -> Message:
    """The request with which a prepared attempt begins at a site."""
    sealed = {peer: to[site] for peer, to in attacker.sealed.items() if site in to}
    return MaskedVectorRequest(attacker.attempt if attempt is None else attempt, sealed)


def put(attacker: MaliciousCoordinator, request: Message, *, round_: int, attempt: int) -> bytes:
    """Ask site 0."""
    ask = SiteRequest(round=round_, attempt=attempt, broadcast=encode(request), own=b"")
    vector = RingVector(attacker.config.ring, attacker.vectors[0])
    reply: bytes = attacker.sites[0].handle(ask, lambda: vector)
    return reply


@pytest.mark.parametrize(("round_", "attempt"), [(0, 1), (2, 1), (1, 2), (2, 2), (0, 0)])
def test_prepared_shares_serve_one_place_only(round_: int, attempt: int) -> None:
    attacker = ahead()
    request = due(attacker, 0, attempt)
    is_refused(
        "out-of-order" if (round_, attempt) == (0, 0) else "attempt",
        lambda v: put(v, request, round_=round_, attempt=attempt),
        attacker,
    )
    # It was asked for something else, so what it has prepared is still there.
    put(attacker, due(attacker, 0), round_=1, attempt=1)


def test_vector_before_shares_is_refused() -> None:
    attacker = ahead(shared=False)
    sealed = dict.fromkeys(range(1, 10), bytes(2 * SHARE_BYTES + TAG_BYTES))
    request = MaskedVectorRequest(1, sealed)
    is_refused("attempt", lambda v: v.ask(0, request), attacker)


def test_sharing_without_keys_is_refused() -> None:
    """Whether they were never asked for, or have been shared already."""
    attacker = MaliciousCoordinator()
    attacker.up_to_vectors()
    signatures = attacker.consent(dict.fromkeys(range(10), range(10)))
    request = ConfirmedUnmaskRequest(0, signatures, attacker.keys)
    is_refused("out-of-order", lambda v: v.ask(0, request), attacker)
    is_refused("out-of-order", lambda v: v.open(0, signatures), attacker)
    again = ahead()
    is_refused("out-of-order", lambda v: v.share(v.keys, [0]), again)


@pytest.mark.parametrize("number", [1, 2])
def test_set_up_drops_what_was_prepared(number: int) -> None:
    attacker = ahead()
    put(attacker, AdvertiseKeysRequest(number, COORDINATOR), round_=1, attempt=number)
    code = "out-of-order" if number == 1 else "attempt"
    is_refused(code, lambda v: v.ask(0, due(v, 0)), attacker)
    assert attacker.sites[0]._prepared is None


def test_restarted_site_has_nothing_prepared() -> None:
    journals = [MemoryJournal() for _ in range(10)]
    attacker = MaliciousCoordinator(prepared=True, journal=lambda site: journals[site])
    attacker.share(attacker.advertise())
    attacker.restart()
    is_refused("attempt", lambda v: v.ask(0, due(v, 0)), attacker)
    attacker.ask(0, AdvertiseKeysRequest(1, COORDINATOR))


def test_next_tagging_key_of_small_order_is_refused_before_training() -> None:
    attacker = MaliciousCoordinator()
    attacker.share(attacker.advertise())
    sealed = {peer: to[0] for peer, to in attacker.sealed.items() if peer}
    request = encode(MaskedVectorRequest(0, sealed, bytes(32)))
    ask = SiteRequest(round=0, attempt=0, broadcast=request, own=b"")
    trained = []
    with pytest.raises(RefusalError) as refusal:
        attacker.sites[0].handle(ask, lambda: trained.append(0))
    assert refusal.value.code == "small-order"
    assert not trained


def test_prepared_rosters_of_wrong_size_are_refused() -> None:
    attacker = ahead(shared=False)
    few = dict(list(attacker.keys.items())[:4])
    is_refused("neighbourhood", lambda v: v.share(few, [0]), attacker)


def test_refused_unmasking_prepares_nothing() -> None:
    attacker = ahead(shared=False)
    attacker.agreed = dict(list(attacker.agreed.items())[:3])
    is_refused("consent", lambda v: v.share(v.keys, [0]), attacker)
    assert attacker.sites[0]._prepared is None


def test_request_of_full_set_up_does_not_use_prepared_keys() -> None:
    attacker = ahead()
    request = ShareKeysAmongAllRequest(1, attacker.keys)
    is_refused("attempt", lambda v: v.ask(0, request), attacker)
    is_refused("attempt", lambda v: v.ask(0, ConsistencyRequest(1, tuple(range(10)))), attacker)


def test_no_prepared_secret_is_written(tmp_path: Any) -> None:
    journals = {site: FileJournal(tmp_path / str(site)) for site in range(10)}
    attacker = MaliciousCoordinator(prepared=True, journal=journals.__getitem__)
    attacker.share(attacker.advertise())
    prepared = attacker.sites[0]._prepared
    secrets = [
        prepared.seed, *prepared.own, prepared.mac_key, prepared.masking.private,
        prepared.channel.sealing.private,
    ]  # fmt: skip
    written = b"".join(journals[0].entries())
    assert len(journals[0].entries()) == 2
    assert all(len(secret) >= 32 and secret not in written for secret in secrets)
    assert all(secret not in (tmp_path / "0").read_bytes() for secret in secrets)
    attacker.collect(range(10))
    assert len(journals[0].entries()) == 3


# --- How large messages are -----------------------------------------------------------------------


@pytest.mark.parametrize("entries", [2, 50, 1000])
def test_largest_messages_are_within_the_limit(entries: int) -> None:
    sites = range((1 << 16) - entries, 1 << 16)
    number, key, pair = (1 << 31) - 1, bytes(32), bytes(SHARE_BYTES)
    keys = Keys(key, key)
    signed = SignedKeys(key, key, bytes(64))
    sealed = dict.fromkeys(sites, bytes(2 * SHARE_BYTES + TAG_BYTES))
    digests, signatures = dict.fromkeys(sites, key), dict.fromkeys(sites, bytes(64))
    shares = Shares(sealed, key, digests, digests)
    held = dict.fromkeys(sites, pair)
    for message in (
        ConfirmedUnmaskRequest(number, signatures, dict.fromkeys(sites, signed)),
        UnmaskRequest(number, tuple(sites), dict.fromkeys(sites, keys)),
        MaskedVectorRequest(number, sealed, key),
        Unmasking(held, {}, shares),
        Vector(memoryview(b""), bytes(TAG_BYTES), signed),
    ):
        limit = max_message_bytes(0 if isinstance(message, Vector) else entries)
        data = encode(message)
        assert len(data) <= limit
        assert decode(data, type(message), limit=limit) == message


def test_prepared_tag_key_is_of_its_own_attempt() -> None:
    attacker = ahead()
    state = attacker.sites[0]._prepared
    pair = KeyPair(b"the coordinator of all attempts.")
    own = pair.agree(attacker.keys[0].sealing, attacker.scope.label("vector", 0))
    assert state.mac_key == own
    assert (attacker.scope.round, attacker.scope.attempt) == (1, 1)
