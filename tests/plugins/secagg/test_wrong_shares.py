"""Wrong shares: they are named and made up for, while enough right ones are there."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cohortium.messages import codec
from cohortium.messages.run import Reply
from cohortium.plugin import MessageError, RefusalError, RingSum, TooFewSitesError, decode, encode
from cohortium.roles.events import SiteFailed
from cohortium_secagg import SecAgg, _shamir, _site_states
from cohortium_secagg._messages import Shares, Unmasking, max_message_bytes
from cohortium_secagg._site_states import Channel
from cohortium_secagg._unmasking import MAX_TRIALS, trials
from tests.support.federations import FaultyEngine, RecordingObserver, tiny_federation
from tests.support.in_memory_aggregation import InMemoryAggregation

SITES, THRESHOLD = 7, 4
ADVERSARIES = ("honest-but-curious", "active")
Adversary = Literal["honest-but-curious", "active"]
VECTOR = 2


def flipped(share: bytes, bit: int = 0) -> bytes:
    """`share` with one bit that is another."""
    return (int.from_bytes(share, "big") ^ (1 << bit)).to_bytes(len(share), "big")


class Outspoken(InMemoryAggregation):
    """Keeps the complaints; `wrong` says which holder's shares of whom lie."""

    def __init__(self, adversary: Adversary, sites: int = SITES, **terms: Any) -> None:
        shares = (
            {}
            if adversary == "active"
            else {"reconstruction_threshold": THRESHOLD, "num_shares": sites}
        )
        super().__init__(SecAgg(**shares), sites, adversary=adversary, **terms)
        self.complaints: list[str] = []
        self.refusals: list[str] = []

    def _deliver(self, site: int, reply: bytes) -> None:
        try:
            self.coordinator.receive(site, reply)
        except MessageError as error:
            self.complaints.append(str(error))

    def _replies(self, ask: Any, stage: int, site: int, tamper: Any) -> Any:
        try:
            reply = self.sites[site].handle(ask, lambda: self._release(site))
        except RefusalError as refusal:
            self.refusals.append(f"{site}: {refusal.reason}")
            return ()
        return tamper("reply", stage, site, reply)

    def open_with(
        self, wrong: Collection[tuple[int, int]], *, bit: int = 0, **terms: Any
    ) -> RingSum:
        """An attempt in which each (holder, dealer) of `wrong` is a wrong share."""

        def tamper(direction: str, _stage: int, site: int, data: bytes) -> list[bytes]:
            if direction == "ask":
                return [data]
            try:
                shares = decode(data, Unmasking, limit=max_message_bytes(SITES))
            except MessageError:
                return [data]
            seeds, keys = (
                {d: flipped(s, bit) if (site, d) in wrong else s for d, s in kind.items()}
                for kind in (shares.seeds, shares.keys)
            )
            return [encode(replace(shares, seeds=seeds, keys=keys))]

        return self.run(tamper=tamper, **terms)


def named(aggregation: Outspoken) -> set[int]:
    return {int(complaint.split()[1]) for complaint in aggregation.complaints}


@pytest.mark.parametrize("adversary", ADVERSARIES)
@pytest.mark.parametrize("liars", [1, 2, 3])
@pytest.mark.parametrize("dealer", [0, 6], ids=["survivor's seed", "lost site's key"])
def test_tolerated_wrong_shares_give_exact_sum(
    adversary: Adversary, liars: int, dealer: int
) -> None:
    aggregation = Outspoken(adversary)
    # The lost site holds no share any more, so one fewer can be wrong beside it.
    lost = {6: VECTOR} if dealer == 6 else {}
    holders = range(min(liars, SITES - len(lost) - THRESHOLD))
    total = aggregation.open_with({(h, dealer) for h in holders}, lost=lost)
    assert aggregation.is_exact(total)
    assert total.contributors == tuple(s for s in range(SITES) if s not in lost)
    assert named(aggregation) == set(holders)
    assert all(f"the masks of site {dealer} that" in c for c in aggregation.complaints)


