"""Whole runs with an evaluation: several labels an image, masks, and patients."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from attrs import evolve, frozen

from cohortium import parameters
from cohortium.learning.evaluation import Evaluation
from cohortium.ledger.ledger import Ledger
from cohortium.runs.evaluate import prepare_evaluation
from cohortium.runs.evaluation_forecast import forecast_evaluation
from cohortium.study.measurement import EvaluationPlan
from cohortium_cnn import CNN
from cohortium_fedavg import FedAvg
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_phantom import PhantomFields
from cohortium_secagg import SecAgg
from cohortium_unet import UNet
from tests.support.federations import QuadrantImages, tiny_federation

if TYPE_CHECKING:
    from pathlib import Path

    from cohortium import Federation
    from cohortium.data.predictions import Predictions
    from cohortium.data.splits import Splits
    from cohortium.runs.result import Result

NOISE = Gaussian(epsilon=20.0, delta=1e-3)


def fields(labels: Any, model: Any, **more: Any) -> Federation:
    return tiny_federation(
        **{
            "dataset": PhantomFields(labels=labels, examples=64, validation=0, test=8),
            "model": model,
            "trainer": FedAvg(learning_rate=0.05),
            "aggregator": SecAgg(),
            "sites": 4,
            "rounds": 1,
            "holdout_fraction": 0.5,
            "threads": 1,
            "evaluation": EvaluationPlan(),
            **more,
        }
    )


def pooled(federation: Federation, result: Result) -> Predictions:
    """The exact predictions for all test images of the sites."""
    prepared = federation.prepare()
    run_config = prepared.run_config
    held = prepared.splits.train.select(np.concatenate(prepared.holdout))
    watch = Evaluation.of(held, run_config.spec, run_config.model, "cpu")
    assert watch is not None
    net = run_config.network()
    parameters.load_state_dict(net, result.weights)
    return watch.predict(net)


def estimates(result: Result) -> dict[tuple[str, str], Any]:
    assert result.evaluation is not None
    assert result.evaluation.measured is not None
    return {(e.metric, e.name): e for e in result.evaluation.measured.estimates}


CASES = [("findings", CNN(width=4)), ("masks", UNet(width=4, depth=2))]


@pytest.mark.parametrize(("labels", "model"), CASES, ids=["multilabel", "segmentation"])
def test_run_without_noise_gives_the_exact_scores(labels: Any, model: Any) -> None:
    federation = fields(labels, model)
    result = federation.run()
    predictions, found = pooled(federation, result), estimates(result)
    exact, task = predictions.scores, predictions.task
    compared = 0
    for (metric, name), estimate in found.items():
        rows = {row.name: row.metrics for row in exact.per_class}
        known = (rows[name] if name else exact.metrics).get(metric)
        # An AUC is one of bins: of a model that has hardly learned, all outputs may be in one.
        if metric != "auc" and known is not None and estimate.value is not None:
            assert estimate.value == pytest.approx(known, abs=1e-3), (metric, name)
            compared += 1
    assert compared >= len(exact.per_class)
    values, truth = (torch.from_numpy(each) for each in (predictions.values, predictions.labels))
    for part in task.score_parts:
        sums = task.measure(part, values, truth).double().sum(0).numpy()
        for told in task.summarize(part, sums, 0.0):
            assert found[told.metric, told.name].value == pytest.approx(told.value, abs=1e-3)


@pytest.mark.parametrize(("labels", "model"), CASES, ids=["multilabel", "segmentation"])
def test_run_with_noise_has_intervals_around_the_exact_score(
    labels: Any, model: Any, tmp_path: Path
) -> None:
    part = "rates" if labels == "findings" else "dice"
    plan = EvaluationPlan(parts=(part,), privatizer=NOISE, every=1, by=("site",))
    federation = fields(labels, model, evaluation=plan, rounds=2)
    result = federation.run(tmp_path / "run")
    assert result.evaluation is not None
    assert result.evaluation.guarantee is not None
    assert result.evaluation.guarantee.epsilon <= NOISE.epsilon
    exact = pooled(federation, result).scores
    main = result.evaluation.measured_by_round[-1].estimates[0]
    known = exact.metrics[main.metric]
    assert main.value is not None
    assert known is not None
    # Four times the half-width of 95 %.
    assert abs(main.value - known) < 2 * (main.noise_high - main.noise_low)
    assert [each.trained_rounds for each in result.evaluation.measured_by_round] == [1, 2]
    groups = {each.group for each in result.evaluation.measured_by_round[0].estimates}
    assert groups >= {f"site {site}" for site in range(4)}


@frozen
class PatientImages(QuadrantImages):
    """Patients with four images each."""

    def load(self) -> Splits:
        splits = super().load()

        def of_patients(part: Any) -> Any:
            return evolve(part, patients=np.arange(len(part)) // 4)

        return evolve(splits, train=of_patients(splits.train), test=of_patients(splits.test))


def patients(**more: Any) -> Federation:
    return tiny_federation(
        **{
            "dataset": PatientImages(480),
            "sites": 4,
            "rounds": 1,
            "threads": 1,
            "holdout_fraction": 0.5,
            "insecure_seeded_secrets": True,
            "trainer": FedSGD(sampling_rate=1.0),
            "privatizer": Gaussian(epsilon=50.0, delta=1e-3, unit="patient"),
            "evaluation": EvaluationPlan(parts=("accuracy",)),
            **more,
        }
    )


def test_evaluation_of_patients_counts_one_image_of_each(tmp_path: Path) -> None:
    federation = patients()
    result = federation.run(tmp_path / "run")
    prepared = federation.prepare()
    train, held = (
        {*prepared.splits.train.patients[np.concatenate(parts)].tolist()}  # type: ignore[index]
        for parts in (prepared.partition, prepared.holdout)
    )
    assert not train & held
    assert len(held) == 60
    assert result.evaluation is not None
    measured, guarantee = result.evaluation.measured, result.evaluation.guarantee
    assert measured is not None
    assert guarantee is not None
    assert guarantee.unit == "patient"
    assert "for one patient" in str(guarantee)
    # Right and wrong together are the patients, up to the noise of two values.
    assert sum(measured.sums) == pytest.approx(len(held), abs=5 * measured.noise * 2**0.5)
    # 60 images, and not 240, are in the interval for sampling.
    accuracy = measured.estimates[0]
    assert accuracy.value is not None
    exact = 1.96 * np.sqrt(accuracy.value * (1 - accuracy.value) / len(held))
    assert (accuracy.high - accuracy.low) / 2 == pytest.approx(exact, rel=0.15)
    with Ledger(tmp_path / "run" / "evaluation" / "ledger.sqlite").read_transaction() as book:
        for site in range(4):
            charges = book.charge_counts(f"site {site}, test images")
            assert [(cost.unit, n) for cost, n in charges.items()] == [("patient", 1)]
    record = json.loads((tmp_path / "run" / "evaluation" / "result.json").read_text())
    assert record["guarantee"]["unit"] == "patient"


def test_noise_of_patients_is_as_large_as_the_result_says() -> None:
    federation = patients(privatizer=Gaussian(epsilon=2.0, delta=1e-3, unit="patient"))
    result = evolve(federation, evaluation=EvaluationPlan(parts=("auc",))).run()
    assert result.evaluation is not None
    measured = result.evaluation.measured
    assert measured is not None
    # Most bins of an AUC are empty after one round, so their values are noise alone.
    middle = np.median(np.abs(measured.sums)) / 0.6745
    assert middle == pytest.approx(measured.noise, rel=0.4)


def test_forecast_of_patients_is_for_one_image_of_each() -> None:
    federation = patients()
    assert federation.evaluation is not None
    forecast = forecast_evaluation(prepare_evaluation(federation, federation.evaluation))
    assert (forecast.examples, forecast.rows) == (240, 60)
    result = federation.run()
    assert result.evaluation is not None
    assert result.evaluation.measured is not None
    told = result.evaluation.measured.estimates[0]
    half = (told.high - told.low) / 2
    assert forecast.intervals[0].both == pytest.approx(half, rel=0.3)
