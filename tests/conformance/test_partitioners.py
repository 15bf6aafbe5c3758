from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attrs import frozen

from cohortium.plugin import Examples, StudyError
from cohortium.testing import ConformanceError, partitioners
from cohortium_iid import IID

Rng = np.random.Generator


@frozen
class OneHandMore:
    def partition(self, examples: Examples, num_sites: int, rng: Rng) -> Any:
        return IID().partition(examples, num_sites + 1, rng)


@frozen
class Lists:
    def partition(self, examples: Examples, num_sites: int, rng: Rng) -> Any:
        return [indices.tolist() for indices in IID().partition(examples, num_sites, rng)]


@frozen
class EmptyHand:
    def partition(self, examples: Examples, num_sites: int, rng: Rng) -> Any:
        first, *rest = IID().partition(examples, num_sites, rng)
        return [*rest, first[:0]]


@frozen
class Overlaps:
    def partition(self, examples: Examples, num_sites: int, rng: Rng) -> Any:
        return [rng.choice(len(examples), 50) for _ in range(num_sites)]


@frozen
class OffByOne:
    def partition(self, examples: Examples, num_sites: int, rng: Rng) -> Any:
        return [indices + 1 for indices in IID().partition(examples, num_sites, rng)]


@frozen
class GlobalGenerator:
    def partition(self, examples: Examples, num_sites: int, rng: Rng) -> Any:
        del rng
        order = np.random.permutation(len(examples))  # noqa: NPY002
        return np.array_split(order, num_sites)


@frozen
class SortsInPlace:
    def partition(self, examples: Examples, num_sites: int, rng: Rng) -> Any:
        examples.labels.sort()
        return IID().partition(examples, num_sites, rng)


@frozen
class NeverRefuses:
    def partition(self, examples: Examples, num_sites: int, rng: Rng) -> Any:
        return np.array_split(rng.permutation(len(examples)), num_sites)


@frozen
class RefusesWithAValueError:
    def partition(self, examples: Examples, num_sites: int, rng: Rng) -> Any:
        if num_sites > len(examples):
            raise ValueError("no.")
        return IID().partition(examples, num_sites, rng)


@frozen
class RefusesAll:
    def partition(self, examples: Examples, num_sites: int, rng: Rng) -> Any:
        raise StudyError("never today.")


@frozen
class LeavesSome:
    def partition(self, examples: Examples, num_sites: int, rng: Rng) -> Any:
        return [indices[:10] for indices in IID().partition(examples, num_sites, rng)]


BAD = [
    (partitioners.check_honours_the_number_of_sites, OneHandMore(), "1 sites were asked for and 2"),
    (partitioners.check_honours_the_number_of_sites, Lists(), "site 0 is no one-dimensional int64"),
    (partitioners.check_honours_the_number_of_sites, EmptyHand(), "was assigned no example"),
    (partitioners.check_honours_the_number_of_sites, RefusesAll(), "never today"),
    (partitioners.check_no_example_twice, Overlaps(), "assigned twice"),
    (partitioners.check_no_example_twice, OffByOne(), "position outside 0…239"),
    (partitioners.check_deal_is_repeatable, GlobalGenerator(), "gave different partitions"),
    (partitioners.check_examples_untouched, SortsInPlace(), "changed the labels"),
    (
        partitioners.check_refuses_too_many_sites,
        NeverRefuses(),
        "4 examples were split over 9 sites",
    ),
    (partitioners.check_refuses_too_many_sites, RefusesWithAValueError(), "raised ValueError: no."),
]


@pytest.mark.parametrize(("check", "bad", "words"), BAD)
def test_a_bad_partitioner_fails(check: Any, bad: Any, words: str) -> None:
    with pytest.raises(ConformanceError, match=words):
        check(bad)


@pytest.mark.parametrize("check", partitioners.CHECKS)
def test_valid_plugin_passes_check(check: Any) -> None:
    assert check(IID()) is None


def test_partition_omitting_examples_passes_with_note() -> None:
    note = partitioners.check_no_example_twice(LeavesSome())
    assert note == "leaves up to 230 of 240 examples undealt"


def test_every_check_has_bad_implementation() -> None:
    assert {check for check, _, _ in BAD} == set(partitioners.CHECKS)
