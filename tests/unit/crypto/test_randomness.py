from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cohortium.crypto.randomness import KeyStream, Randomness, Seeds

# NIST SP 800-38A (2001), F.5.5 CTR-AES256.Encrypt uses a counter that starts elsewhere; the
# stream from counter zero is AES-256 of 0, 1, 2, …  With the all-zero key the first block is the
# AES-256 known answer of "AESAVS" (NIST 2002), appendix B.1 with key and text zero.
ZERO_KEY_BLOCK = bytes.fromhex("dc95c078a2408989ad48a21492842087")


def test_stream_matches_aes_256_counter_mode() -> None:
    assert KeyStream(bytes(32)).bytes(16) == ZERO_KEY_BLOCK


def test_stream_is_independent_of_read_sizes() -> None:
    whole = KeyStream(b"k" * 32).bytes(600_000)
    parts = KeyStream(b"k" * 32)
    assert b"".join(parts.bytes(n) for n in (1, 15, 262_144, 337_840)) == whole


def test_seeded_randomness_repeats_and_is_marked_simulated() -> None:
    one, two = (
        Randomness.insecure_from_seed(3).derive("a", 1).secret_bytes(8, "x") for _ in range(2)
    )
    assert one == two
    assert one != Randomness.insecure_from_seed(3).derive("a", 2).secret_bytes(8, "x")
    assert Randomness.insecure_from_seed(3).is_simulated
    assert not Randomness.system().is_simulated


def test_the_systems_source_never_repeats_itself() -> None:
    source = Randomness.system()
    assert source.secret_bytes(16, "x") != source.secret_bytes(16, "x")
    assert source.stream("x").bytes(16) != source.stream("x").bytes(16)


def test_randomness_repr_hides_seed() -> None:
    assert "12345" not in repr(Randomness.insecure_from_seed(12345))


def test_normal_draws_are_standard_normal() -> None:
    sample = KeyStream(b"n" * 32).normal(200_001)
    assert len(sample) == 200_001
    assert stats.kstest(sample, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(sample[:100_000], sample[100_001:])[0, 1]) < 0.02


def test_uniform_draws_pass_kolmogorov_smirnov_test() -> None:
    sample = KeyStream(b"u" * 32).uniform(100_000)
    assert sample.min() >= 0
    assert sample.max() < 1
    assert stats.kstest(sample, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("limit", [1, 2, 3, 10, 257])
def test_integers_below_limit_are_uniform(limit: int) -> None:
    stream = KeyStream(b"i" * 32)
    counts = np.bincount([stream.below(limit) for _ in range(100 * limit)], minlength=limit)
    assert len(counts) == limit
    assert limit == 1 or stats.chisquare(counts).pvalue > 1e-4


def test_seeds_differ_by_purpose_and_place() -> None:
    seeds = Seeds(7)
    drawn = {
        seeds.integer("weights"),
        seeds.integer("partition"),
        seeds.integer("augmentation", 0, 1),
        seeds.integer("augmentation", 1, 0),
        Seeds(8).integer("weights"),
    }
    assert len(drawn) == 5
