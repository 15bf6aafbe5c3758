from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium.errors import MessageError, RefusalError
from cohortium.ring.ring import PACK_BLOCK, FixedPoint, Ring

BITS = st.integers(1, 64)
LENGTHS = st.one_of(
    st.integers(0, 200),
    st.sampled_from([PACK_BLOCK - 1, PACK_BLOCK, PACK_BLOCK + 1, PACK_BLOCK + 70_001]),
)


def elements(ring: Ring, length: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 1 << 63, length, dtype=np.uint64).astype(ring.dtype)


@given(bits=BITS, length=LENGTHS, seed=st.integers(0, 1000))
@settings(deadline=None)
def test_unpacking_undoes_packing(bits: int, length: int, seed: int) -> None:
    ring = Ring(bits)
    words = elements(ring, length, seed)
    packed = ring.pack(words)
    assert len(packed) == ring.bytes_for(length)
    assert np.array_equal(ring.signed(ring.unpack(packed, length)), ring.signed(words))


@given(bits=BITS, length=LENGTHS, seed=st.integers(0, 1000), offset=st.integers(0, 8))
@settings(deadline=None)
def test_packed_addition_works_at_any_alignment(
    bits: int, length: int, seed: int, offset: int
) -> None:
    ring = Ring(bits)
    one, two = elements(ring, length, seed), elements(ring, length, seed + 1)
    total = one.copy()
    ring.add(memoryview(bytes(offset) + ring.pack(two))[offset:], total)
    assert np.array_equal(ring.signed(total), ring.signed(one + two))
    spread = np.repeat(one, 2)
    ring.add(ring.pack(two), spread[::2])
    assert np.array_equal(spread[::2], total)
    assert np.array_equal(spread[1::2], one)


def test_packed_element_layout_is_unchanged() -> None:
    # 33 elements of 3 bits, 0 to 7 over and over, make 32 lanes of two, the last 15 empty.  Lane
    # after lane fills the words from the lowest bit; written out by hand from that description.
    lanes = [[i % 8, (i + 1) % 8 if i < 32 else 0] for i in range(0, 33, 2)]
    columns = [sum(lane[k] << 3 * n for n, lane in enumerate(lanes)) for k in (0, 1)]
    expected = b"".join(
        (column >> 32 * row & 0xFFFFFFFF).to_bytes(4, "little")
        for row in range(3)
        for column in columns
    )
    assert Ring(3).pack(np.arange(33, dtype="<u4")) == expected


@pytest.mark.parametrize("bits", [20, 27, 32, 40])
def test_long_packed_vector_has_little_overhead(bits: int) -> None:
    length = 4_802_120
    assert Ring(bits).bytes_for(length) * 8 / length < bits + 0.001


@given(bits=BITS, length=st.integers(0, 100), change=st.sampled_from([-1, 1, 7]))
def test_a_vector_of_another_length_is_refused(bits: int, length: int, change: int) -> None:
    ring = Ring(bits)
    data = bytes(max(0, ring.bytes_for(length) + change))
    if len(data) == ring.bytes_for(length):
        return
    with pytest.raises(MessageError, match="elements"):
        ring.unpack(data, length)
    total = elements(ring, length)
    with pytest.raises(MessageError, match="elements"):
        ring.add(data, total)
    assert np.array_equal(total, elements(ring, length))


@given(bits=BITS, values=st.lists(st.integers(-(2**62), 2**62 - 1), min_size=1, max_size=20))
def test_sums_are_right_whenever_the_true_sum_fits(bits: int, values: list[int]) -> None:
    ring = Ring(bits)
    total = ring.zeros(1)
    for value in values:
        total += ring.encode_signed(np.array([value]))
    wrapped = (sum(values) + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)
    assert ring.signed(total)[0] == wrapped


@given(
    largest=st.floats(1e-3, 1e6),
    step=st.floats(1e-6, 1.0),
    fractions=st.lists(st.floats(-1, 1), min_size=1, max_size=10),
)
def test_fixed_point_errs_by_half_a_step(
    largest: float, step: float, fractions: list[float]
) -> None:
    code = FixedPoint.fitting(largest, step=step)
    values = np.array(fractions) * largest
    assert np.abs(code.decode(code.encode(values)) - values).max() <= step * 0.5000001


@pytest.mark.parametrize(("largest", "bits"), [(1.0, 3), (3.0, 4), (6.0, 5), (100.0, 8)])
def test_ring_is_narrowest_holding_sum(largest: float, bits: int) -> None:
    assert FixedPoint.fitting(largest, step=1.0).ring.bits == bits


def test_sums_beyond_64_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="need 8"):
        FixedPoint.fitting(1e6, step=1e-18)


@given(bits=BITS, step=st.sampled_from([2.0**-9, 1.0, 3.0]), data=st.data())
def test_value_beyond_ring_is_refused(bits: int, step: float, data: st.DataObject) -> None:
    code, half = FixedPoint(Ring(bits), step), 2.0 ** (bits - 1)
    beyond = data.draw(st.sampled_from([half, -half - 1, 4 * half, 1e300, np.inf, np.nan]))
    values = np.zeros(70_000)
    values[data.draw(st.integers(0, len(values) - 1))] = beyond * step * (1 + 1e-12)
    if bits < 53 or abs(beyond) > half:
        with pytest.raises(RefusalError, match="would wrap"):
            code.encode(values)
    assert code.decode(code.encode(np.array([-half * step])))[0] == -half * step
