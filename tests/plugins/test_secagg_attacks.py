"""Attacks that are really tried: each is refused, and succeeds once its check is taken out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cohortium.plugin import FileJournal, StudyError
from cohortium_secagg import SecAgg, _sharing
from cohortium_secagg._consent import Consented
from cohortium_secagg._messages import (
    AskConsent,
    AskKeys,
    AskOpening,
    AskSharesAmong,
    AskVector,
)
from cohortium_secagg._party import Masked, Party
from cohortium_secagg._rules import Rules
from cohortium_secagg._site import DUE, SecAggSite
from villain import COORDINATOR, Villain, is_refused, nothing

Patch = pytest.MonkeyPatch


def difference(larger: list[int], smaller: list[int]) -> list[int]:
    return [(a - b) % (1 << 20) for a, b in zip(larger, smaller, strict=True)]


# --- One sum an attempt ---------------------------------------------------------------------------


def open_twice(villain: Villain) -> list[int]:
    """Open the sum over all, then take the victim's masking key for that of a dropout."""
    villain.up_to_vectors()
    villain.agree_and_open(villain.everyone)
    villain.agree_and_open(range(1, 10))
    return villain.learned(0)


def test_a_second_unmasking_would_give_both_kinds_of_share(monkeypatch: Patch) -> None:
    is_refused("order", open_twice, Villain())

    def keep(self: Any, request: object) -> object:
        kept = self.__dict__.setdefault("kept", {})
        kept[type(self._state)] = self._state
        return next(kept[due] for due, kinds in DUE if isinstance(request, kinds))

    monkeypatch.setattr(SecAggSite, "_take", keep)
    villain = Villain()
    assert open_twice(villain) == villain.truth(0)


def begin_again(villain: Villain) -> list[int]:
    """Have the same attempt twice, over sets that differ in the victim."""
    sums = []
    for chosen in (range(10), range(1, 10)):
        villain.begin(0)
        villain.up_to_vectors()
        villain.agree_and_open(chosen)
        sums.append(villain.learned(*chosen))
    return difference(*sums)


def test_a_stale_attempt_would_give_the_difference_of_two_sums(monkeypatch: Patch) -> None:
    is_refused("order", begin_again, Villain())
    monkeypatch.setattr(SecAggSite, "_require_later", nothing)
    villain = Villain()
    assert begin_again(villain) == villain.truth(0)


def cut_the_power(villain: Villain) -> list[int]:
    """As before, but let every site restart in between."""
    villain.up_to_vectors()
    villain.agree_and_open(range(10))
    first = villain.learned(*range(10))
    for site in villain.sites.values():
        site._member.journal.close()
    villain.restart()
    villain.begin(0)
    villain.up_to_vectors()
    villain.agree_and_open(range(1, 10))
    return difference(first, villain.learned(*range(1, 10)))


def test_a_restart_would_do_the_same_but_for_the_journal(
    monkeypatch: Patch, tmp_path: Path
) -> None:
    def villain(folder: str) -> Villain:
        (tmp_path / folder).mkdir()
        return Villain(journal=lambda site: FileJournal(tmp_path / folder / f"{site}"))

    is_refused("order", cut_the_power, villain("kept"))
    monkeypatch.setattr(FileJournal, "entries", lambda _journal: ())
    there = villain("lost")
    assert cut_the_power(there) == there.truth(0)


@pytest.mark.parametrize("end", ["masked", "consented", "unmasked"])
def test_a_site_that_restarts_after_masking_has_no_part_in_the_attempt(end: str) -> None:
    journals = [Villain().sites[0]._member.journal for _ in range(10)]
    villain = Villain(journal=lambda site: journals[site])
    villain.up_to_vectors()
    signatures = villain.consent(dict.fromkeys(range(10), range(10))) if end != "masked" else {}
    if end == "unmasked":
        villain.open(0, signatures)
    villain.restart()
    for request in (
        AskKeys(0, COORDINATOR),
        AskSharesAmong(0, villain.keys),
        AskVector(0, {}),
        AskConsent(0, tuple(range(10))),
        AskOpening(0, signatures),
    ):
        is_refused("order", lambda v, request=request: v.ask(0, request), villain)  # type: ignore[misc]
    villain.begin(1)
    villain.up_to_vectors()
    villain.agree_and_open(range(10))
    assert villain.learned(*range(10)) == villain.truth(*range(10))


# --- The set of survivors -------------------------------------------------------------------------


