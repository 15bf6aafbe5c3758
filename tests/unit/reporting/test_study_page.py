"""The page before a decision: what leaves, what it costs, and who can learn what."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from cohortium.errors import RequestError
from cohortium.privacy.guarantee import Guarantee
from cohortium.privacy.membership import MembershipBound
from cohortium.reporting.parties import PartyInputs, party_views
from cohortium.reporting.study_page import (
    Charge,
    Release,
    StudyOutlook,
    render_study_page,
    write_study_page,
)
from cohortium.reporting.terms import Terms
from cohortium.roles.values import AggregationGuarantee

GUARANTEE = Guarantee(
    epsilon=6.0, delta=1e-5, epsilon_at_1e_5=6.0, unit="patient", adjacency="zero-out",
    against="everyone", accountant="prv", noise_multiplier=1.0,
)  # fmt: skip

OUTLOOK = StudyOutlook(
    site=2,
    digest="3f" * 32,
    status="waiting",
    first_asked="01 March 2027",
    last_asked="02 March 2027",
    decision="",
    inputs=PartyInputs(
        terms=Terms(sites=5, rounds=40, retries=2, max_colluding=1),
        guarantee=GUARANTEE,
        aggregation=AggregationGuarantee(
            min_contributors=4, reconstruction_threshold=4, max_dropouts=1
        ),
    ),
    release=Release(attempts=42, rounds=40, values=4802, size=16_000, is_measurement=False),
    membership=(
        MembershipBound(false_positive_rate=0.001, true_positive_rate=0.07641),
        MembershipBound(false_positive_rate=0.01, true_positive_rate=0.2),
    ),
    charge=Charge(
        data="chest", use="train", now="0", after=("6", "8.49"), delta=1e-5,
        scope="one patient against everyone", budget="ε = 8", is_within=True,
    ),
    study={"model": {"name": "cnn"}, "trainer": {"name": "fedsgd"}},
    versions={"cohortium": "1"},
    commands=("cohortium approve site.toml 3f3f", "cohortium revoke site.toml 3f3f"),
)  # fmt: skip


def text(outlook: StudyOutlook) -> str:
    """The page without its tags."""
    return " ".join(re.sub(r"<[^>]*>", " ", render_study_page(outlook)).split())


def test_page_has_the_reports_own_section_before_the_run() -> None:
    found = text(OUTLOOK)
    assert "Training of cnn with fedsgd" in found
    assert "At most 42 vectors of 4,802 numbers" in found
    assert "of which 2 attempts may replace failed ones" in found
    assert "a sum over 4 hospitals or more" in found
    assert "ε now after 1 run after 2 runs chest train 0 6 8.49" in found
    page = render_study_page(OUTLOOK)
    for view in party_views(OUTLOOK.inputs):
        for words in (view.who, view.person.split(".")[0]):
            assert words in page
    assert "Bounded for all images of any one patient" in page
    assert 'id="over"' not in page
    assert "wrong about 1 in 1,000 that did not, finds at most 7.7 % of those" in found
    assert "wrong about 1 in 100 that did not, finds at most 20.0 % of those" in found


def with_inputs(**changes: Any) -> StudyOutlook:
    return evolve(OUTLOOK, inputs=evolve(OUTLOOK.inputs, **changes))


@pytest.mark.parametrize(
    ("outlook", "words"),
    [
        (with_inputs(guarantee=None), "No noise is added to it."),
        (with_inputs(guarantee=evolve(GUARANTEE, simulation=True)), "anyone can take it off"),
        (with_inputs(aggregation=None), "The coordinator sees each vector by itself."),
        (
            evolve(OUTLOOK, charge=evolve(OUTLOOK.charge, is_within=False)),
            "A run does not fit the budget that is left.",
        ),
        (
            evolve(OUTLOOK, charge=evolve(OUTLOOK.charge, budget="")),
            "The policy sets no budget",
        ),
        (
            evolve(OUTLOOK, release=evolve(OUTLOOK.release, is_measurement=True)),
            "Evaluation of cnn",
        ),
        (evolve(OUTLOOK, decision="Approved by A. Meyer."), "Approved by A. Meyer."),
    ],
)
def test_page_states_what_is_worse(outlook: StudyOutlook, words: str) -> None:
    assert words in text(outlook)
    assert words not in text(OUTLOOK)


def test_words_of_a_study_are_text() -> None:
    hostile = {"model": {"name": "<script>alert(1)</script>", "note\u202e": "\x1b[2J"}}
    page = render_study_page(evolve(OUTLOOK, study=hostile))
    assert "<script" not in page
    assert "\u202e" not in page
    assert "\x1b" not in page


def test_page_is_its_owners_and_replaces_no_other_file(tmp_path: Path) -> None:
    page = tmp_path / "study.html"
    write_study_page(OUTLOOK, page)
    write_study_page(OUTLOOK, page)
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    page.write_text("notes")
    with pytest.raises(RequestError, match="no page of a study"):
        write_study_page(OUTLOOK, page)
