from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import cohortium_dirichlet
import cohortium_iid
import cohortium_natural
import cohortium_quantity
from cohortium.plugin import Examples, Partitioner, StudyError
from cohortium_dirichlet import Dirichlet
from cohortium_iid import IID
from cohortium_natural import Natural
from cohortium_quantity import Quantity, QuantityPairs

CHEAP = settings(max_examples=80, deadline=None)
ALPHAS = st.sampled_from((1e-6, 1e-3, 0.05, 0.1, 0.5, 1.0, 100.0, 1e6)) | st.floats(1e-6, 1e6)

Deal = Sequence[NDArray[np.int64]]


def examples(labels: Any, clients: Any = None) -> Examples:
    column = np.asarray(labels, dtype=np.int64)
    images = np.zeros((len(column), 1, 1, 1), dtype=np.uint8)
    return Examples(images, column, None if clients is None else np.asarray(clients, np.int64))


def deal(partitioner: Partitioner, data: Examples, sites: int, seed: int = 0) -> Deal:
    return partitioner.partition(data, sites, np.random.default_rng(seed))


def assert_dealt_once(parts: Deal, data: Examples, sites: int) -> None:
    assert len(parts) == sites
    assert all(part.dtype == np.int64 and part.ndim == 1 for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(data)))


def assert_equal(one: Deal, other: Deal) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)


def counts(parts: Deal, data: Examples) -> NDArray[np.int64]:
    """Examples of each class at each site, shape (sites, classes)."""
    classes = int(data.labels.max()) + 1
    return np.array([np.bincount(data.labels[part], minlength=classes) for part in parts])


LABELS = st.lists(st.integers(0, 7), min_size=1, max_size=300)
SIZES = st.integers(1, 12)
SKEWED = st.builds(Dirichlet, alpha=ALPHAS, min_size=SIZES) | st.builds(
    Quantity, alpha=ALPHAS, min_size=SIZES
)


@settings(max_examples=200, deadline=None)
@given(SKEWED, LABELS, st.integers(1, 40), st.integers(0, 99))
def test_skewed_partitions_are_complete_disjoint_and_repeatable(
    partitioner: Dirichlet | Quantity, labels: list[int], sites: int, seed: int
) -> None:
    data, least = examples(labels), partitioner.min_size
    if sites * least > len(data):
        with pytest.raises(StudyError, match=rf"{sites} sites of at least {least} examples"):
            deal(partitioner, data, sites, seed)
        return
    parts = deal(partitioner, data, sites, seed)
    assert_dealt_once(parts, data, sites)
    assert min(map(len, parts)) >= least
    assert_equal(parts, deal(partitioner, data, sites, seed))


@CHEAP
@given(LABELS, st.integers(1, 40), st.integers(0, 99))
@pytest.mark.parametrize("partitioner", [IID(), QuantityPairs(), QuantityPairs(shift=0.99)])
def test_plain_partitions_are_complete_disjoint_and_repeatable(
    partitioner: Partitioner, labels: list[int], sites: int, seed: int
) -> None:
    data = examples(labels)
    if sites > len(data):
        with pytest.raises(StudyError, match=f"cannot be split over {sites} sites; lower sites"):
            deal(partitioner, data, sites, seed)
        return
    parts = deal(partitioner, data, sites, seed)
    assert_dealt_once(parts, data, sites)
    assert min(map(len, parts)) >= 1
    assert_equal(parts, deal(partitioner, data, sites, seed))


def test_iid_sizes_differ_by_at_most_one() -> None:
    data = examples(np.arange(1000) % 8)
    parts = deal(IID(), data, 7)
    assert {len(part) for part in parts} == {142, 143}
    assert not np.array_equal(parts[0], deal(IID(), data, 7, seed=1)[0])


def test_tiny_alpha_puts_class_at_one_site() -> None:
    data = examples(np.repeat(np.arange(8), 500))
    held = counts(deal(Dirichlet(alpha=1e-6, min_size=10), data, 4), data)
    assert np.all((held > 30).sum(axis=0) == 1)


def test_a_huge_alpha_divides_each_class_equally() -> None:
    data = examples(np.repeat(np.arange(8), 500))
    held = counts(deal(Dirichlet(alpha=1e6), data, 5), data)
    assert abs(held - 100).max() <= 2


def test_shares_of_a_class_have_the_dirichlet_variance() -> None:
    data, sites, alpha = examples(np.repeat(np.arange(400), 100)), 5, 0.5
    shares = counts(deal(Dirichlet(alpha=alpha), data, sites), data) / 100
    mean = 1 / sites
    expected = mean * (1 - mean) / (sites * alpha + 1)
    assert shares.mean() == pytest.approx(mean)
    assert shares.var() == pytest.approx(expected, rel=0.1)


def test_min_size_moves_fewest_examples() -> None:
    data = examples(np.repeat(np.arange(8), 500))
    raw = counts(deal(Dirichlet(alpha=0.02, min_size=1), data, 20, seed=3), data)
    lifted = counts(deal(Dirichlet(alpha=0.02, min_size=25), data, 20, seed=3), data)
    lacking = np.maximum(25 - raw.sum(axis=1), 0)
    assert lacking.sum() > 0
    # The first deal has itself moved an example to each empty site: one more move at most.
    moved = np.maximum(lifted - raw, 0).sum()
    assert lacking.sum() <= moved <= lacking.sum() + 20
    assert lifted.sum(axis=1).min() == 25


