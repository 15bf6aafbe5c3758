"""Scores by centre in a grid's table, in a comparison of two cells, and in a model card."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from cohortium import grid as grids
from cohortium.data.scores import Scores
from cohortium.errors import DataError
from cohortium.grid import plot
from cohortium.grid.differences import GroupDifference
from cohortium.grid.paired import bootstrap_groups
from cohortium.inference import export
from cohortium.inference.classifier import Classifier
from cohortium.inference.export.scores import recompute_scores
from cohortium.runs.result import Timings, predictions_of
from cohortium.runs.stored_result import ResultFile
from tests.support.command_line import PARTS, cohortium

GRID = """
[grid]
seeds = [1, 2, 3]
"trainer.learning_rate" = [0.01, 0.1]
[federation]
rounds = 1
sites = 4
threads = 1
[privatizer]
name = "none"
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("groups")
    path = folder / "small.toml"
    path.write_text(GRID + PARTS.replace("test = 40", "test = 40\ncentres = 3"))
    code, _, stderr = cohortium("run", str(path), "--out", str(folder / "out"), "--quiet")
    assert code == 0, stderr
    return folder / "out"


def table(out: Path) -> tuple[grids.Row, ...]:
    return grids.rows(grids.read(out.parent / "small.toml"), out)


def stored(out: Path, cell: str, seed: int) -> list[dict[str, Any]]:
    result = json.loads((out / cell / f"seed-{seed}" / "result.json").read_text())
    rows: list[dict[str, Any]] = result["scores"]["groups"][0]["rows"]
    return rows


def test_table_has_column_of_worst_centre(out: Path) -> None:
    text = (out / "table.md").read_text()
    assert "| worst centre |" in text
    (line, _) = csv.DictReader(io.StringIO((out / "table.csv").read_text()))
    scores = np.array(
        [[r["score"] for r in stored(out, "learning_rate=0.01", s)] for s in (1, 2, 3)]
    )
    worst = int(scores.mean(0).argmin())
    assert line["worst_centre"] == str(worst)
    assert float(line["worst_centre_mean"]) == pytest.approx(scores.mean(0)[worst])
    assert float(line["worst_centre_sd"]) == pytest.approx(scores.std(0, ddof=1)[worst])
    assert f"| {worst}: {100 * scores.mean(0)[worst]:.2f} ± " in text


def test_lines_of_runs_have_each_centre(out: Path) -> None:
    lines = list(csv.DictReader(io.StringIO((out / "runs.csv").read_text())))
    assert len(lines) == 6
    for line in lines:
        rows = stored(out, f"learning_rate={line['learning_rate']}", int(line["seed"]))
        for row in rows:
            assert float(line[f"centre {row['value']}"]) == pytest.approx(row["score"])


def test_search_has_no_column_of_centres(out: Path) -> None:
    text = (out.parent / "small.toml").read_text()
    path = out.parent / "search.toml"
    path.write_text(text.replace("[grid]", '[grid]\nimages = "validation"'))
    found = grids.rows(grids.read(path), out)
    assert found
    assert "worst" not in grids.markdown(["learning_rate"], found)


def test_comparison_has_difference_of_each_centre(out: Path) -> None:
    cells = [out / "learning_rate=0.01", out / "learning_rate=0.1"]
    (centre,) = grids.contrast(*cells).groups
    (back,) = grids.contrast(*reversed(cells)).groups
    assert [row.value for row in centre.rows] == ["0", "1", "2"]
    for k, row in enumerate(centre.rows):
        means = [
            np.mean([stored(out, cell.name, seed)[k]["score"] for seed in (1, 2, 3)])
            for cell in cells
        ]
        assert row.accuracies == pytest.approx(tuple(means))
        difference = row.difference
        assert difference.mean == pytest.approx(means[0] - means[1])
        assert difference.low <= difference.mean <= difference.high
        assert back.rows[k].difference.mean == pytest.approx(-difference.mean)
    lowest = min(centre.rows, key=lambda row: row.difference.mean)
    assert centre.lowest == lowest
    code, stdout, _ = cohortium("compare", *map(str, cells))
    assert code == 0
    assert f"lowest difference: {lowest.value}, " in stdout
    told = json.loads(cohortium("compare", *map(str, cells), "--json")[1])
    assert told["groups"][0]["lowest"] == lowest.value


def test_small_group_has_no_interval_and_is_not_lowest() -> None:
    def row(value: str, mean: float, images: int) -> GroupDifference:
        difference = grids.Difference(
            metric="accuracy", mean=mean, low=mean, high=mean, seeds=(1, 2, 3), images=images
        )
        return GroupDifference(value=value, accuracies=(0.5, 0.5 - mean), difference=difference)

    small = row("", -0.5, 9)
    found = grids.GroupDifferences(name="sex", rows=(row("f", 0.0, 10), row("m", -0.1, 10), small))
    assert found.lowest is not None
    assert found.lowest.value == "m"
    assert small.as_json()["low"] is None
    assert "not stated: 50.00% and 100.00%, accuracy: -50.00 points, no interval" in str(found)


