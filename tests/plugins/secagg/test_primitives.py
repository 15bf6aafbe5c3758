"""The parts: published vectors, Shamir's sharing, the graph and the masks."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium.plugin import KeyStream, Randomness, RefusalError, Ring
from cohortium.ring.ring import PACK_BLOCK
from cohortium_secagg._graph import Graph, k_core
from cohortium_secagg._keys import KeyPair, KnownAgreements, seal, tag, unseal, verify_tag
from cohortium_secagg._masks import Mask, apply, pairwise
from cohortium_secagg._protocol_parameters import AttemptLabel
from cohortium_secagg._shamir import PRIME, SHARE_BYTES, LagrangeInterpolation, split
from cohortium_secagg._vectors import masked, unmask

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

SECRET = Randomness.insecure_from_seed(1)
SCOPE = AttemptLabel(b"sixteen bytes id", 3, 4)

secrets = st.binary(min_size=32, max_size=32)


# --- Published vectors ----------------------------------------------------------------------------

# RFC 7748, section 6.1.
ALICE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
ALICE_PUBLIC = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
BOB_PUBLIC = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
COMMON = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")


def hkdf(broadcast: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869, section 2, with no salt, written out."""
    extracted = hmac.digest(bytes(32), broadcast, "sha256")
    block, out = b"", b""
    for counter in itertools.count(1):
        block = hmac.digest(extracted, block + info + bytes([counter]), "sha256")
        out += block
        if len(out) >= length:
            break
    return out[:length]


def ecb(key: bytes, block: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)


def test_hkdf_matches_rfc_5869() -> None:
    expected = (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )
    assert hkdf(b"\x0b" * 22, b"", 42).hex() == expected


def test_key_agreement_matches_rfc_7748() -> None:
    alice, bob = KeyPair(ALICE), KeyPair(BOB)
    assert (alice.public, bob.public) == (ALICE_PUBLIC, BOB_PUBLIC)
    expected = hkdf(COMMON, b"a label", 32)
    assert alice.agree(BOB_PUBLIC, b"a label") == bob.agree(ALICE_PUBLIC, b"a label") == expected