@pytest.mark.parametrize("adversary", ADVERSARIES)
@pytest.mark.parametrize("dealer", [0, 6])
def test_too_many_wrong_shares_are_named(adversary: Adversary, dealer: int) -> None:
    aggregation = Outspoken(adversary)
    lost = {6: VECTOR} if dealer == 6 else {}
    holders = range(1, 2 + SITES - len(lost) - THRESHOLD)
    with pytest.raises(TooFewSitesError, match=r"^[^.]*\.$") as error:
        aggregation.open_with({(h, dealer) for h in holders}, lost=lost)
    assert f"the masks of site {dealer} come off with 4" in str(error.value)
    assert f"sites {', '.join(map(str, holders))} sent are not those" in str(error.value)
    assert aggregation.is_exact(aggregation.run(attempt=1))


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_site_sending_only_wrong_shares_is_named(adversary: Adversary) -> None:
    for liar in range(SITES - 1):
        aggregation = Outspoken(adversary)
        total = aggregation.open_with({(liar, d) for d in range(SITES)}, lost={6: VECTOR}, bit=255)
        assert aggregation.is_exact(total)
        assert named(aggregation) == {liar}


@settings(max_examples=25, deadline=None)
@given(
    adversary=st.sampled_from(ADVERSARIES),
    wrong=st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=20),
    gone=st.sets(st.integers(0, 6), max_size=2),
    stage=st.integers(0, 3),
    bit=st.integers(0, 256),
)
def test_wrong_shares_give_exact_sum_or_none(
    adversary: Adversary,
    wrong: set[tuple[int, int]],
    gone: set[int],
    stage: int,
    bit: int,
) -> None:
    aggregation = Outspoken(adversary)
    left = {s for s in range(SITES) if s not in gone}
    try:
        total = aggregation.open_with(wrong, bit=bit, lost=dict.fromkeys(gone, stage))
    except TooFewSitesError:
        # Some secret has fewer right shares than it takes.
        assert any(sum((h, d) not in wrong for h in left) < THRESHOLD for d in range(SITES))
    else:
        assert aggregation.is_exact(total)
    assert named(aggregation) <= {holder for holder, _ in wrong} & left


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_wrongly_dealt_share_is_replaced(
    adversary: Adversary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its dealer has committed to it all the same, so only the secret shows that it is wrong."""
    split = _shamir.split

    def misdealt(*args: Any, **kwargs: Any) -> dict[int, bytes]:
        shares = split(*args, **kwargs)
        if next(iter(shares)) == 2:  # site 2 deals
            shares[0] = flipped(shares[0])
        return shares

    monkeypatch.setattr(_site_states, "split", misdealt)
    for lost in ({}, {2: VECTOR}):
        aggregation = Outspoken(adversary)
        assert aggregation.is_exact(aggregation.run(lost=lost))


def test_dealer_with_false_commitments_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    split = _shamir.split

    def misdealt(*args: Any, **kwargs: Any) -> dict[int, bytes]:
        shares = split(*args, **kwargs)
        if next(iter(shares)) == 2:
            return {holder: flipped(s, bit=holder) for holder, s in shares.items()}
        return shares

    monkeypatch.setattr(_site_states, "split", misdealt)
    with pytest.raises(TooFewSitesError, match="masks of site 2 contradict its"):
        Outspoken("honest-but-curious").run()


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_undecryptable_share_names_its_sender(adversary: Adversary) -> None:
    """The shareholder it was for has dropped out; the others make up for it."""
    aggregation = Outspoken(adversary)

    def tamper(direction: str, stage: int, site: int, data: bytes) -> list[bytes]:
        if (direction, stage, site) != ("reply", 1, 3):
            return [data]
        shares = decode(data, Shares, limit=max_message_bytes(SITES))
        sealed = dict(shares.sealed)
        sealed[5] = flipped(sealed[5])
        return [encode(replace(shares, sealed=sealed))]

    total = aggregation.run(tamper=tamper)
    assert aggregation.is_exact(total)
    assert total.contributors == (0, 1, 2, 3, 4, 6)
    assert aggregation.refusals == ["5: site 3: an encrypted share does not authenticate."]


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_share_differing_from_commitment_is_refused(
    adversary: Adversary, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = Channel.seal

    def other(self: Channel, peer: int, theirs: Any, plain: bytes) -> bytes:
        is_it = (self.site_attempt.site, peer) in {(3, 0), (3, 1)}
        return seal(self, peer, theirs, flipped(plain) if is_it else plain)

    monkeypatch.setattr(Channel, "seal", other)
    aggregation = Outspoken(adversary)
    assert aggregation.is_exact(aggregation.run(lost={3: VECTOR}))
    assert named(aggregation) == {0, 1}


def test_sparse_graph_adds_no_request_stage() -> None:
    aggregation = InMemoryAggregation(SecAgg(reconstruction_threshold=3, num_shares=7), 20)
    asked: list[int] = []

    def tamper(direction: str, stage: int, site: int, data: bytes) -> list[bytes]:
        if direction == "ask":
            asked.append(stage)
            return [data]
        if stage != 3 or site not in (4, 11):
            return [data]
        shares = decode(data, Unmasking, limit=max_message_bytes(20))
        seeds, keys = ({d: flipped(s) for d, s in k.items()} for k in (shares.seeds, shares.keys))
        return [encode(replace(shares, seeds=seeds, keys=keys))]

    assert aggregation.is_exact(aggregation.run(lost={9: VECTOR}, tamper=tamper))
    assert max(asked) == 3


def test_share_hashes_are_all_different() -> None:
    aggregation, seen = InMemoryAggregation(SecAgg(), 6), list[bytes]()

    def listen(direction: str, stage: int, _site: int, data: bytes) -> list[bytes]:
        if (direction, stage) == ("reply", 1):
            shares = decode(data, Shares, limit=max_message_bytes(6))
            seen.extend([*shares.seeds.values(), *shares.keys.values(), shares.commitment])
        return [data]

    for attempt in range(2):
        aggregation.run(attempt=attempt, tamper=listen)
    assert len(seen) == len(set(seen)) == 2 * 6 * (2 * 5 + 1)


def test_share_trials_are_bounded_and_exclude_each_holder() -> None:
    for holders, threshold in ((5, 4), (7, 4), (6, 6), (9, 2)):
        sets = list(trials(list(range(holders)), threshold))
        assert sets[0] == tuple(range(threshold))
        assert len(sets) == len(set(sets))
        assert {len(set(s)) for s in sets} == {threshold}
        if holders > threshold:
            assert all(any(slip not in s for s in sets) for slip in range(holders))
    assert sum(1 for _ in trials(list(range(4000)), 2000)) == MAX_TRIALS + 1


def test_run_record_names_sites_with_wrong_shares() -> None:
    def tamper(_exchange: int, site: int, reply: bytes) -> bytes:
        if site != 1:
            return reply
        message = codec.decode_either(reply, Reply)
        try:
            shares = decode(bytes(message.body), Unmasking, limit=max_message_bytes(6))
        except MessageError:
            return reply
        seeds = {d: flipped(s) for d, s in shares.seeds.items()}
        body = encode(replace(shares, seeds=seeds))
        return codec.encode(Reply(message.attempt, message.stage, body))

    honest, recorder = tiny_federation(aggregator=SecAgg()).run(), RecordingObserver()
    result = tiny_federation(aggregator=SecAgg(), engine=FaultyEngine(tamper)).run(
        observers=[recorder]
    )
    assert result.weights_sha256 == honest.weights_sha256
    failures = [event for event in recorder.events if isinstance(event, SiteFailed)]
    assert {failure.site for failure in failures} == {1}
    assert all("sent shares of the masks of" in failure.reason for failure in failures)