def test_interval_of_group_has_width_of_theory() -> None:
    rng = np.random.default_rng(3)
    gains = rng.choice([-1.0, 0.0, 1.0], p=[0.05, 0.8, 0.15], size=(1, 900))
    codes = (np.arange(900) % 3 == 0).astype(np.int64)
    for code, (mean, low, high) in enumerate(bootstrap_groups(gains, codes, rng)):
        chosen = gains[0, codes == code]
        assert mean == pytest.approx(chosen.mean())
        expected = 2 * 1.96 * chosen.std() / math.sqrt(len(chosen))
        assert high - low == pytest.approx(expected, rel=0.06)


def test_model_card_has_scores_of_each_centre(out: Path, tmp_path: Path) -> None:
    folder = out / "learning_rate=0.1" / "seed-1"
    text = export.export(Classifier.open(folder), tmp_path / "model")[-1].read_text("utf-8")
    assert "By centre, with intervals at 95 %:" in text
    rows = stored(out, "learning_rate=0.1", 1)
    for row in rows:
        assert f"| {row['value']} | {row['images']} | {row['score']:.2%} |" in text
    worst = min(rows, key=lambda row: row["score"])
    assert f"**Worst centre:** {worst['value']}, {worst['score']:.2%} on" in text


def test_altered_score_of_centre_is_refused(out: Path) -> None:
    classifier = Classifier.open(out / "learning_rate=0.1" / "seed-2")
    assert len(predictions_of(classifier.folder).groupings) == 1
    assert classifier.result is not None
    assert recompute_scores(classifier)
    scores = classifier.result.scores
    assert scores is not None
    part = scores.groups[0]
    rows = (part.rows[0], attrs.evolve(part.rows[1], score=0.999), *part.rows[2:])
    scores = attrs.evolve(scores, groups=(attrs.evolve(part, rows=rows), *scores.groups[1:]))
    altered = attrs.evolve(classifier, result=attrs.evolve(classifier.result, scores=scores))
    with pytest.raises(DataError, match="are not those of the predictions"):
        recompute_scores(altered)


def test_scores_on_held_out_images_are_named_by_their_metric() -> None:
    cell = grids.Cell(place={"rate": "0.1"}, tables={}, where="the grid")
    result = ResultFile(
        data="findings", rounds=1, sites=2, dropouts=0, is_personal=True, guarantee=None,
        scores=Scores(images=20, metrics={"auc": 0.65, "accuracy": 0.9}), max_upload_bytes=100,
        seconds=Timings(train=0.5, aggregate=0.5, total=1.0), weights_sha256="", versions={},
    )  # fmt: skip
    held_out = {"personal_score": 0.7, "site_score": 0.6, "worst_site_score": 0.5}
    row = grids.Row(cell=cell, images="test", results={1: result}, held_out={1: held_out})
    (line,) = grids.figures(["rate"], [row])
    assert line["personal_score_mean"] == 0.7
    assert {"personal_accuracy_mean", "site_accuracy_mean"}.isdisjoint(line)
    grid = grids.Grid(
        name="g", axes=(), seeds=(1,), images="test", exclude=(), overrides=(), cli_overrides=(),
        base={}, written={}, where="g.toml",
    )  # fmt: skip
    assert "AUC of the sites' own models" in plot.draw(grid, [row]).decode()


@pytest.mark.parametrize(
    ("share", "told"),
    [(0.85, "most frequent class alone<"), (0.22, "(most frequent class alone: 22.0 %)<")],
)
def test_a_distant_majority_class_leaves_room_for_the_accuracies(share: float, told: str) -> None:
    rows = [
        grids.Row(
            cell=grids.Cell(place={"noise": noise}, tables={}, where="the grid"),
            images="test",
            results={1: ResultFile(
                data="cells", rounds=1, sites=2, dropouts=0, is_personal=False, guarantee=None,
                scores=Scores(images=20, metrics={"accuracy": accuracy}, majority_share=share),
                max_upload_bytes=100, weights_sha256="", versions={},
                seconds=Timings(train=0.5, aggregate=0.5, total=1.0),
            )},
        )
        for noise, accuracy in (("none", 0.96), ("local", 0.92))
    ]  # fmt: skip
    grid = grids.Grid(
        name="g", axes=(), seeds=(1,), images="test", exclude=(), overrides=(), cli_overrides=(),
        base={}, written={}, where="g.toml",
    )  # fmt: skip
    drawn = plot.draw(grid, rows).decode()
    assert told in drawn
    ticks = [float(text) for text in re.findall(r">(\d+(?:\.\d)?)</text>", drawn)]
    assert min(ticks) >= 80