def test_mask_matches_sp_800_38a_key_stream() -> None:
    # Appendix F.1.5 (ECB-AES256.Encrypt) vouches for the block cipher.
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    block = bytes.fromhex("6bc1bee22e409f96e93d7e117393172a")
    assert ecb(key, block).hex() == "f3eed1bdb5d2a03c064b5a7e3db181f8"
    for word, piece in itertools.product(("<u4", "<u8"), (0, 258)):
        nonce = piece.to_bytes(12, "big")
        counters = range(2, 30_002)  # more than is made at a time
        stream = b"".join(ecb(key, nonce + counter.to_bytes(4, "big")) for counter in counters)
        words = np.zeros(len(stream) // int(word[-1]), word)
        apply([Mask(key)], words, piece=piece)
        assert words.tobytes() == stream
        apply([Mask(key, subtract=True)], words, piece=piece)
        assert not words.any()


def test_vector_pieces_have_different_masks() -> None:
    ring = Ring(32)
    words = ring.zeros(2 * PACK_BLOCK + 5)
    unmask(words, [Mask(bytes(32))], ring, threads=1)
    for piece in ring.pieces(len(words)):
        alone = np.zeros_like(words[piece.values])
        apply([Mask(bytes(32))], alone, piece=piece.number)
        assert np.array_equal(words[piece.values], alone)
    assert not np.array_equal(words[:5], words[PACK_BLOCK : PACK_BLOCK + 5])
    assert not np.array_equal(words[:5], words[-5:])


def test_tag_matches_rfc_8439_poly1305() -> None:
    key = bytes.fromhex("85d6be7857556d337f4452fe42d506a80103808afb0db2fd4abff6af4149f51b")
    text = memoryview(b"Cryptographic Forum Research Group")
    assert tag(key, text).hex() == "a8061dc1305136c6c22b8baf0c0127a9"
    assert verify_tag(key, text, tag(key, text))
    assert not verify_tag(key, text[1:], tag(key, text))


# --- Keys -----------------------------------------------------------------------------------------

SMALL_ORDER = [bytes(32), bytes([1, *[0] * 31]), (2**255 - 20).to_bytes(32, "little")]


@pytest.mark.parametrize("public", SMALL_ORDER)
def test_keys_of_small_order_are_refused(public: bytes) -> None:
    with pytest.raises(RefusalError) as refusal:
        KeyPair(ALICE).agree(public, b"")
    assert refusal.value.code == "small-order"
    assert not KeyPair(BOB).can_agree(public)
    assert KeyPair(ALICE).can_agree(BOB_PUBLIC)


@pytest.mark.parametrize("position", [0, 3, -1])
def test_sealed_bytes_bind_key_text_label(position: int) -> None:
    sealed = seal(COMMON, b"plain", bound_to=b"label")
    assert unseal(COMMON, sealed, bound_to=b"label") == b"plain"
    changed = bytearray(sealed)
    changed[position] ^= 1
    for key, text, label in (
        (COMMON, bytes(changed), b"label"),
        (COMMON, sealed, b"Label"),
        (ALICE, sealed, b"label"),
    ):
        with pytest.raises(RefusalError, match="does not authenticate"):
            unseal(key, text, bound_to=label)


@given(alice=secrets, bob=secrets)
@settings(max_examples=30, deadline=None)
def test_key_pairs_agree_alike_in_one_process_and_two(alice: bytes, bob: bytes) -> None:
    known = KnownAgreements()
    first, second = KeyPair(alice, known), KeyPair(bob, known)
    expected = KeyPair(bob).agree(first.public, b"label")
    assert first.agree(second.public, b"label") == expected
    assert second.agree(first.public, b"label") == expected


def test_agreement_in_one_process_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    known = KnownAgreements()
    alice, bob, carol = KeyPair(ALICE, known), KeyPair(BOB, known), KeyPair(bytes(32))
    expected = alice.agree(BOB_PUBLIC, b"a label")
    monkeypatch.setattr("cohortium_secagg._keys.X25519PublicKey", None)
    assert bob.agree(ALICE_PUBLIC, b"a label") == expected
    with pytest.raises(AttributeError):
        carol.agree(ALICE_PUBLIC, b"a label")


def test_agreements_are_dropped_with_their_key_pairs() -> None:
    known = KnownAgreements()
    alice, bob = KeyPair(ALICE, known), KeyPair(BOB, known)
    alice.agree(BOB_PUBLIC, b"a label")
    del alice
    assert list(known) == [BOB_PUBLIC]
    del bob
    assert not known


def test_key_pair_repr_hides_private_key() -> None:
    assert repr(KeyPair(ALICE)) == "KeyPair()"


def test_attempt_labels_are_unique() -> None:
    scopes = [AttemptLabel(s, r, a) for s in (b"a" * 16, b"b" * 16) for r in (0, 1) for a in (0, 1)]
    labels = [
        scope.label(purpose, *sites)
        for scope in scopes
        for purpose in ("mask", "shares")
        for sites in ((0, 1), (1, 0), (0,), ())
    ]
    assert len(set(labels)) == len(labels)


# --- Shamir ---------------------------------------------------------------------------------------

# Wikipedia, "Shamir's secret sharing", example: 1234 + 166 x + 94 x² at x = 1, …, 6.  The numbers
# are smaller than the field, and so the same in it; site k holds the value at k + 1.
EXAMPLE = {0: 1494, 1: 1942, 2: 2578, 3: 3402, 4: 4414, 5: 5614}


class Scripted(KeyStream):
    """A stream that draws the example's coefficients, the highest first."""

    def __init__(self) -> None:
        self.left = [94, 166]

    def below(self, limit: int) -> int:
        return self.left.pop(0)


@pytest.mark.parametrize("holders", [(1, 3, 4), (0, 1, 2), (5, 0, 3)])
def test_sharing_matches_published_example(holders: tuple[int, ...]) -> None:
    secret = (1234).to_bytes(32, "big")
    shares = split(secret, EXAMPLE, threshold=3, stream=Scripted())
    assert {site: int.from_bytes(share, "big") for site, share in shares.items()} == EXAMPLE
    assert LagrangeInterpolation(holders).secret(shares) == secret


def test_the_field_is_prime() -> None:
    """Pratt would want factors; 64 rounds of Miller and Rabin (1980) err once in 4**64."""
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 66):
        powers = [pow(base, odd << i, PRIME) for i in range(twos)]
        assert powers[0] == 1 or PRIME - 1 in powers


