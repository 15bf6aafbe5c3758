"""Additive sharing: the bits of plain sums, what a share shows, and what a site refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium import Federation
from cohortium.crypto.randomness import Randomness
from cohortium.errors import MessageError, RefusalError, RunError, StudyError
from cohortium.messages.codec import decode, encode
from cohortium.ring.ring import Ring, RingVector
from cohortium.roles.values import AggregationConfig, FederationSpec, SiteContext, SiteRequest
from cohortium_additive import Additive
from cohortium_additive._messages import Key, KeyRequest, Shares, SharesRequest, SumRequest

COHORT = FederationSpec(sites=4, cohort_size=4, examples=40, rounds=9)


def config(
    bits: int = 20, length: int = 40, federation_spec: FederationSpec = COHORT
) -> AggregationConfig:
    return AggregationConfig(
        session=bytes(16), ring=Ring(bits), length=length, federation_spec=federation_spec
    )


class Sums:
    """Four sites and a coordinator who keeps every message."""

    def __init__(self, seed: int = 0, agreed: AggregationConfig | None = None) -> None:
        self.config = agreed or config()
        self.coordinator = Additive().coordinator_session(self.config, Randomness.system())
        secret = Randomness.insecure_from_seed(seed)
        self.sites = [
            Additive().site_session(
                self.config, SiteContext(site=k, secret=secret.derive("site", k))
            )
            for k in range(4)
        ]
        rng = np.random.default_rng(seed)
        values = rng.integers(-1000, 1000, (4, self.config.length))
        self.vectors = [
            RingVector(self.config.ring, self.config.ring.encode_signed(v)) for v in values
        ]
        self.wanted = values.sum(0)
        self.asked: list[tuple[int, SiteRequest]] = []

    def answer(self, site: int, ask: SiteRequest) -> bytes:
        self.asked.append((site, ask))
        return self.sites[site].handle(ask, lambda: self.vectors[site])

    def play(self, attempt: int = 0) -> list[dict[int, bytes]]:
        self.coordinator.begin_attempt(attempt, attempt, range(4))
        seen = []
        while asked := self.coordinator.next_requests():
            replies = {}
            for site, own in asked.per_site.items():
                ask = SiteRequest(
                    round=attempt, attempt=attempt, broadcast=asked.broadcast, own=own
                )
                replies[site] = self.answer(site, ask)
                self.coordinator.receive(site, replies[site])
            seen.append(replies)
        return seen


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(13, 64), st.integers(0, 300))
def test_the_sum_is_exact(seed: int, bits: int, length: int) -> None:
    sums = Sums(seed, config(bits, length))
    sums.play()
    total = sums.coordinator.sum()
    assert total.contributors == (0, 1, 2, 3)
    assert np.array_equal(total.ring.signed(total.words), sums.wanted)


def test_partial_sums_are_uniform() -> None:
    """What three of four sites send is uniform: over many attempts no bit of it is biased."""
    sums = Sums()
    attempts = 400
    sent = [sums.play(attempt)[2] for attempt in range(attempts)]
    unpack = sums.config.ring.unpack
    words = np.array([[unpack(replies[k], 40) for k in range(4)] for replies in sent])
    for some in itertools.combinations(range(4), 3):
        partial = words[:, some].astype(np.int64).sum(1) & 0xFFFFF
        ones = (partial[..., None] >> np.arange(20)) & 1
        share = ones.mean((0, 1))
        assert np.abs(share - 0.5).max() < 5 * 0.5 / np.sqrt(attempts * 40)
    whole = words.astype(np.int64).sum(1) & 0xFFFFF
    assert (whole == whole[0]).all()


def test_no_two_attempts_share_a_mask() -> None:
    sums = Sums()
    first, second = sums.play(0), sums.play(1)
    for stage in range(3):
        assert all(first[stage][k] != second[stage][k] for k in range(4))


def test_additive_matches_plain_and_secagg_bits() -> None:
    from cohortium_phantom import Phantom

    def run(aggregator: str) -> str:
        return (
            Federation(
                dataset=Phantom(examples=120, validation=0, test=20), model="cnn",
                trainer="fedavg", privatizer="none", aggregator=aggregator,
                sites=4, rounds=2, threads=1,
            )
            .run()
            .weights_sha256
        )  # fmt: skip

    assert run("additive") == run("plain") == run("secagg")


def test_lost_site_fails_attempt_with_remedy() -> None:
    sums = Sums()
    for lost_at in range(3):
        sums.coordinator.begin_attempt(lost_at, lost_at, range(4))
        for stage in range(3):
            asked = sums.coordinator.next_requests()
            for site, own in asked.per_site.items():
                ask = SiteRequest(
                    round=lost_at, attempt=lost_at, broadcast=asked.broadcast, own=own
                )
                reply = sums.answer(site, ask)
                if (stage, site) != (lost_at, 2):
                    sums.coordinator.receive(site, reply)
            if stage == lost_at:
                break
        assert not sums.coordinator.next_requests()
        with pytest.raises(RunError, match=r"sites 2 did not answer.*use aggregator 'secagg'"):
            sums.coordinator.sum()
    sums.play(5)
    assert sums.coordinator.sum().contributors == (0, 1, 2, 3)


def test_site_refuses_dishonest_requests() -> None:
    sums = Sums()
    site = sums.sites[0]

    def ask(message: object, own: bytes = b"", attempt: int = 0) -> bytes:
        request = SiteRequest(round=0, attempt=attempt, broadcast=encode(message), own=own)  # type: ignore[arg-type]
        return site.handle(request, lambda: sums.vectors[0])

    def refused(code: str, *arguments: object) -> None:
        with pytest.raises(RefusalError) as caught:
            ask(*arguments)  # type: ignore[arg-type]
        assert caught.value.code == code

    refused("out-of-order", SharesRequest(sites=(0, 1), keys=(bytes(32), bytes(32))))
    refused("out-of-order", SumRequest(), encode(Shares(sealed=())))
    key = decode(ask(KeyRequest()), Key).public
    refused("out-of-order", KeyRequest())
    others = tuple(
        decode(
            sums.sites[k].handle(
                SiteRequest(round=0, attempt=0, broadcast=encode(KeyRequest()), own=b""),
                lambda: sums.vectors[0],
            ),
            Key,
        ).public
        for k in (1, 2, 3)
    )
    good = SharesRequest(sites=(0, 1, 2, 3), keys=(key, *others))
    refused("keys", SharesRequest(sites=(0, 1, 2, 3), keys=(others[0], *others)))
    refused("keys", SharesRequest(sites=(1, 2, 3), keys=others))
    refused("too-few", SharesRequest(sites=(0, 1), keys=(key, others[0])))
    refused("small-order", SharesRequest(sites=(0, 1, 2, 3), keys=(key, bytes(32), *others[1:])))
    refused("out-of-order", SumRequest(), encode(Shares(sealed=(bytes(48),) * 3)))
    for wrong in (
        SharesRequest(sites=(0, 1, 1, 3), keys=(key, *others)),
        SharesRequest(sites=(0, 1, 2, 3), keys=(key, *others[1:])),
    ):
        with pytest.raises(MessageError):
            ask(wrong)
    with pytest.raises(MessageError):
        ask(good, b"more")
    ask(good)
    refused("out-of-order", good)
    refused("sealed", SumRequest(), encode(Shares(sealed=(bytes(48),) * 3)))
    with pytest.raises(MessageError):
        ask(SumRequest(), encode(Shares(sealed=())))
    refused("out-of-order", KeyRequest(), b"", -1)


def test_nothing_is_answered_after_the_sum() -> None:
    """A second answer would seal another seed with the key of the first."""
    sums = Sums()
    sums.play()
    asked = list(sums.asked)
    assert len(asked) == 3 * len(sums.sites)
    for site, ask in asked:
        with pytest.raises(RefusalError) as caught:
            sums.answer(site, ask)
        assert caught.value.code == "out-of-order"


def test_unsupported_adversary_is_refused() -> None:
    with pytest.raises(StudyError, match="secagg"):
        Additive().confidentiality(evolve(COHORT, adversary="active"))
    with pytest.raises(StudyError, match="at least 5"):
        Additive().confidentiality(evolve(COHORT, max_colluding=3))
    assert Additive().confidentiality(COHORT).max_dropouts == 0
