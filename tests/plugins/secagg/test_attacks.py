"""Attacks that are really tried: each is refused, and succeeds once its check is taken out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from cohortium.plugin import FileJournal, StudyError
from cohortium_secagg import SecAgg, _parameter_selection
from cohortium_secagg._consistency_check import Confirmed
from cohortium_secagg._messages import (
    AdvertiseKeysRequest,
    ConfirmedUnmaskRequest,
    ConsistencyRequest,
    MaskedVectorRequest,
    ShareKeysAmongAllRequest,
)
from cohortium_secagg._protocol_parameters import ProtocolParameters
from cohortium_secagg._site import DUE, SecAggSite
from cohortium_secagg._site_states import Masked, Shared, SiteAttempt
from tests.support.malicious_coordinator import (
    COORDINATOR,
    MaliciousCoordinator,
    is_refused,
    nothing,
)

Patch = pytest.MonkeyPatch

Attackers: TypeAlias = Callable[..., MaliciousCoordinator]


def difference(larger: list[int], smaller: list[int]) -> list[int]:
    return [(a - b) % (1 << 20) for a, b in zip(larger, smaller, strict=True)]


# --- One sum an attempt ---------------------------------------------------------------------------


def open_twice(attacker: MaliciousCoordinator) -> list[int]:
    """Open the sum over all, then take the victim's masking key for that of a dropout."""
    attacker.up_to_vectors()
    attacker.agree_and_open(attacker.all_sites)
    attacker.agree_and_open(range(1, 10))
    return attacker.recovered_sum(0)


def test_second_unmasking_is_refused(attackers: Attackers, monkeypatch: Patch) -> None:
    is_refused("out-of-order", open_twice, attackers())

    def keep(self: Any, request: object) -> object:
        kept = self.__dict__.setdefault("kept", {})
        kept[type(self._state)] = self._state
        due = next(kept[due] for due, kinds in DUE if isinstance(request, kinds))
        return due, self._prepared

    monkeypatch.setattr(SecAggSite, "_take", keep)
    attacker = attackers()
    assert open_twice(attacker) == attacker.true_sum(0)


def test_two_cohorts_of_one_attempt_open_sums_without_a_common_site() -> None:
    """A coordinator that lies may ask a cohort more, and has no site in two sums."""
    attacker = MaliciousCoordinator(20, cohort_size=10)
    first, second = range(10), range(10, 20)
    for cohort in (first, second):
        keys = attacker.advertise(cohort)
        attacker.share({site: keys[site] for site in cohort}, cohort)
        for site in cohort:
            shared = {peer: attacker.sealed[peer][site] for peer in cohort if peer != site}
            attacker.collect_one(site, shared)
        attacker.agree_and_open(cohort)
        assert attacker.recovered_sum(*cohort) == attacker.true_sum(*cohort)
    is_refused("out-of-order", lambda each: each.advertise([0]), attacker)
    is_refused("out-of-order", lambda each: each.advertise([19]), attacker)
    # With more sites than a cohort has, a roster is refused.
    attacker.begin(1)
    keys = attacker.advertise(range(11))
    is_refused("neighbourhood", lambda each: each.share(keys, [0]), attacker)


def test_restarted_site_is_in_one_sum_of_two_cohorts() -> None:
    """It restarts between its shares and its vector, and the coordinator asks it in another."""
    attacker = MaliciousCoordinator(20, cohort_size=10)
    first, second = range(10), range(9, 19)
    keys = dict(attacker.advertise(first))
    attacker.share({site: keys[site] for site in first}, first)
    kept, old = dict(attacker.sites), dict(attacker.sealed)
    attacker.restart()
    attacker.sites |= {site: kept[site] for site in range(9)}
    others = range(9)
    for site in others:
        shared = {peer: old[peer][site] for peer in first if peer != site}
        attacker.collect_one(site, shared)
    attacker.agree_and_open(others)
    assert 9 in attacker.private, "its masking key is known there, as a dropout's"
    again = attacker.advertise(second)
    attacker.share({site: again[site] for site in second}, second)
    for site in second:
        shared = {peer: attacker.sealed[peer][site] for peer in second if peer != site}
        attacker.collect_one(site, shared)
    attacker.agree_and_open(second)
    assert attacker.recovered_sum(*second) == attacker.true_sum(*second)
    # All shares of it are there. But its vector has masks under keys that it drew anew.
    assert len(attacker.private[9]) >= attacker.protocol.threshold <= len(attacker.seeds[9])
    assert attacker.recovered_sum(9) != attacker.true_sum(9)


def mask_twice(attacker: MaliciousCoordinator) -> list[int]:
    """Have the victim mask two vectors with what it has prepared."""
    attacker.up_to_vectors()
    first = attacker.masked[0]
    attacker.vectors[0] = attacker.vectors[0] + attacker.vectors[1]
    attacker.collect([0])
    return difference(attacker.masked[0].tolist(), first.tolist())


