"""What is chosen for a study that declares dropouts, what that hides, and that sums come of it."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium.plugin import FederationSpec, StudyError, TooFewSitesError
from cohortium_secagg import SecAgg
from tests.support.in_memory_aggregation import InMemoryAggregation

KEYS, SHARES, VECTOR, UNMASKING = range(4)


def federation_spec(sites: int, colluding: int = 0, **terms: object) -> FederationSpec:
    numbers: dict[str, object] = {"cohort_size": sites, "examples": 9, "rounds": 1, **terms}
    return FederationSpec(sites=sites, max_colluding=colluding, **numbers)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sites", "colluding", "dropout", "threshold", "shares"),
    [
        (10, 1, 0.1, 4, 5),
        (20, 1, 0.05, 4, 5),
        (50, 5, 0.05, 8, 11),
        (100, 5, 0.05, 8, 13),
        (1_000, 50, 0.05, 17, 29),
    ],
)
def test_neighbours_and_threshold_are_calculated(
    sites: int, colluding: int, dropout: float, threshold: int, shares: int
) -> None:
    confidentiality = SecAgg(max_dropout_rate=dropout).confidentiality(
        federation_spec(sites, colluding)
    )
    assert (confidentiality.reconstruction_threshold, confidentiality.shares) == (threshold, shares)
    assert confidentiality.min_contributors <= sites - dropout * sites
    assert confidentiality.statistical_security_bits == 40


def test_no_dropout_rate_keeps_four_of_five() -> None:
    for sites in (5, 10, 20, 1_000):
        confidentiality = SecAgg().confidentiality(federation_spec(sites, 1))
        assert (
            confidentiality.reconstruction_threshold,
            confidentiality.shares,
            confidentiality.statistical_security_bits,
        ) == (4, 5, None)


@pytest.mark.parametrize(
    ("sites", "colluding", "threshold"), [(10, 1, 6), (20, 1, 11), (10, 0, 6), (50, 5, 28)]
)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_active_adversary_chooses_majority_threshold(
    sites: int, colluding: int, threshold: int, dropout: float
) -> None:
    confidentiality = SecAgg(max_dropout_rate=dropout).confidentiality(
        federation_spec(sites, colluding, adversary="active")
    )
    assert (
        confidentiality.reconstruction_threshold,
        confidentiality.shares,
        confidentiality.statistical_security_bits,
    ) == (threshold, sites, None)
    assert confidentiality.honest == threshold - colluding


def test_more_rounds_or_security_need_more_shares() -> None:
    def least(rounds: int, security: int) -> int:
        wish = SecAgg(max_dropout_rate=0.05, security_bits=security)
        return wish.confidentiality(federation_spec(1_000, 50, rounds=rounds)).shares

    assert least(1, 20) < least(1, 40) < least(1_000, 40) < least(1, 80)


def test_docs_table_matches_calculation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "secagg.md").read_text("utf-8")
    rates = (0.05, 0.1, 0.2, 0.33)
    rows = re.findall(r"^\| ([\d,]+) \| (\d+) \| (\d+ of \d+; .*) \|$", page, re.MULTILINE)
    assert len(rows) == 14
    for sites, colluding, cells in rows:
        asked = federation_spec(int(sites.replace(",", "")), int(colluding), rounds=100)
        chosen = [SecAgg(max_dropout_rate=rate).confidentiality(asked) for rate in rates]
        told = [f"{c.reconstruction_threshold} of {c.shares}; {c.min_contributors}" for c in chosen]
        assert cells.split(" | ") == told


@pytest.mark.parametrize(
    ("wish", "terms", "sentence"),
    [
        (
            {"reconstruction_threshold": 11},
            {},
            "reconstruction_threshold is 11, but must be at least 17: max_colluding is 50 and ",
        ),
        (
            {"num_shares": 11},
            {},
            "num_shares is 11, but must be at least 29: max_colluding is 50 and max_dropout_rate ",
        ),
        (
            {"num_shares": 41, "reconstruction_threshold": 60},
            {},
            "num_shares is 41, but must be at least 79: max_colluding ",
        ),
        (
            {"num_shares": 41, "reconstruction_threshold": 12},
            {},
            "reconstruction_threshold is 12, but must be at least ",
        ),
        (
            {"reconstruction_threshold": 1},
            {},
            "reconstruction_threshold is 1, but must be at least 2: one shareholder alone",
        ),
        (
            {"reconstruction_threshold": 960},
            {},
            r"max_dropout_rate is 0\.05, but must be at most 0\.04: a sum is opened ",
        ),
        (
            {},
            {"min_contributors": 951},
            r"max_dropout_rate is 0\.05, but must be at most 0\.049: a sum is opened ",
        ),
        (
            {"max_dropout_rate": 0.96},
            {},
            r"max_dropout_rate is 0\.96, but must be at most 0\.948: a sum is opened ",
        ),
        (
            {},
            {"cohort_size": 51},
            r"federation\.cohort_size is 51, but must be at least 52: a sum is opened over 52 or ",
        ),
        (
            {"max_dropout_rate": 0.6},
            {"adversary": "active"},
            r"max_dropout_rate is 0\.6, but must be at most 0\.474",
        ),
    ],
)
def test_weak_parameters_error_names_least_value(
    wish: dict[str, float], terms: dict[str, object], sentence: str
) -> None:
    federation = federation_spec(1_000, 50, **terms)
    with pytest.raises(StudyError, match=rf"^secagg: {sentence}[^\n]*\.$"):
        SecAgg(**({"max_dropout_rate": 0.05} | wish)).confidentiality(federation)  # type: ignore[arg-type]


@given(
    sites=st.integers(3, 60),
    colluding=st.integers(0, 20),
    dropout=st.floats(0.001, 0.5),
    shares=st.integers(0, 70),
    threshold=st.integers(0, 60),
)
@settings(max_examples=80, deadline=None)
def test_value_named_by_error_is_accepted(
    sites: int, colluding: int, dropout: float, shares: int, threshold: int
) -> None:
    wish = {
        "num_shares": shares,
        "reconstruction_threshold": threshold,
        "max_dropout_rate": dropout,
    }
    for _ in range(6):
        try:
            confidentiality = SecAgg(**wish).confidentiality(federation_spec(sites, colluding))  # type: ignore[arg-type]
        except StudyError as error:
            words = str(error).split()
            name, least = words[1], float(words[words.index("be") + 3].rstrip(":"))
            if name.startswith("federation.") or least == 0:
                return
            wish[name] = least if name == "max_dropout_rate" else int(least)
        else:
            assert (
                threshold in (0, confidentiality.reconstruction_threshold)
                or confidentiality.reconstruction_threshold == wish["reconstruction_threshold"]
            )
            return
    raise AssertionError(wish)


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5])
def test_invalid_dropout_rate_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="max_dropout_rate"):
        SecAgg(max_dropout_rate=value)


def test_confidentiality_text_states_numbers() -> None:
    assert str(SecAgg(max_dropout_rate=0.05).confidentiality(federation_spec(100, 5))) == (
        "8 of 13 shares: from an attempt, an honest-but-curious coordinator and 5 colluding sites "
        "learn the sum over all that contributed, at least 94 of 100, and nothing else, except in "
        "one run of 2^40."
    )
    assert str(SecAgg().confidentiality(federation_spec(10, 1, adversary="active"))) == (
        "6 of 10 shares: from an attempt, an active coordinator and 1 colluding sites learn the "
        "sum over sites that it picks, at least 6 of 10, and nothing else."
    )


@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=15, deadline=None)
def test_declared_dropouts_at_any_stage_are_survived(seed: int) -> None:
    chance = random.Random(seed)
    aggregation = InMemoryAggregation(SecAgg(max_dropout_rate=0.1), 40, max_colluding=2)
    lost = {site: chance.choice([KEYS, SHARES, VECTOR, UNMASKING])
            for site in chance.sample(range(40), 4)}  # fmt: skip
    total = aggregation.run(lost=lost)
    assert aggregation.is_exact(total)
    assert total.contributors == tuple(s for s in range(40) if lost.get(s, UNMASKING) == UNMASKING)


def test_sum_below_min_contributors_is_not_opened() -> None:
    aggregation = InMemoryAggregation(SecAgg(max_dropout_rate=0.05), 60, max_colluding=6)
    least = (
        SecAgg(max_dropout_rate=0.05)
        .confidentiality(aggregation.config.federation_spec)
        .min_contributors
    )
    assert 20 < least <= 57
    with pytest.raises(TooFewSitesError, match=f"but a sum is opened over at least {least}"):
        aggregation.run(lost=dict.fromkeys(range(61 - least), VECTOR))
