"""The aggregator with signatures: what it still does, what it refuses, what it remembers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium import Federation
from cohortium.plugin import (
    AggregationConfig,
    FederationSpec,
    FileJournal,
    Journal,
    KeyDirectory,
    MemoryJournal,
    Randomness,
    RefusalError,
    Ring,
    SigningKey,
    SiteContext,
    StudyError,
    TooFewSitesError,
)
from cohortium_secagg import SecAgg
from tests.support.federations import tiny_federation
from tests.support.in_memory_aggregation import InMemoryAggregation

KEYS, SHARES, VECTOR, CONSENT, OPENING = range(5)


def aggregation(sites: int, aggregator: SecAgg | None = None, **terms: Any) -> InMemoryAggregation:
    return InMemoryAggregation(aggregator or SecAgg(), sites, adversary="active", **terms)


@given(sites=st.integers(2, 12), bits=st.integers(1, 64), length=st.integers(0, 70))
@settings(max_examples=25, deadline=None)
def test_sum_is_exact_at_every_size_and_width(sites: int, bits: int, length: int) -> None:
    there = aggregation(sites, bits=bits, length=length)
    total = there.run()
    assert total.contributors == tuple(range(sites))
    assert there.is_exact(total)


@pytest.mark.parametrize(
    "stages", itertools.product([KEYS, SHARES, VECTOR, CONSENT, OPENING], repeat=2)
)
def test_dropouts_up_to_threshold_are_survived(stages: tuple[int, ...]) -> None:
    lost = dict(zip((1, 4), stages, strict=True))
    there = aggregation(6)
    total = there.run(lost=lost)
    assert total.contributors == tuple(s for s in range(6) if lost.get(s, CONSENT) >= CONSENT)
    assert there.is_exact(total)


@pytest.mark.parametrize("stage", [KEYS, SHARES, VECTOR, CONSENT, OPENING])
def test_dropouts_beyond_threshold_release_nothing(stage: int) -> None:
    there = aggregation(6)
    with pytest.raises(TooFewSitesError, match=r"^[^.]*\.$"):
        there.run(lost=dict.fromkeys((0, 1, 4), stage))
    assert there.is_exact(there.run(attempt=1))


@pytest.mark.slow
@given(
    faults=st.dictionaries(
        st.tuples(st.sampled_from(["ask", "reply"]), st.integers(0, 4), st.integers(0, 5)),
        st.tuples(st.sampled_from(["lose", "flip", "cut", "other"]), st.integers(0, 1 << 20)),
        max_size=4,
    )
)
@settings(max_examples=80, deadline=None)
def test_tampered_messages_give_exact_sum_or_none(
    faults: dict[tuple[str, int, int], tuple[str, int]],
) -> None:
    older: dict[tuple[str, int, int], bytes] = {}

    def remember(direction: str, stage: int, site: int, data: bytes) -> list[bytes]:
        older[direction, stage, site] = data
        return [data]

    def damage(direction: str, stage: int, site: int, data: bytes) -> list[bytes]:
        what, where = faults.get((direction, stage, site), ("", 0))
        flipped = bytearray(data)
        if data:
            flipped[where % len(data)] ^= 1 << (where % 8)
        return {
            "lose": [],
            "flip": [bytes(flipped)],
            "cut": [data[: where % max(1, len(data))]],
            "other": [older.get((direction, stage, where % 6), b"")],
        }.get(what, [data])

    there = aggregation(6)
    there.run(tamper=remember)
    try:
        total = there.run(attempt=1, tamper=damage)
    except TooFewSitesError:
        assert faults
    else:
        assert there.is_exact(total)


def test_simulated_attempt_transcript_is_unchanged() -> None:
    there = aggregation(6, bits=27, length=1000)
    there.run(lost={4: VECTOR})
    assert there.transcript.hexdigest() == (
        # Taken when the format got its third version, and keys of the next attempt.
        "f9a74655e1a0ed8a2f9183547970481d8904aef5c2f8a277674074548c11334b"
    )


def test_active_secagg_run_matches_plain_bits() -> None:
    plain = tiny_federation().run()
    for federation in (
        tiny_federation(aggregator="secagg"),
        tiny_federation(aggregator="secagg", adversary="active"),
    ):
        assert federation.run().weights_sha256 == plain.weights_sha256


def test_active_adversary_takes_one_study_setting() -> None:
    federation = Federation.read(None, ["federation.adversary=active"])
    assert federation.aggregator == SecAgg()
    assert aggregation(federation.sites).sites[0]._protocol.threshold == 6  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("sites", "colluding", "threshold"),
    [(10, 1, 6), (20, 1, 11), (5, 0, 3), (5, 1, 4), (10, 3, 7), (50, 5, 28), (2, 0, 2)],
)
def test_least_threshold_is_chosen_and_smaller_refused(
    sites: int, colluding: int, threshold: int
) -> None:
    assert 2 * threshold > sites + colluding >= 2 * (threshold - 1)
    there = aggregation(sites, max_colluding=colluding)
    assert there.sites[0]._protocol.threshold == threshold  # type: ignore[attr-defined]
    assert there.sites[0]._protocol.shares == sites  # type: ignore[attr-defined]
    aggregation(sites, SecAgg(reconstruction_threshold=threshold), max_colluding=colluding)
    if threshold > 2:
        with pytest.raises(StudyError, match=f"must be at least {threshold}: the coordinator is"):
            aggregation(
                sites, SecAgg(reconstruction_threshold=threshold - 1), max_colluding=colluding
            )


def test_insufficient_shares_or_cohort_is_refused() -> None:
    with pytest.raises(StudyError, match="num_shares is 5, but must be at least 10"):
        aggregation(10, SecAgg(num_shares=5))
    with pytest.raises(StudyError, match=r"federation\.sites is 4, but must be at least 5"):
        aggregation(4, max_colluding=3)
    with pytest.raises(StudyError, match=r"federation\.sites is 10, but must be at least 12"):
        aggregation(10, min_contributors=12)
    with pytest.raises(StudyError, match=r"federation\.sites is 10, but must be at least 11"):
        aggregation(10, SecAgg(reconstruction_threshold=11))


def config(directory: KeyDirectory | None) -> AggregationConfig:
    federation_spec = FederationSpec(
        sites=4, cohort_size=4, examples=9, rounds=1, adversary="active"
    )
    return AggregationConfig(
        session=bytes(16),
        ring=Ring(8),
        length=1,
        federation_spec=federation_spec,
        directory=directory,
    )


IDENTITIES = [SigningKey.generate(Randomness.insecure_from_seed(site)) for site in range(5)]
DIRECTORY = KeyDirectory(tuple(identity.public for identity in IDENTITIES[:4]))


@pytest.mark.parametrize("directory", [None, KeyDirectory(DIRECTORY.keys[:3])])
def test_directory_not_listing_sites_is_refused(directory: KeyDirectory | None) -> None:
    with pytest.raises(StudyError, match="the directory lists"):
        SecAgg().coordinator_session(config(directory), Randomness.system())


@pytest.mark.parametrize("identity", [None, IDENTITIES[1], IDENTITIES[4]])
def test_site_without_listed_key_is_refused(identity: SigningKey | None) -> None:
    site_context = SiteContext(site=0, secret=Randomness.system(), identity=identity)
    with pytest.raises(StudyError, match=r"signing key|another key"):
        SecAgg().site_session(config(DIRECTORY), site_context)


def test_sites_with_different_directories_reject_signatures() -> None:
    there = aggregation(6)
    mine = there.config.directory
    assert mine is not None
    other = evolve(mine, revoked=frozenset({(1, IDENTITIES[0].public)}))
    protocol = there.sites[0]._protocol  # type: ignore[attr-defined]
    there.sites[0]._protocol = evolve(protocol, config=evolve(there.config, directory=other))  # type: ignore[attr-defined]
    total = there.run()
    assert total.contributors == (1, 2, 3, 4, 5)


class Forgetful(MemoryJournal):
    """The disk is full from some entry on."""

    left = 0

    def append(self, entry: bytes) -> None:
        if not self.left:
            raise RefusalError("journal", "the site's journal cannot be written.")
        self.left -= 1
        super().append(entry)


@pytest.mark.parametrize(("left", "contributes"), [(0, False), (1, True)])
def test_site_stops_when_journal_write_fails(left: int, contributes: bool) -> None:
    there = aggregation(6)
    journal = Forgetful()
    journal.left = left
    there.sites[2]._answered._journal = journal  # type: ignore[attr-defined]
    sent: list[int] = []

    def listen(direction: str, stage: int, site: int, data: bytes) -> list[bytes]:
        if (direction, site) == ("reply", 2):
            sent.append(stage)
        return [data]

    total = there.run(tamper=listen)
    assert (2 in total.contributors) is contributes
    assert sent == [KEYS, SHARES, VECTOR, CONSENT][: 4 if contributes else 2]


@pytest.mark.parametrize("make", [lambda _: MemoryJournal(), FileJournal])
@pytest.mark.parametrize("adversary", ["active", "honest-but-curious"])
def test_journal_records_step_before_reply(
    tmp_path: Path, make: Callable[[Path], Journal], adversary: str
) -> None:
    there = InMemoryAggregation(SecAgg(), 6, adversary=adversary)
    journal = make(tmp_path / "journal")
    there.sites[2]._answered._journal = journal  # type: ignore[attr-defined]
    counts: list[int] = []

    def listen(direction: str, _stage: int, site: int, data: bytes) -> list[bytes]:
        if (direction, site) == ("reply", 2):
            counts.append(len(journal.entries()))
        return [data]

    there.run(tamper=listen)
    there.run(attempt=1, tamper=listen)
    assert counts == (
        [0, 0, 1, 1, 2, 2, 2, 3, 3, 4] if adversary == "active" else [0, 0, 1, 2, 2, 2, 3, 4]
    )


def test_journal_keeps_attempts_per_run() -> None:
    there, journal = aggregation(6), MemoryJournal()
    there.sites[0]._answered._journal = journal  # type: ignore[attr-defined]
    there.run(attempt=3)
    site_context = evolve(there.sites[0]._member, journal=journal)  # type: ignore[attr-defined]
    again = SecAgg().site_session(there.config, site_context)
    other = SecAgg().site_session(evolve(there.config, session=bytes(16)), site_context)
    assert again._latest == (3, 0)  # type: ignore[attr-defined]
    assert other._latest == (-1, -1)  # type: ignore[attr-defined]