def prepare_and_set_up(attacker: MaliciousCoordinator) -> list[int]:
    """Have an attempt once with a full set-up, then with what was prepared, but for the victim."""
    attacker.share(attacker.advertise())
    prepared, kept = attacker.sealed, attacker.keys
    attacker.begin(0)
    attacker.up_to_vectors()
    attacker.agree_and_open(range(10))
    first = attacker.recovered_sum(*range(10))
    attacker.begin(0)
    attacker.sealed, attacker.keys = prepared, kept
    attacker.collect(range(10))
    attacker.agree_and_open(range(1, 10))
    return difference(first, attacker.recovered_sum(*range(1, 10)))


@pytest.mark.parametrize("attack", [mask_twice, prepare_and_set_up])
def test_second_use_of_prepared_shares_is_refused(
    attack: Callable[[MaliciousCoordinator], list[int]], monkeypatch: Patch
) -> None:
    is_refused("out-of-order", attack, MaliciousCoordinator(prepared=True))
    enter, begin = SecAggSite._enter_prepared, SecAggSite._begin

    def keep(self: Any) -> dict[Any, Shared]:
        kept: dict[Any, Shared] = self.__dict__.setdefault("kept", {})
        if isinstance(self._prepared, Shared):
            kept[self._prepared.scope] = self._prepared
        return kept

    def begin_and_keep(self: Any, ask: Any, request: Any) -> Any:
        keep(self)
        return begin(self, ask, request)

    def enter_again(self: Any, ask: Any, request: Any) -> None:
        if not isinstance(self._state, Shared):
            scope = self._protocol.scope(ask.round, ask.attempt)
            self._prepared = keep(self).get(scope, self._prepared)
        enter(self, ask, request)

    monkeypatch.setattr(SecAggSite, "_begin", begin_and_keep)
    monkeypatch.setattr(SecAggSite, "_enter_prepared", enter_again)
    attacker = MaliciousCoordinator(prepared=True)
    victim = attacker.true_sum(1 if attack is mask_twice else 0)
    assert attack(attacker) == victim


def begin_again(attacker: MaliciousCoordinator) -> list[int]:
    """Have the same attempt twice, over sets that differ in the victim."""
    sums = []
    for chosen in (range(10), range(1, 10)):
        attacker.begin(0)
        attacker.up_to_vectors()
        attacker.agree_and_open(chosen)
        sums.append(attacker.recovered_sum(*chosen))
    return difference(*sums)


def test_stale_attempt_is_refused(attackers: Attackers, monkeypatch: Patch) -> None:
    is_refused("out-of-order", begin_again, attackers())
    monkeypatch.setattr(SecAggSite, "_require_later", nothing)
    attacker = attackers()
    assert begin_again(attacker) == attacker.true_sum(0)


def cut_the_power(attacker: MaliciousCoordinator) -> list[int]:
    """As before, but let every site restart in between."""
    attacker.up_to_vectors()
    attacker.agree_and_open(range(10))
    first = attacker.recovered_sum(*range(10))
    for site in attacker.sites.values():
        site._member.journal.close()
    attacker.restart()
    attacker.begin(0)
    attacker.up_to_vectors()
    attacker.agree_and_open(range(1, 10))
    return difference(first, attacker.recovered_sum(*range(1, 10)))


def test_restart_without_journal_reopens_attempt(
    attackers: Attackers, monkeypatch: Patch, tmp_path: Path
) -> None:
    def attacker(folder: str) -> MaliciousCoordinator:
        (tmp_path / folder).mkdir()
        return attackers(journal=lambda site: FileJournal(tmp_path / folder / f"{site}"))

    is_refused("out-of-order", cut_the_power, attacker("kept"))
    monkeypatch.setattr(FileJournal, "entries", lambda _journal: ())
    there = attacker("lost")
    assert cut_the_power(there) == there.true_sum(0)


@pytest.mark.parametrize("end", ["masked", "consented", "unmasked"])
def test_site_restarted_after_masking_leaves_attempt(attackers: Attackers, end: str) -> None:
    journals = [MaliciousCoordinator().sites[0]._member.journal for _ in range(10)]
    attacker = attackers(journal=lambda site: journals[site])
    attacker.up_to_vectors()
    signatures = attacker.consent(dict.fromkeys(range(10), range(10))) if end != "masked" else {}
    if end == "unmasked":
        attacker.open(0, signatures)
    attacker.restart()
    for request in (
        AdvertiseKeysRequest(attacker.attempt, COORDINATOR),
        ShareKeysAmongAllRequest(attacker.attempt, attacker.keys),
        MaskedVectorRequest(attacker.attempt, {}),
        ConsistencyRequest(attacker.attempt, tuple(range(10))),
        ConfirmedUnmaskRequest(attacker.attempt, signatures),
    ):
        is_refused("out-of-order", lambda v, request=request: v.ask(0, request), attacker)  # type: ignore[misc]
    attacker.begin(1)
    attacker.up_to_vectors()
    attacker.agree_and_open(range(10))
    assert attacker.recovered_sum(*range(10)) == attacker.true_sum(*range(10))


# --- The set of survivors -------------------------------------------------------------------------