def tell_each_another(villain: Villain) -> list[int]:
    """Declare the others dead to some of their shareholders each: nobody sees fewer than six."""
    villain.up_to_vectors()
    dead = {site: {4 + (site - 4 + step) % 6 for step in (1, 2, 3, 4)} for site in range(4, 10)}
    dead |= {0: {4, 5, 6, 7}, 1: {8, 9, 4, 5}, 2: {6, 7, 8, 9}, 3: {4, 5, 6, 7}}
    sets = {site: set(range(10)) - gone for site, gone in dead.items()}
    signatures = villain.consent(sets)
    for site in range(10):
        villain.open(site, signatures)
    return villain.learned(0, 1, 2, 3)


def test_different_survivors_for_different_sites_would_open_a_smaller_sum(
    monkeypatch: Patch,
) -> None:
    is_refused("consent", tell_each_another, Villain())
    monkeypatch.setattr(Consented, "check_signatures", nothing)
    villain = Villain()
    assert villain.rules.floor == 6
    assert tell_each_another(villain) == villain.truth(0, 1, 2, 3)


def split_in_half(villain: Villain) -> list[int]:
    """One half opens the sum over all; to the other half the victim has dropped out."""
    villain.up_to_vectors()
    villain.agree_and_open(range(10), sites=range(5))
    villain.agree_and_open(range(1, 10), sites=range(5, 10))
    return villain.learned(0)


def test_a_threshold_below_the_floor_would_give_both_kinds_of_share(monkeypatch: Patch) -> None:
    with pytest.raises(StudyError, match="reconstruction_threshold is 5, but must be at least 6"):
        Villain(aggregator=SecAgg(reconstruction_threshold=5))
    is_refused("consent", split_in_half, Villain(aggregator=SecAgg(reconstruction_threshold=6)))
    monkeypatch.setattr(_sharing, "_require", nothing)
    villain = Villain(aggregator=SecAgg(reconstruction_threshold=5))
    assert split_in_half(villain) == villain.truth(0)


def feign_dropouts(villain: Villain) -> list[int]:
    """Pretend that four of ten dropped out, where eight must be in a sum."""
    villain.up_to_vectors()
    villain.agree_and_open(range(6))
    return villain.learned(*range(6))


def test_survivors_below_the_floor_would_open_a_smaller_sum(monkeypatch: Patch) -> None:
    is_refused("floor", feign_dropouts, Villain(min_contributors=8))
    monkeypatch.setattr(Rules, "floor", property(lambda rules: rules.threshold))
    villain = Villain(min_contributors=8)
    assert feign_dropouts(villain) == villain.truth(*range(6))


def pad_the_survivors(villain: Villain) -> list[int]:
    """The same, with two for survivors that were never asked."""
    roster = villain.advertise(range(10))
    villain.share(roster)
    villain.collect(range(10))
    villain.agree_and_open([*range(6), 10, 11], sites=range(6))
    return villain.learned(*range(6))


def test_survivors_who_never_shared_would_make_a_small_sum_look_large(monkeypatch: Patch) -> None:
    is_refused("survivors", pad_the_survivors, Villain(12, size=10, min_contributors=8))
    monkeypatch.setattr(Masked, "require_acquainted", nothing)
    villain = Villain(12, size=10, min_contributors=8)
    assert pad_the_survivors(villain) == villain.truth(*range(6))


def isolate(villain: Villain) -> list[int]:
    """Let the victim mask with those alone who are said to drop out."""
    villain.share(villain.advertise())
    villain.collect(range(1, 10))
    villain.collect_one(0, {peer: villain.sealed[peer][0] for peer in (7, 8, 9)})
    villain.agree_and_open(range(7), sites=range(1, 7))
    return villain.learned(0)


def test_withheld_shares_would_leave_a_survivor_alone(monkeypatch: Patch) -> None:
    is_refused("neighbourhood", isolate, Villain())
    monkeypatch.setattr(Party, "check_neighbours", nothing)
    villain = Villain()
    assert isolate(villain) == villain.truth(0)


FORGERIES: dict[str, Callable[[dict[int, bytes]], dict[int, bytes]]] = {
    "one too few": lambda given: dict(list(given.items())[:5]),
    "one for all": lambda given: dict.fromkeys(given, given[0]),
    "exchanged": lambda given: {site: given[(site + 1) % 10] for site in given},
    "none": lambda _given: {},
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_signature_counts_for_its_signer_only(forgery: str) -> None:
    villain = Villain()
    villain.up_to_vectors()
    signatures = villain.consent(dict.fromkeys(range(10), range(10)))
    is_refused("consent", lambda v: v.open(0, FORGERIES[forgery](signatures)), villain)
    assert not villain.seeds
    # Enough others will do.
    villain.open(1, {site: signatures[site] for site in range(4, 10)})
    assert villain.seeds
