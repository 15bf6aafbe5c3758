"""Statistics of images before training, and a study that uses them."""

from __future__ import annotations

import pickle
import tomllib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tomli_w
import torch

from cohortium.errors import CohortiumError, PrivacyError, StudyError
from cohortium.plugin import accounting
from cohortium.study.evaluation_study import statistics_study
from cohortium.study.measurement import PriorRelease
from cohortium_cnn import CNN
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_standardized import Standardized
from tests.support.command_line import cohortium
from tests.support.federations import QuadrantImages, tiny_federation
from tests.support.round_plans import first_round

if TYPE_CHECKING:
    from pathlib import Path

PRIVATE: dict[str, Any] = {
    "dataset": QuadrantImages(2000),
    "trainer": FedSGD(sampling_rate=1.0),
    "privatizer": Gaussian(epsilon=3.0, delta=1e-4, clip_norm=5.0),
    "rounds": 2,
}


def test_released_values_are_close_to_those_of_all_images() -> None:
    federation = tiny_federation(**PRIVATE, insecure_seeded_secrets=True)
    result = statistics_study(federation, 2.0, 1e-5).run()
    assert result.guarantee is not None
    assert result.guarantee.epsilon <= 2.0
    assert result.measured is not None
    images = federation.prepare().splits.train.images / 255
    exact = {"mean": images.mean(), "deviation": images.std()}
    for each in result.measured.estimates:
        if each.metric in exact:
            assert each.noise_low <= exact[each.metric] <= each.noise_high


def test_the_guarantee_of_a_study_covers_the_releases_before_it() -> None:
    prior = PriorRelease(noise_multiplier=4.0)
    alone, both = (
        tiny_federation(**PRIVATE, prior=p).prepare().run_config.plan for p in (None, prior)
    )
    assert first_round(alone).mechanism is not None
    (spent,) = accounting.compose([(first_round(alone).mechanism, 2), (prior.mechanism, 1)], 1e-4)
    assert both.guarantee is not None
    assert alone.guarantee is not None
    assert both.guarantee.epsilon == pytest.approx(spent.epsilon)
    assert both.guarantee.epsilon > alone.guarantee.epsilon
    assert any("[prior]" in sentence for sentence in both.guarantee.assumptions)
    assert first_round(both).mechanism == first_round(alone).mechanism
    # An engine may send the plan to another process.
    assert pickle.loads(pickle.dumps(both)).guarantee == both.guarantee


def test_a_release_of_another_kind_is_refused() -> None:
    with pytest.raises(PrivacyError, match="release the statistics with the privatizer"):
        tiny_federation(
            **PRIVATE, prior=PriorRelease(noise_multiplier=4.0, against="coordinator")
        ).prepare()


def test_a_standardized_image_has_half_the_range_as_its_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    images = 0.3 + 0.1 * torch.randn((50, 2, 8, 8), generator=generator).clamp(-2.9, 2.9)
    inner = CNN(width=4)
    model = Standardized(mean=(0.3,), deviation=(0.1,), model=inner)
    found = model.preprocess(images)
    scaled = (found + 1) / 2  # as the inner model moves [0, 1] to [-1, 1]
    assert float(scaled.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(scaled.std()) == pytest.approx(1 / 6, abs=0.01)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"mean": (0.5, 0.5), "deviation": (0.1,)}, StudyError),
        ({"mean": (1.5,), "deviation": (0.1,)}, ValueError),
        ({"mean": (0.5,), "deviation": (0.0,)}, ValueError),
    ],
)
def test_impossible_values_are_refused(values: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Standardized(model=CNN(), **values)


def test_means_of_other_channels_are_refused() -> None:
    model = Standardized(mean=(0.5, 0.4), deviation=(0.1, 0.1), model=CNN())
    with pytest.raises(CohortiumError, match="means of 2 channels"):
        tiny_federation(model=model).prepare()


@pytest.mark.slow
def test_the_command_prints_tables_that_a_study_can_use(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text(
        "[federation]\nsites = 4\nrounds = 2\n"
        '[dataset]\nname = "phantom"\nexamples = 2000\nvalidation = 0\ntest = 40\n'
        "[trainer]\nsampling_rate = 1.0\n[privatizer]\nepsilon = 4.0\n"
    )
    _, printed, _ = cohortium(
        "statistics", str(study), "--epsilon", "2", "--out", str(tmp_path / "facts")
    )
    tables = tomllib.loads(printed[printed.index("[model]") :])
    assert len(tables["model"]["mean"]) == 3
    tables["model"]["model"] = {"name": "cnn", "width": 4}
    study.write_text(study.read_text() + tomli_w.dumps(tables))
    _, planned, _ = cohortium("plan", str(study))
    epsilon = float(next(line.split()[-1] for line in planned.splitlines() if "whole run" in line))
    assert 4.0 < epsilon < 6.0
    assert np.isfinite(tables["prior"]["noise_multiplier"])


@pytest.mark.parametrize(
    ("privatizer", "words"),
    [("none", "no such parameter"), (Gaussian(unit="site"), "hides whole sites")],
)
def test_statistics_name_the_way_to_another_privatizer(privatizer: Any, words: str) -> None:
    with pytest.raises(StudyError, match=f"the statistics: .*{words}; .*--set privatizer.name"):
        statistics_study(tiny_federation(privatizer=privatizer), 2.0, 1e-5)