@given(secret=secrets, holders=st.sets(st.integers(0, 400), min_size=2, max_size=9), data=st.data())
@settings(max_examples=50, deadline=None)
def test_any_threshold_of_shares_recover_the_secret(
    secret: bytes, holders: set[int], data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(2, len(holders)))
    shares = split(secret, holders, threshold=threshold, stream=SECRET.stream("any"))
    assert {len(share) for share in shares.values()} == {SHARE_BYTES}
    chosen = data.draw(st.permutations(sorted(holders)))[:threshold]
    assert LagrangeInterpolation(tuple(chosen)).secret(shares) == secret


@given(secret=secrets, other=secrets)
@settings(max_examples=30, deadline=None)
def test_fewer_shares_fit_every_secret(secret: bytes, other: bytes) -> None:
    shares = split(secret, range(5), threshold=4, stream=SECRET.stream("fewer"))
    # A fourth share can be made up so that the three known ones belong to any other secret.
    weights = LagrangeInterpolation((0, 1, 2, 3))._weights
    known = sum(
        w * int.from_bytes(shares[h], "big") for w, h in zip(weights, range(3), strict=False)
    )
    fourth = (int.from_bytes(other, "big") - known) * pow(weights[3], -1, PRIME) % PRIME
    made_up = {**shares, 3: fourth.to_bytes(SHARE_BYTES, "big")}
    assert LagrangeInterpolation((0, 1, 2, 3)).secret(made_up) == other


def test_a_share_alone_is_uniform() -> None:
    stream = SECRET.stream("uniform")
    firsts = [split(bytes(32), [7], threshold=2, stream=stream)[7][1] for _ in range(4_000)]
    counts = np.bincount(firsts, minlength=256)
    chi_square = float(((counts - 4_000 / 256) ** 2 / (4_000 / 256)).sum())
    # 255 degrees of freedom: mean 255, standard deviation 22.6.
    assert chi_square < 255 + 5 * 22.6


def test_shares_of_no_secret_are_an_error() -> None:
    above = (2**256).to_bytes(SHARE_BYTES, "big")
    with pytest.raises(ValueError, match="no 32-byte secret"):
        LagrangeInterpolation((0, 1)).secret({0: above, 1: above})


# --- The graph ------------------------------------------------------------------------------------


def is_connected(graph: Graph, sites: Collection[int]) -> bool:
    left, found = set(sites), [min(sites, default=0)]
    neighbours = graph.neighbours()
    while found:
        site = found.pop()
        left.discard(site)
        found += neighbours[site] & left
        left -= neighbours[site]
    return not left


@given(count=st.integers(1, 40), degree=st.integers(1, 12))
def test_graph_is_regular_symmetric_and_connected(count: int, degree: int) -> None:
    sites = range(100, 100 + count)
    graph = Graph.draw(sites, degree, SECRET.stream("graph"))
    neighbours = graph.neighbours()
    wanted = min(max(degree, 2), count - 1)
    wanted += wanted % 2 and count % 2
    assert {len(peers) for peers in neighbours.values()} == {wanted} == {graph.degree}
    assert all(site in neighbours[peer] for site in sites for peer in neighbours[site])
    assert all(site not in neighbours[site] for site in sites)
    assert is_connected(graph, sites)


