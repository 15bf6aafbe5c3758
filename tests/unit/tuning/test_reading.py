"""A study file with a search: its studies, and the model that they share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cohortium import tuning
from cohortium.learning.whitening import FeatureWhitening

STUDY = """
[tune]
score = "public"
"trainer.learning_rate" = [0.05, 0.4]
"model.norm" = [70.0, 7.0]

[dataset]
name = "phantom"
examples = 90

[model]
name = "descriptor"
bins = 2
edge_bins = 2

[model.center_on]
name = "phantom"
examples = 16
validation = 0
test = 0

[trainer]
name = "fedsgd"
sampling_rate = 1.0
"""


def test_candidates_with_equal_models_compute_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study.toml").write_text(STUDY, "utf-8")
    federation, search = tuning.read(tmp_path / "study.toml")
    computed: list[object] = []
    whiten = FeatureWhitening.of

    def counted(*arguments: object, **named: object) -> object:
        computed.append(arguments)
        return whiten(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(FeatureWhitening, "of", counted)
    for study in (federation, *search.studies.values()):
        study.model.preprocess(torch.rand(2, 3, 28, 28))
    assert len(search.studies) == 4
    assert len(computed) == 2, "one for each norm"
    norms = {name: getattr(study.model, "norm", 0) for name, study in search.studies.items()}
    assert all(f"norm={norm:g}" in name for name, norm in norms.items())