def tell_each_another(attacker: MaliciousCoordinator) -> list[int]:
    """Declare the others dead to some of their shareholders each: nobody sees fewer than six."""
    attacker.up_to_vectors()
    dead = {site: {4 + (site - 4 + step) % 6 for step in (1, 2, 3, 4)} for site in range(4, 10)}
    dead |= {0: {4, 5, 6, 7}, 1: {8, 9, 4, 5}, 2: {6, 7, 8, 9}, 3: {4, 5, 6, 7}}
    sets = {site: set(range(10)) - gone for site, gone in dead.items()}
    signatures = attacker.consent(sets)
    for site in range(10):
        attacker.open(site, signatures)
    return attacker.recovered_sum(0, 1, 2, 3)


def test_differing_survivor_sets_are_refused(attackers: Attackers, monkeypatch: Patch) -> None:
    is_refused("consent", tell_each_another, attackers())
    monkeypatch.setattr(Confirmed, "check_signatures", nothing)
    attacker = attackers()
    assert attacker.protocol.floor == 6
    assert tell_each_another(attacker) == attacker.true_sum(0, 1, 2, 3)


def split_in_half(attacker: MaliciousCoordinator) -> list[int]:
    """One half opens the sum over all; to the other half the victim has dropped out."""
    attacker.up_to_vectors()
    attacker.agree_and_open(range(10), sites=range(5))
    attacker.agree_and_open(range(1, 10), sites=range(5, 10))
    return attacker.recovered_sum(0)


def test_threshold_below_floor_reveals_both_share_kinds(
    attackers: Attackers, monkeypatch: Patch
) -> None:
    with pytest.raises(StudyError, match="reconstruction_threshold is 5, but must be at least 6"):
        attackers(aggregator=SecAgg(reconstruction_threshold=5))
    is_refused(
        "consent",
        split_in_half,
        attackers(aggregator=SecAgg(reconstruction_threshold=6)),
    )
    monkeypatch.setattr(_parameter_selection, "_require", nothing)
    attacker = attackers(aggregator=SecAgg(reconstruction_threshold=5))
    assert split_in_half(attacker) == attacker.true_sum(0)


def feign_dropouts(attacker: MaliciousCoordinator) -> list[int]:
    """Pretend that four of ten dropped out, where eight must be in a sum."""
    attacker.up_to_vectors()
    attacker.agree_and_open(range(6))
    return attacker.recovered_sum(*range(6))


def test_survivors_below_floor_are_refused(attackers: Attackers, monkeypatch: Patch) -> None:
    is_refused("floor", feign_dropouts, attackers(min_contributors=8))
    monkeypatch.setattr(ProtocolParameters, "floor", property(lambda protocol: protocol.threshold))
    attacker = attackers(min_contributors=8)
    assert feign_dropouts(attacker) == attacker.true_sum(*range(6))


def pad_the_survivors(attacker: MaliciousCoordinator) -> list[int]:
    """The same, with two for survivors that were never asked."""
    roster = attacker.advertise(range(10))
    attacker.share(roster)
    attacker.collect(range(10))
    attacker.agree_and_open([*range(6), 10, 11], sites=range(6))
    return attacker.recovered_sum(*range(6))


def test_survivors_without_shares_are_refused(attackers: Attackers, monkeypatch: Patch) -> None:
    is_refused("survivors", pad_the_survivors, attackers(12, cohort_size=10, min_contributors=8))
    monkeypatch.setattr(Masked, "require_acquainted", nothing)
    attacker = attackers(12, cohort_size=10, min_contributors=8)
    assert pad_the_survivors(attacker) == attacker.true_sum(*range(6))


def isolate(attacker: MaliciousCoordinator) -> list[int]:
    """Let the victim mask with those alone who are said to drop out."""
    attacker.share(attacker.advertise())
    attacker.collect(range(1, 10))
    attacker.collect_one(0, {peer: attacker.sealed[peer][0] for peer in (7, 8, 9)})
    attacker.agree_and_open(range(7), sites=range(1, 7))
    return attacker.recovered_sum(0)


def test_isolating_survivor_by_withheld_shares_is_refused(
    attackers: Attackers, monkeypatch: Patch
) -> None:
    is_refused("neighbourhood", isolate, attackers())
    monkeypatch.setattr(SiteAttempt, "check_neighbours", nothing)
    attacker = attackers()
    assert isolate(attacker) == attacker.true_sum(0)


FORGERIES: dict[str, Callable[[dict[int, bytes]], dict[int, bytes]]] = {
    "one too few": lambda given: dict(list(given.items())[:5]),
    "one for all": lambda given: dict.fromkeys(given, given[0]),
    "exchanged": lambda given: {site: given[(site + 1) % 10] for site in given},
    "none": lambda _given: {},
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_signature_counts_for_its_signer_only(attackers: Attackers, forgery: str) -> None:
    attacker = attackers()
    attacker.up_to_vectors()
    signatures = attacker.consent(dict.fromkeys(range(10), range(10)))
    is_refused("consent", lambda v: v.open(0, FORGERIES[forgery](signatures)), attacker)
    assert not attacker.seeds
    # Enough others will do.
    attacker.open(1, {site: signatures[site] for site in range(4, 10)})
    assert attacker.seeds