def test_a_lone_example_per_site_is_possible() -> None:
    data = examples([0] * 30)
    assert [len(part) for part in deal(Dirichlet(alpha=1e-3, min_size=1), data, 30)] == [1] * 30
    assert [len(part) for part in deal(Quantity(alpha=1e-3, min_size=1), data, 30)] == [1] * 30


@pytest.mark.parametrize("kind", [Dirichlet, Quantity])
@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("alpha", 0.0),
        ("alpha", -1.0),
        ("alpha", float("nan")),
        ("alpha", float("inf")),
        ("min_size", 0),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(
    kind: Any, parameter: str, value: float
) -> None:
    with pytest.raises(ValueError, match=f"'{parameter}' must be"):
        kind(**{parameter: value})


def test_quantity_skews_sizes_and_not_classes() -> None:
    data = examples(np.arange(8000) % 8)
    parts = deal(Quantity(alpha=0.3), data, 6, seed=2)
    sizes = sorted(map(len, parts))
    assert sizes[-1] > 5 * sizes[0]
    largest = counts([max(parts, key=len)], data)[0]
    assert largest / largest.sum() == pytest.approx(np.full(8, 1 / 8), abs=0.03)


def test_quantity_pairs_are_contiguous_and_shift_sizes() -> None:
    parts = deal(QuantityPairs(shift=0.4), examples([0] * 50), 5)
    assert [len(part) for part in parts] == [14, 6, 14, 6, 10]
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(50))
    assert [len(part) for part in deal(QuantityPairs(shift=0), examples([0] * 9), 2)] == [4, 5]
    for shift in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="'shift' must be"):
            QuantityPairs(shift=shift)


CLIENTS = st.lists(st.integers(-3, 12), min_size=1, max_size=200)


@CHEAP
@given(CLIENTS, st.integers(1, 12))
def test_natural_keeps_clients_whole(clients: list[int], sites: int) -> None:
    data = examples([0] * len(clients), clients)
    known = set(clients)
    if sites > len(known):
        with pytest.raises(StudyError, match=f"have {len(known)} clients, too few for {sites}"):
            deal(Natural(), data, sites)
        return
    parts = deal(Natural(), data, sites)
    assert_dealt_once(parts, data, sites)
    assert data.clients is not None
    homes = [set(data.clients[part].tolist()) for part in parts]
    assert all(homes)
    assert sum(map(len, homes)) == len(known)
    assert [min(home) for home in homes] == sorted(min(home) for home in homes)


def test_natural_one_site_per_client_keeps_order() -> None:
    data = examples([0] * 6, [7, 3, 3, 5, 3, 7])
    parts = deal(Natural(), data, 3)
    assert [part.tolist() for part in parts] == [[1, 2, 4], [3], [0, 5]]


@CHEAP
@given(st.lists(st.integers(1, 20), min_size=3, max_size=6), st.integers(2, 3))
def test_natural_merge_stays_within_graham_bound(sizes: list[int], sites: int) -> None:
    data = examples([0] * sum(sizes), np.repeat(np.arange(len(sizes)), sizes))
    largest = max(map(len, deal(Natural(), data, sites)))
    best = min(
        np.bincount(owners, weights=sizes).max()
        for owners in itertools.product(range(sites), repeat=len(sizes))
    )
    assert largest <= best * (4 / 3 - 1 / (3 * sites)) + 1e-9  # Graham 1969


def test_natural_needs_a_client_column() -> None:
    with pytest.raises(StudyError, match="does not say which client"):
        deal(Natural(), examples([0, 1]), 1)


def test_partitioners_are_offered_by_name() -> None:
    plugins: tuple[Any, ...] = (
        cohortium_dirichlet,
        cohortium_iid,
        cohortium_natural,
        cohortium_quantity,
    )
    offers = [offer for plugin in plugins for offer in plugin.cohortium_partitioners()]
    names = [offer.name for offer in offers]
    assert names == ["dirichlet", "iid", "natural", "quantity", "quantity-pairs"]
    assert all(isinstance(offer.factory(), Partitioner) for offer in offers)


@pytest.mark.data
def test_real_images_are_partitioned_once() -> None:
    folder = os.environ.get("COHORTIUM_DATA")
    if not folder:
        pytest.skip("COHORTIUM_DATA names no folder of real images")
    with np.load(f"{folder}/bloodmnist_19.npz") as file:
        data = examples(file["train_labels"][:, 0], file["train_clients"])
    for partitioner in (Dirichlet(), Dirichlet(alpha=1e-3), Quantity(), IID(), Natural()):
        for sites in (1, 5, 10, 19):
            assert_dealt_once(deal(partitioner, data, sites), data, sites)
    sizes = list(map(len, deal(Natural(), data, 10)))
    assert max(sizes) < 1.1 * np.mean(sizes)
