"""The aggregator through its public face: bytes in memory, any of them lost or damaged."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cohortium.plugin import MessageError, RingSum, TooFewSitesError, decode, encode
from cohortium.ring.ring import PACK_BLOCK
from cohortium_secagg import SecAgg, _stages
from cohortium_secagg._keys import KeyPair, tag
from cohortium_secagg._messages import Vector
from tests.support.in_memory_aggregation import InMemoryAggregation

KEYS, SHARES, VECTOR, UNMASKING = range(4)


@given(
    sites=st.integers(2, 14),
    shares=st.integers(2, 7),
    bits=st.integers(1, 64),
    length=st.integers(0, 70),
)
@settings(max_examples=60, deadline=None)
def test_sum_is_exact_at_every_size_and_width(
    sites: int, shares: int, bits: int, length: int
) -> None:
    aggregation = InMemoryAggregation(
        SecAgg(reconstruction_threshold=2, num_shares=shares), sites, bits=bits, length=length
    )
    total = aggregation.run()
    assert total.contributors == tuple(range(sites))
    assert aggregation.is_exact(total)


def test_vector_longer_than_mask_block_sums_exactly() -> None:
    aggregation = InMemoryAggregation(SecAgg(), 5, bits=27, length=150_001)
    before = {site: words.copy() for site, words in aggregation.vectors.items()}
    assert aggregation.is_exact(aggregation.run(lost={2: VECTOR}))
    assert all((aggregation.vectors[site] == before[site]).all() for site in before)


@pytest.mark.parametrize("stage", [KEYS, SHARES, VECTOR, UNMASKING])
@pytest.mark.parametrize("site", range(7))
def test_single_dropout_at_any_stage_is_survived(site: int, stage: int) -> None:
    aggregation = InMemoryAggregation(SecAgg(), 7)
    total = aggregation.run(lost={site: stage})
    others = tuple(s for s in range(7) if s != site or stage == UNMASKING)
    assert total.contributors == others
    assert aggregation.is_exact(total)


@pytest.mark.parametrize("stages", itertools.product([KEYS, SHARES, VECTOR, UNMASKING], repeat=3))
def test_dropouts_up_to_threshold_are_survived(stages: tuple[int, ...]) -> None:
    lost = dict(zip((1, 4, 6), stages, strict=True))
    aggregation = InMemoryAggregation(SecAgg(reconstruction_threshold=5, num_shares=8), 8)
    total = aggregation.run(lost=lost)
    assert total.contributors == tuple(s for s in range(8) if lost.get(s, UNMASKING) == UNMASKING)
    assert aggregation.is_exact(total)


@pytest.mark.parametrize("stage", [KEYS, SHARES, VECTOR, UNMASKING])
def test_dropouts_beyond_threshold_release_nothing(stage: int) -> None:
    aggregation = InMemoryAggregation(SecAgg(reconstruction_threshold=5, num_shares=8), 8)
    with pytest.raises(TooFewSitesError, match=r"^[^.]*\.$"):
        aggregation.run(lost=dict.fromkeys((0, 1, 4, 6), stage))
    with pytest.raises(TooFewSitesError):
        aggregation.coordinator.sum()


def test_failed_attempt_is_followed_by_success() -> None:
    aggregation = InMemoryAggregation(SecAgg(), 5)
    with pytest.raises(TooFewSitesError):
        aggregation.run(lost={0: VECTOR, 1: VECTOR})
    assert aggregation.is_exact(aggregation.run(attempt=1))
    assert aggregation.is_exact(aggregation.run(round_=1, attempt=2, lost={3: UNMASKING}))


@given(lost=st.dictionaries(st.integers(0, 11), st.integers(0, 3), max_size=6))
@settings(max_examples=60, deadline=None)
def test_unrecoverable_sites_are_dropped_before_training(
    lost: dict[int, int],
) -> None:
    aggregation = InMemoryAggregation(SecAgg(reconstruction_threshold=3, num_shares=5), 12)
    try:
        total = aggregation.run(lost=lost)
    except TooFewSitesError:
        return
    assert aggregation.is_exact(total)
    assert total.contributors == tuple(sorted(aggregation.trained))


faults = st.dictionaries(
    st.tuples(st.sampled_from(["ask", "reply"]), st.integers(0, 3), st.integers(0, 6)),
    st.tuples(
        st.sampled_from(["lose", "flip", "cut", "twice", "older", "other"]), st.integers(0, 1 << 20)
    ),
    max_size=4,
)


@pytest.mark.slow
@given(faults=faults, threshold=st.integers(2, 5))
@settings(max_examples=150, deadline=None)
def test_tampered_messages_give_exact_sum_or_none(
    faults: dict[tuple[str, int, int], tuple[str, int]], threshold: int
) -> None:
    older: dict[tuple[str, int, int], bytes] = {}
    latest: dict[tuple[str, int, int], bytes] = {}

    def remember(direction: str, stage: int, site: int, data: bytes) -> list[bytes]:
        older[direction, stage, site] = data
        return [data]

    def damage(direction: str, stage: int, site: int, data: bytes) -> list[bytes]:
        latest[direction, stage, site] = data
        what, where = faults.get((direction, stage, site), ("", 0))
        position = where % max(1, len(data))
        flipped = bytearray(data)
        if data:
            flipped[position] ^= 1 << (where % 8)
        replaced = {
            "lose": [],
            "flip": [bytes(flipped)],
            "cut": [data[:position]],
            "twice": [data, data],
            "older": [older.get((direction, stage, where % 7), b"")],
            "other": [latest.get((direction, stage, where % 7), b"")],
        }
        return replaced.get(what, [data])

    aggregation = InMemoryAggregation(SecAgg(reconstruction_threshold=threshold, num_shares=5), 7)
    aggregation.run(tamper=remember)
    try:
        total = aggregation.run(attempt=1, tamper=damage)
    except TooFewSitesError:
        assert faults
    else:
        assert aggregation.is_exact(total)


def test_late_vector_is_refused() -> None:
    aggregation, held = InMemoryAggregation(SecAgg(), 6), list[bytes]()

    def late(direction: str, stage: int, site: int, data: bytes) -> list[bytes]:
        if (direction, site) == ("reply", 2) and stage == VECTOR:
            held.append(data)
            return []
        if stage == UNMASKING and held:
            with pytest.raises(MessageError):
                aggregation.coordinator.receive(2, held.pop())
        return [data]

    total = aggregation.run(tamper=late)
    assert 2 not in total.contributors
    assert aggregation.is_exact(total)


def made_up(aggregation: InMemoryAggregation, how: str) -> RingSum:
    """A sum in which somebody else has sent the vector of site 2 for it."""
    aggregation.run(tamper=(seen := Listener()))

    def tamper(direction: str, stage: int, site: int, data: bytes) -> list[bytes]:
        if (direction, stage, site) != ("reply", VECTOR, 2):
            return [data]
        vector, packed = decode(data, Vector), bytearray(decode(data, Vector).packed)
        packed[0] ^= 1
        attempt = aggregation.coordinator._stage.masking_graph.attempt  # type: ignore[attr-defined]
        label = attempt.scope.label("vector", 2)
        key = KeyPair(b"somebody who knows no secrets...").agree(
            attempt.mac_agreement_key.public, label
        )
        return {
            "changed": [encode(replace(vector, packed=memoryview(packed)))],
            "with a key of their own": [
                encode(replace(vector, packed=packed, tag=tag(key, memoryview(packed))))
            ],
            "of another site": [seen.vectors[1]],
            "of an older attempt": [seen.vectors[2]],
        }[how]

    return aggregation.run(attempt=1, tamper=tamper)


class Listener:
    """Keeps the vectors that pass."""

    def __init__(self) -> None:
        self.vectors: dict[int, bytes] = {}

    def __call__(self, direction: str, stage: int, site: int, data: bytes) -> list[bytes]:
        if (direction, stage) == ("reply", VECTOR):
            self.vectors[site] = data
        return [data]


@pytest.mark.parametrize(
    "how", ["changed", "with a key of their own", "of another site", "of an older attempt"]
)
def test_untagged_vector_is_refused(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    aggregation = InMemoryAggregation(SecAgg(), 5)
    total = made_up(aggregation, how)
    assert total.contributors == (0, 1, 3, 4)
    assert aggregation.is_exact(total)
    monkeypatch.setattr(_stages, "verify_tag", lambda *_: True)
    aggregation = InMemoryAggregation(SecAgg(), 5)
    assert not aggregation.is_exact(made_up(aggregation, how))


def test_a_transcript_does_not_depend_on_threads() -> None:
    seen = set()
    for threads in (0, 1, 2):
        aggregation = InMemoryAggregation(
            SecAgg(reconstruction_threshold=3, threads=threads),
            4,
            bits=27,
            length=2 * PACK_BLOCK + 5,
        )
        aggregation.run(lost={2: UNMASKING})
        seen.add(aggregation.transcript.hexdigest())
    assert len(seen) == 1
    with pytest.raises(ValueError, match="threads"):
        SecAgg(threads=-1)


def test_a_masked_vector_looks_uniform() -> None:
    aggregation, seen = InMemoryAggregation(SecAgg(), 5, bits=32, length=100_000), list[bytes]()
    aggregation.vectors = {site: aggregation.ring.zeros(100_000) for site in aggregation.sites}

    def listen(direction: str, stage: int, _site: int, data: bytes) -> list[bytes]:
        if (direction, stage) == ("reply", VECTOR):
            seen.append(data[64:-64])
        return [data]

    aggregation.run(tamper=listen)
    for data in seen:
        counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
        expected = len(data) / 256
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        # 255 degrees of freedom: mean 255, standard deviation 22.6.
        assert 255 - 5 * 22.6 < chi_square < 255 + 5 * 22.6


def test_no_attempt_reuses_a_mask() -> None:
    aggregation, seen = InMemoryAggregation(SecAgg(), 5, length=50), list[bytes]()

    def listen(direction: str, stage: int, site: int, data: bytes) -> list[bytes]:
        if (direction, stage, site) == ("reply", VECTOR, 0):
            seen.append(data)
        return [data]

    for attempt in range(3):
        aggregation.run(attempt=attempt, tamper=listen)
    assert len(set(seen)) == 3


def test_simulated_attempt_transcript_is_unchanged() -> None:
    aggregation = InMemoryAggregation(SecAgg(), 6, bits=27, length=1000)
    aggregation.run(lost={4: VECTOR})
    assert aggregation.transcript.hexdigest() == (
        # Taken when the format got its third version, and keys of the next attempt.
        "081ba932e18f7ebf2eee954980313e5542f0cc261192c1f24e959f4e3cf8f6c8"
    )


def test_site_upload_is_close_to_packed_vector() -> None:
    aggregation = InMemoryAggregation(SecAgg(), 20, bits=27, length=10_000)
    for number in range(3):
        aggregation.uploads.clear()
        aggregation.run(round_=number, attempt=number)
        # The first attempt also has the keys and the shares of the second.
        beyond = 3000 if number == 0 else 1500
        assert max(aggregation.uploads.values()) < aggregation.ring.bytes_for(10_000) + beyond


def test_contributor_masked_only_by_colluders_is_refused() -> None:
    # One neighbour lost (its masks are opened) and three colluding know every mask of the fifth.
    with pytest.raises(TooFewSitesError, match="with 3 colluding sites"):
        InMemoryAggregation(SecAgg(), 10, max_colluding=3).run(lost={5: VECTOR})
    assert InMemoryAggregation(SecAgg(), 10, max_colluding=3).run().contributors == tuple(range(10))
    aggregation = InMemoryAggregation(
        SecAgg(reconstruction_threshold=6, num_shares=10), 10, max_colluding=3
    )
    assert aggregation.is_exact(aggregation.run(lost={5: VECTOR, 6: SHARES}))


def test_min_contributors_is_enforced() -> None:
    aggregation = InMemoryAggregation(SecAgg(), 6, min_contributors=6)
    with pytest.raises(TooFewSitesError, match="at least 6"):
        aggregation.run(lost={0: VECTOR})
