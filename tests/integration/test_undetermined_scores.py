"""Runs whose images do not determine the main metric, at some sites or at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from attrs import frozen

from cohortium import reporting
from cohortium.data.examples import Examples
from cohortium.data.splits import Splits
from cohortium_multilabel import Multilabel
from tests.support.federations import tiny_federation


@frozen
class Findings:
    """Grey images with a bright half as the only finding, which a number of them have."""

    positives: int
    tested: int = 4
    examples: int = 40

    def load(self) -> Splits:
        def part(count: int, positives: int) -> Examples:
            rng = np.random.default_rng(0)
            labels = (np.arange(count) < positives).astype(np.int8)[:, None]
            images = rng.integers(0, 120, (count, 1, 8, 8))
            images[:, :, :4] += 100 * labels[:, :, None, None]
            return Examples(images.astype(np.uint8), labels)

        task = Multilabel(("opacity",))
        return Splits(
            name="findings",
            task=task,
            train=part(self.examples, self.positives),
            test=part(8, self.tested),
        )


def test_site_without_positives_ends_no_run(tmp_path: Path) -> None:
    """No AUC is determined by images that all lack the finding."""
    study = tiny_federation(
        dataset=Findings(positives=8), partitioner="quantity", sites=4, rounds=1,
        holdout_fraction=0.25,
    )  # fmt: skip
    result = study.run(tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "simulation" / "holdout_scores.json").read_text())
    assert result.own is not None
    assert result.own.sites == len(rows) < 4
    assert result.own.images == sum(row["images"] for row in rows)
    assert all(0 <= row["score"] <= 1 for row in rows)
    assert "held out" in reporting.render([reporting.read(tmp_path / "run")])


def test_test_images_without_positives_leave_the_metric_out(tmp_path: Path) -> None:
    study = tiny_federation(dataset=Findings(positives=8, tested=0), sites=2, rounds=1)
    result = study.run(tmp_path / "run")
    assert result.scores is not None
    assert result.scores.metrics["auc"] is None
    page = reporting.render([reporting.read(tmp_path / "run")])
    assert "nan" not in page.lower().split("<script")[0]
