"""The section about an evaluation at the sites."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from cohortium import reporting
from cohortium.errors import RecordError
from cohortium.reporting import wording
from cohortium.study.measurement import EvaluationPlan
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from tests.support.federations import QuadrantImages, tiny_federation

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny_federation(
        dataset=QuadrantImages(480), sites=4, rounds=1, holdout_fraction=0.5,
        trainer=FedSGD(sampling_rate=1.0), privatizer=Gaussian(epsilon=4.0, delta=1e-4),
        evaluation=EvaluationPlan(epsilon=2.0, by=("site",)), insecure_seeded_secrets=True,
    ).run(folder)  # fmt: skip
    return folder


def section(page: str) -> str:
    found = re.search(r'<section class="row" id="at-the-hospitals">.*?</section>', page, re.DOTALL)
    assert found is not None
    return " ".join(re.sub(r"<[^>]+>", " ", found.group()).split())


def test_the_report_of_a_run_shows_its_evaluation(run: Path) -> None:
    text = section(reporting.render([reporting.read(run)]))
    told = json.loads((run / "evaluation" / "result.json").read_text())
    accuracy = told["measured"]["estimates"][0]["value"]
    assert "one sum over 4 hospitals, with noise" in text
    assert re.search(r"ε = 2(\.0\d?)? at δ", text)
    assert f"accuracy {' '.join(wording.percent(accuracy).split())}" in text
    assert "site 3" in text
    assert "Lowest" in text


def test_the_evaluation_has_a_report_of_its_own(run: Path) -> None:
    assert "site 3" in section(reporting.render([reporting.read(run / "evaluation")]))


def test_seeded_evaluation_claims_no_price(run: Path) -> None:
    """A seeded simulation protects nothing, in any section of its page."""
    page = reporting.render([reporting.read(run)])
    text = section(page)
    assert "Nothing was protected : the noise came from a public seed." in text
    assert "it would cost ε = 2" in text
    assert "It cost" not in text
    assert "ε spent" not in page
    assert "ε that secret noise would spend" in page


def test_an_unfinished_evaluation_is_said_to_be_one(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "evaluation" / "result.json").unlink()
    assert "not finished" in section(reporting.render([reporting.read(copy)]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"noise": -1.0}, "too small"),
        ({"sums": []}, "differ in number"),
        ({"estimates": [{"low": 0.9, "high": 0.1}]}, "outside its range"),
        ({"estimates": [{"value": "<b>"}]}, "damaged"),
    ],
)
def test_an_impossible_evaluation_is_refused(
    run: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    path = copy / "evaluation" / "result.json"
    record = json.loads(path.read_text())
    for name, value in change.items():
        if name == "estimates":
            record["measured"]["estimates"][0] |= value[0]
        else:
            record["measured"][name] = value
    path.write_text(json.dumps(record))
    with pytest.raises(RecordError, match=words):
        reporting.read(copy)
