"""How likely a sparse graph fails: against counting every case, chance, and published figures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from cohortium.plugin import Randomness
from cohortium_secagg._bounds import (
    UNRECOVERED,
    GraphRequirements,
    Hypergeometric,
    ThresholdRange,
    gap_probability,
)
from cohortium_secagg._graph import Graph

draws = st.integers(1, 60).flatmap(
    lambda population: st.builds(
        Hypergeometric, st.just(population), st.integers(0, population), st.integers(0, population)
    )
)


def parts(graph: Graph, sites: Collection[int]) -> int:
    """Into how many parts `sites` fall."""
    neighbours, left, found = graph.neighbours(), set(sites), 0
    while left:
        found += 1
        edge = {left.pop()}
        while edge:
            edge = {peer for site in edge for peer in neighbours[site] & left}
            left -= edge
    return found


def fewest(requirements: GraphRequirements) -> tuple[int, ThresholdRange]:
    """The least degree that will do, and its thresholds."""
    return next((k, window) for k in requirements.degrees() if (window := requirements.window(k)))


# --- The distribution -----------------------------------------------------------------------------


@given(draw=draws, count=st.integers(-1, 61))
def test_the_tail_is_that_of_the_hypergeometric_distribution(
    draw: Hypergeometric, count: int
) -> None:
    theirs = hypergeom.sf(count - 1, draw.population, draw.successes, draw.drawn)
    assert math.isclose(draw.tail_probability(count), theirs, rel_tol=1e-9, abs_tol=1e-300)


@pytest.mark.parametrize(
    "draw",
    [
        Hypergeometric(7, 3, 4),
        Hypergeometric(6, 6, 2),
        Hypergeometric(5, 0, 3),
        Hypergeometric(8, 5, 8),
    ],
)
def test_tail_matches_exhaustive_count(draw: Hypergeometric) -> None:
    hands = list(itertools.combinations(range(draw.population), draw.drawn))
    for count in range(draw.population + 1):
        met = sum(sum(ball < draw.successes for ball in hand) >= count for hand in hands)
        assert draw.tail_probability(count) == Fraction(met, len(hands))


@given(draw=draws, failure_probability=st.fractions(0, 1))
def test_rare_count_is_least_rare_count(
    draw: Hypergeometric, failure_probability: Fraction
) -> None:
    rare = draw.upper_tail_quantile(failure_probability)
    assert draw.tail_probability(rare) <= failure_probability
    assert rare == 0 or draw.tail_probability(rare - 1) > failure_probability


# --- Every case of small graphs -------------------------------------------------------------------


def small(sites: int) -> Iterator[tuple[int, int, int]]:
    """Degrees, colluding sites and lost ones, with two honest sites left beside."""
    for degree, colluding, lost in itertools.product(range(2, sites), range(4), range(3)):
        if colluding + lost + 2 <= sites:
            yield degree, colluding, lost


def share(cases: Iterable[bool]) -> Fraction:
    """The fraction that is true."""
    listed = list(cases)
    return Fraction(sum(listed), len(listed))


def placings(sites: int, colluding: int, lost: int) -> Iterator[tuple[set[int], set[int]]]:
    """Every place that colluding sites and lost ones can take; some may be both."""
    everyone = range(sites)
    for some in itertools.combinations(everyone, colluding):
        for others in itertools.combinations(everyone, lost):
            yield set(some), set(others)


@pytest.mark.parametrize("sites", [6, 7, 8])
def test_graph_bounds_exceed_exhaustive_failure_rates(sites: int) -> None:
    for degree, colluding, lost in small(sites):
        graph = Graph.draw(range(sites), degree, Randomness.insecure_from_seed(1).stream("graph"))
        neighbours = graph.neighbours()
        most, split = [], []
        for bad, gone in placings(sites, colluding, lost):
            honest = set(range(sites)) - bad
            most.append(max(len(neighbours[site] & bad) for site in honest))
            split.append(parts(graph, honest - gone) > 1)
        for failure_probability in (Fraction(1, 2), Fraction(1, 10), Fraction(1, 200)):
            requirements = GraphRequirements(sites, colluding, lost, failure_probability)
            threshold = requirements.hides(degree, sites)
            assert share(known >= threshold for known in most) <= failure_probability / 2
            if requirements.is_connected(degree, sites - lost):
                assert share(split) <= failure_probability / 2


@pytest.mark.parametrize("sites", [6, 7])
def test_chosen_graph_holds_for_every_attendance(sites: int) -> None:
    """Sites are lost before the graph is drawn, and after; down to the least sum."""
    failure_probability, held = Fraction(1, 5), 0
    for degree, colluding, lost in small(sites):
        requirements = GraphRequirements(sites, colluding, lost, failure_probability)
        window = requirements.window(degree)
        if window is None:
            continue
        least = requirements.fewest(degree, window.least)
        assert least <= sites - lost
        for came in range(least, sites + 1):
            graph = Graph.draw(
                range(came), degree, Randomness.insecure_from_seed(2).stream("graph")
            )
            neighbours = graph.neighbours()
            for left in range(least, came + 1):
                failed = [
                    parts(graph, set(range(came)) - bad - gone) > 1
                    or any(
                        len(neighbours[site] & bad) >= window.least
                        for site in set(range(came)) - bad
                    )
                    for bad, gone in placings(came, colluding, came - left)
                ]
                assert share(failed) <= failure_probability
                held += 1
    assert held > 50


@pytest.mark.parametrize("sites", [6, 7, 8])
def test_likely_dropouts_are_survived(sites: int) -> None:
    """Graphs so small have no rarer case: none may fail."""
    for degree, lost in itertools.product(range(2, sites), range(sites - 2)):
        window = GraphRequirements(sites, 0, lost, Fraction(1)).window(degree)
        graph = Graph.draw(range(sites), degree, Randomness.insecure_from_seed(3).stream("graph"))
        neighbours = graph.neighbours()
        left = [
            len((neighbours[site] | {site}) - set(gone))
            for gone in itertools.combinations(range(sites), lost)
            for site in range(sites)
        ]
        if window is not None:
            assert window.most == min(left) if degree % 2 == 0 else window.most <= min(left)


@pytest.mark.parametrize(("degree", "reach"), [(2, 1), (4, 2), (6, 3)])
def test_gap_probability_bounds_chance_of_cut(degree: int, reach: int) -> None:
    for places in range(degree + 2, 11):
        graph = Graph.draw(range(places), degree, Randomness.insecure_from_seed(4).stream("graph"))
        for removed in range(places - 1):
            kept = list(itertools.combinations(range(places), places - removed))
            cut = sum(parts(graph, some) > 1 for some in kept)
            bound = gap_probability(places, removed, reach)
            assert Fraction(cut, len(kept)) <= bound
            # Exact where there is room for two gaps only, and nothing beside them can be lost.
            if removed == degree:
                assert Fraction(cut, len(kept)) == bound


# --- Chance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("colluding", "lost", "degree", "threshold"), [(6, 3, 6, 5), (9, 6, 6, 5), (3, 12, 4, 3)]
)
def test_calculated_failure_rate_matches_thirty_sites(
    colluding: int, lost: int, degree: int, threshold: int
) -> None:
    trials, exposed, split, unrecovered = 1_500, 0, 0, 0
    stream = Randomness.insecure_from_seed(5).stream("graphs")
    bad, gone = set(range(colluding)), set(range(30 - lost, 30))
    for _ in range(trials):
        graph = Graph.draw(range(30), degree, stream)
        neighbours = graph.neighbours()
        honest = set(range(30)) - bad
        exposed += any(len(neighbours[site] & bad) >= threshold for site in honest)
        split += parts(graph, honest - gone) > 1
        unrecovered += any(len((neighbours[site] | {site}) - gone) < 3 for site in range(30))
    for seen, bound in (
        (
            exposed,
            (30 - colluding) * Hypergeometric(29, colluding, degree).tail_probability(threshold),
        ),
        (split, gap_probability(30, colluding + lost, degree // 2)),
        (
            unrecovered,
            (30 - lost) * Hypergeometric(29, lost, degree).tail_probability(degree - 1)
            + lost * Hypergeometric(29, lost - 1, degree).tail_probability(degree - 2),
        ),
    ):
        expected = trials * float(bound)
        # Five standard deviations; and a union over 30 sites is not the whole of their overlaps.
        assert seen <= expected + 5 * math.sqrt(expected)
        assert seen >= min(expected, trials) / 3 - 5 * math.sqrt(expected)


# --- Published figures ----------------------------------------------------------------------------

# The parameter finder of Google's implementation, and the figures its tests expect:
# github.com/google-parfait/federated-compute at bdbd822, fcp/secagg/server/
# graph_parameter_finder.cc and graph_parameter_finder_test.cc.
# (colluding, dropping out): {sites: (neighbours, threshold)}
CURIOUS = {
    (0.45, 0.45): {100: (92, 46), 1_000: (822, 417)},
    (0.33, 0.33): {
        10: (8, 4), 100: (68, 34), 1_000: (286, 150), 10_000: (422, 221), 100_000: (480, 251),
    },
    (0.05, 0.33): {
        10: (4, 2), 100: (28, 6), 1_000: (72, 24), 10_000: (86, 29), 100_000: (96, 32),
        1_000_000: (102, 34),
    },
    (0.33, 0.05): {
        10: (4, 4), 100: (34, 29), 1_000: (78, 60), 10_000: (92, 70), 100_000: (102, 77),
        1_000_000: (110, 83),
    },
    (0.05, 0.05): {
        10: (2, 2), 100: (12, 6), 1_000: (30, 17), 10_000: (34, 20), 100_000: (36, 21),
        1_000_000: (38, 22),
    },
    (0.33, 0.0): {
        10: (4, 4), 100: (26, 25), 1_000: (38, 36), 10_000: (42, 40), 100_000: (46, 44),
        1_000_000: (50, 47),
    },
    (0.0, 0.33): {
        10: (4, 2), 100: (26, 2), 1_000: (38, 2), 10_000: (42, 2), 100_000: (46, 2),
        1_000_000: (50, 2),
    },
}  # fmt: skip
SEMI_MALICIOUS = {
    (0.05, 0.05): {
        10: (2, 2), 100: (16, 11), 1_000: (52, 37), 10_000: (62, 44), 100_000: (68, 48),
        1_000_000: (74, 52),
    },
    (0.33, 0.05): {
        10: (4, 4), 100: (42, 37), 1_000: (132, 109), 10_000: (178, 146), 100_000: (196, 160),
        1_000_000: (212, 173),
    },
    (0.05, 0.33): {10: (8, 5), 100: (72, 39), 1_000: (398, 223)},
    (0.0, 0.33): {10: (8, 5), 100: (68, 35), 1_000: (228, 115), 10_000: (326, 164)},
}  # fmt: skip


def rows(
    table: dict[tuple[float, float], dict[int, tuple[int, int]]],
) -> list[tuple[int, float, float, int, int]]:
    return [(sites, *rates, *found) for rates, row in table.items() for sites, found in row.items()]


def parameters(
    sites: int, colluding: float, dropout: float, *, majority: bool, bits: int = 40
) -> tuple[int, int] | None:
    """Their search, over our bounds."""
    bad, gone = (math.floor((rate + 1e-14) * sites) for rate in (colluding, dropout))
    each, some = Fraction(1, sites << bits + 1), Fraction(1, sites << 20)
    for degree in range(2, sites - 1, 2):
        if gap_probability(sites, bad + gone, degree // 2) >= Fraction(1, 2 << bits):
            continue
        known = Hypergeometric(sites, bad, degree).upper_tail_quantile(each) - 1
        if majority:
            known = math.ceil((known + degree - 1.25) / 2)
        if known + 1 <= degree + 1 - Hypergeometric(sites, gone, degree).upper_tail_quantile(some):
            return degree, max(known + 1, 2)
    return None


@pytest.mark.parametrize(("sites", "colluding", "dropout", "degree", "threshold"), rows(CURIOUS))
def test_bounds_match_google_parameter_finder(
    sites: int, colluding: float, dropout: float, degree: int, threshold: int
) -> None:
    assert parameters(sites, colluding, dropout, majority=False) == (degree, threshold)


@pytest.mark.parametrize(
    ("sites", "colluding", "dropout", "degree", "threshold"), rows(SEMI_MALICIOUS)
)
def test_bounds_give_neighbourhood_majority_sizes(
    sites: int, colluding: float, dropout: float, degree: int, threshold: int
) -> None:
    assert parameters(sites, colluding, dropout, majority=True) == (degree, threshold)


@pytest.mark.parametrize(
    ("sites", "colluding", "dropout", "degree", "threshold"),
    [row for row in rows(CURIOUS) if row[3] < 100],
)
def test_chosen_degrees_differ_from_google_as_explained(
    sites: int, colluding: float, dropout: float, degree: int, threshold: int
) -> None:
    bad, gone = (math.floor(rate * sites + 1e-9) for rate in (colluding, dropout))
    ours, window = fewest(GraphRequirements(sites, bad, gone, Fraction(1, 1 << 40)))
    # A site holds a share of its own, which counts when dropouts are to be survived.
    assert ours >= degree - 2
    # The graph is drawn over those that sent keys: more of them collude if all that are lost were
    # lost before.  Where none are, the choice is the same.
    if gone == 0:
        assert ours == degree
        assert window.least == threshold
    if dropout <= 0.05:
        assert ours <= 1.05 * degree + 1


def test_repeatable_graph_draw_needs_more_neighbours() -> None:
    # The figures of docs/secagg.md: each of 2**80 tosses must be as unlikely as 2**-120.
    for sites, degree in ((100, 16), (1_000, 76), (10_000, 98)):
        found = parameters(sites, 0.05, 0.05, majority=True, bits=120)
        assert found is not None
        assert found[0] == degree


def test_graph_over_remaining_sites_needs_more_neighbours() -> None:
    # As docs/secagg.md has it, beside the 286 above.
    assert fewest(GraphRequirements(1_000, 330, 330, Fraction(1, 1 << 40)))[0] == 502


def test_billion_sites_need_under_thousand_neighbours() -> None:
    # Bell et al. (2020), abstract: "can handle a billion clients at the per-client cost of the
    # protocol of Bonawitz et al. for a thousand clients".
    billion = 10**9
    degree, _ = fewest(
        GraphRequirements(billion, billion // 3, billion // 20, Fraction(1, 1 << 40))
    )
    assert degree < 999


# --- What the demands do --------------------------------------------------------------------------


@given(
    sites=st.integers(3, 120),
    colluding=st.integers(0, 40),
    lost=st.integers(0, 40),
    bits=st.integers(1, 80),
)
@settings(max_examples=60, deadline=None)
def test_stronger_adversary_raises_graph_requirements(
    sites: int, colluding: int, lost: int, bits: int
) -> None:
    assume(sites - lost >= colluding + 3)
    requirements = GraphRequirements(sites, colluding, lost, Fraction(1, 1 << bits))
    degree, window = fewest(requirements)
    assert 2 <= window.least <= window.most <= degree + 1 <= sites
    assert window.most <= sites - lost
    assert colluding + 2 <= requirements.fewest(degree, window.least) <= sites - lost
    for feared in (
        GraphRequirements(sites, colluding + 1, lost, requirements.failure_probability),
        GraphRequirements(sites, colluding, lost, requirements.failure_probability / 4),
    ):
        assert feared.hides(degree, sites) >= requirements.hides(degree, sites)
        assert feared.is_connected(degree, sites) <= requirements.is_connected(degree, sites)


@pytest.mark.parametrize("sites", [40, 101, 300, 1_000])
@pytest.mark.parametrize(("colluding", "lost"), [(0.05, 0.05), (0.05, 0.3), (0.3, 0.1), (0.0, 0.2)])
def test_chosen_graph_stays_within_allowed_odds(sites: int, colluding: float, lost: float) -> None:
    """The sums of docs/secagg.md, at any number of sites that may have sent keys."""
    bad, gone, failure_probability = (
        round(colluding * sites),
        round(lost * sites),
        Fraction(1, 1 << 30),
    )
    requirements = GraphRequirements(sites, bad, gone, failure_probability)
    k, window = fewest(requirements)
    for threshold in window:
        least = requirements.fewest(k, threshold)
        for came in {least, (least + sites) // 2, sites}:
            exposed = (came - bad) * Hypergeometric(
                came - 1, bad, min(k, came - 1)
            ).tail_probability(threshold)
            removed = bad + came - least
            whole = k >= came - 1 or k > removed
            assert (
                exposed + (0 if whole else gap_probability(came, removed, k // 2))
                <= failure_probability
            )
    alive = sites * Hypergeometric(sites - 1, gone, k).tail_probability(k + 2 - window.most)
    lacking = gone * Hypergeometric(sites - 1, gone - 1, k).tail_probability(k + 1 - window.most)
    assert alive + lacking <= UNRECOVERED


def test_complete_graph_thresholds_are_exact() -> None:
    requirements = GraphRequirements(
        sites=12, colluding=4, lost=3, failure_probability=Fraction(1, 1 << 200)
    )
    assert requirements.window(11) == ThresholdRange(least=5, most=9)
    assert requirements.fewest(11, 5) == 6
    assert Fraction(1, 1 << 20) == UNRECOVERED
