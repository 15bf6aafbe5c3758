"""Centres and groups of the test images, from a data set to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from cohortium import reporting
from cohortium.errors import RecordError
from cohortium.plugin import GroupColumn, Splits
from cohortium.runs.result import predictions_of
from tests.support.federations import QuadrantImages, tiny_federation

SECRET = "never-among-test-images"


@attrs.frozen
class Grouped:
    """Squares whose test images have groups, with a value that only training images have."""

    def load(self) -> Splits:
        splits = QuadrantImages().load()
        assert splits.test is not None
        codes = np.arange(80)[:, None] % 3 - 1
        train = attrs.evolve(splits.train, groups=np.full((240, 1), 2))
        return attrs.evolve(
            splits,
            train=train,
            test=attrs.evolve(splits.test, groups=codes),
            groups=(GroupColumn("<b>sex", ("f", "<i>m", SECRET)),),
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("groups") / "run"
    tiny_federation(dataset=Grouped(), rounds=1).run(path)
    return path


def test_result_has_scores_of_each_group(folder: Path) -> None:
    text = (folder / "result.json").read_text()
    centre, sex = json.loads(text)["scores"]["groups"]
    test = Grouped().load().test
    assert test is not None
    predictions = predictions_of(folder)
    called = predictions.values.argmax(1)
    assert (centre["name"], centre["is_centre"]) == ("centre", True)
    assert [row["value"] for row in sex["rows"]] == ["f", "<i>m", ""]
    assert test.groups is not None
    for row, code in zip(sex["rows"], (0, 1, -1), strict=True):
        chosen = test.groups[:, 0] == code
        assert row["images"] == chosen.sum()
        assert row["score"] == pytest.approx(
            accuracy_score(predictions.labels[chosen], called[chosen])
        )
        assert row["low"] <= row["score"] <= row["high"]
    scores = [row["score"] for row in sex["rows"]]
    assert sex["worst"] == int(np.argmin(scores))


def test_values_of_training_images_stay_out(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def test_report_names_worst_group(folder: Path) -> None:
    page = reporting.render([reporting.read(folder)])
    assert 'id="groups"' in page
    assert "By &lt;b&gt;sex" in page
    assert "<b>sex" not in page
    assert "<i>m" not in page
    assert page.count('<tr class="worst">') == 2
    both = reporting.render([reporting.read(folder), reporting.read(folder)])
    assert "worst centre" in both


def test_headline_names_worst_centre_and_group() -> None:
    result = tiny_federation(dataset=Grouped(), rounds=1).run()
    (_, _), (centre, told), (sex, _) = result.headline()
    assert (centre, sex) == ("worst centre", "worst <b>sex")
    assert "images" in told
    assert "at 95 %" in told


def test_damaged_groups_are_refused(folder: Path, tmp_path: Path) -> None:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    result["scores"]["groups"][0]["rows"][0]["score"] = 3.0
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "study.toml").write_bytes((folder / "study.toml").read_bytes())
    with pytest.raises(RecordError, match="a score of a group is outside the range"):
        reporting.read(tmp_path)