@given(
    count=st.integers(3, 11),
    degree=st.integers(2, 7),
    without=st.integers(0, 4),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_graph_connectivity_matches_exhaustive_removal(
    count: int, degree: int, without: int, data: st.DataObject
) -> None:
    graph = Graph.draw(range(count), degree, SECRET.stream("graph"))
    present = data.draw(st.sets(st.integers(0, count - 1), min_size=min(count, without + 2)))
    truth = all(
        is_connected(graph, present - set(removed))
        for number in range(without + 1)
        for removed in itertools.combinations(sorted(present), number)
    )
    claim = graph.is_connected_after_removing(present, without=without)
    assert claim <= truth
    if not graph.opposite or graph.degree == count - 1:
        assert claim == truth


def test_two_draws_give_two_graphs() -> None:
    stream = SECRET.stream("graph")
    assert Graph.draw(range(30), 4, stream) != Graph.draw(range(30), 4, stream)


def test_k_core_drops_sites_below_quorum() -> None:
    ring = Graph(circle=tuple(range(10)), reach=1, opposite=False).neighbours()
    assert k_core(ring, range(10), 3) == frozenset(range(10))
    assert k_core(ring, range(9), 3) == frozenset()
    assert k_core(ring, range(9), 2) == frozenset(range(9))


# --- Masks ----------------------------------------------------------------------------------------


@given(lower=secrets, higher=secrets, length=st.integers(0, 300))
@settings(deadline=None)
def test_the_masks_of_a_pair_cancel(lower: bytes, higher: bytes, length: int) -> None:
    one, two = KeyPair(lower), KeyPair(higher)
    words = np.arange(length, dtype="<u4")
    apply([pairwise(one, two.public, SCOPE, 2, 9), pairwise(two, one.public, SCOPE, 9, 2)], words)
    assert (words == np.arange(length)).all()


MANY = [Mask(hashlib.sha256(bytes([i])).digest(), subtract=i % 3 == 0) for i in range(80)]


def peak_of(work: Callable[[], object]) -> int:
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("threads", [1, 2])
def test_masking_holds_no_mask_of_full_length(threads: int) -> None:
    ring, words = Ring(27), np.zeros(3_000_000, "<u4")
    packed = ring.bytes_for(len(words))
    assert peak_of(lambda: unmask(words, MANY, ring, threads=threads)) < words.nbytes / 3
    assert peak_of(lambda: masked(words, MANY, ring, threads=threads)) < packed + words.nbytes / 2


@pytest.mark.parametrize("bits", [27, 40])
@pytest.mark.parametrize("length", [0, 1, PACK_BLOCK, 3 * PACK_BLOCK + 5])
def test_any_number_of_threads_gives_the_same_bits(bits: int, length: int) -> None:
    ring, masks = Ring(bits), MANY[:3]
    words = ring.encode_signed(np.random.default_rng(0).integers(0, 1 << 62, length))
    sent = {bytes(masked(words, masks, ring, threads=threads)) for threads in (1, 2, 3, 7)}
    plain = words.copy()
    unmask(plain, masks, ring, threads=1)
    assert sent == {ring.pack(plain)}
    opposite = [Mask(mask.seed, subtract=not mask.subtract) for mask in masks]
    for threads in (1, 2, 3, 7):
        total = ring.zeros(length)
        ring.add(min(sent), total)
        unmask(total, opposite, ring, threads=threads)
        assert np.array_equal(ring.signed(total), ring.signed(words))


def test_thread_exception_is_propagated() -> None:
    words = np.zeros(2 * PACK_BLOCK, "<u4")
    with pytest.raises(ValueError, match="key"):
        masked(words, [Mask(b"no key")], Ring(27), threads=2)
