"""Evaluation at simulated sites: exact sums, noised sums, dropouts, interruptions, refusals."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import pytest
import tomli_w
import torch
from attrs import frozen
from torch import nn

from cohortium import Federation, parameters
from cohortium.auditing.transcript import audit_secrets, audit_transcript
from cohortium.data.examples import Examples
from cohortium.data.groups import GroupColumn
from cohortium.data.splits import Splits
from cohortium.errors import DataError, RequestError, StoppedError, StudyError
from cohortium.learning.evaluation import Evaluation
from cohortium.ledger.ledger import Ledger
from cohortium.plugin import Multiclass
from cohortium.runs.evaluate import prepare_evaluation
from cohortium.runs.evaluation_forecast import forecast_evaluation
from cohortium.study import toml
from cohortium.study.evaluation_study import evaluation_study
from cohortium.study.measurement import EvaluationPlan, Measurement
from cohortium_cnn import CNN
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_module import Module
from cohortium_natural import Natural
from cohortium_none import NoPrivacy
from cohortium_plain import Plain
from cohortium_secagg import SecAgg
from cohortium_skellam import Skellam
from cohortium_standardized import Standardized
from tests.support.federations import FaultyEngine, QuadrantImages, tiny_federation

if TYPE_CHECKING:
    from pathlib import Path

    from cohortium.data.examples import DataSpec
    from cohortium.runs.result import Result

EVALUATION = EvaluationPlan(by=("site",))


def study(**more: Any) -> Federation:
    return tiny_federation(
        **{
            "sites": 5,
            "rounds": 1,
            "holdout_fraction": 0.4,
            "evaluation": EVALUATION,
            "trainer": FedSGD(sampling_rate=1.0),
            **more,
        }
    )


def measured(result: Result) -> Any:
    assert result.evaluation is not None
    assert result.evaluation.measured is not None
    return result.evaluation.measured


def exact_scores(federation: Federation, result: Result, sites: Any = None) -> Any:
    """Return the scores on all held-out images of some sites together."""
    prepared = federation.prepare()
    run_config = prepared.run_config
    chosen = range(len(prepared.holdout)) if sites is None else sites
    held = np.concatenate([prepared.holdout[site] for site in chosen])
    watch = Evaluation.of(
        prepared.splits.train.select(held), run_config.spec, run_config.model, "cpu"
    )
    assert watch is not None
    net = run_config.network()
    parameters.load_state_dict(net, result.weights)
    return watch.score(net)


@pytest.mark.parametrize("aggregator", [Plain(), SecAgg()], ids=["plain", "secagg"])
def test_without_noise_the_sum_gives_the_exact_pooled_scores(aggregator: Any) -> None:
    federation = study(aggregator=aggregator)
    result = federation.run()
    exact = exact_scores(federation, result)
    found = {(e.metric, e.name): e for e in measured(result).estimates if not e.group}
    assert found["accuracy", ""].value == pytest.approx(exact.metrics["accuracy"], abs=1e-4)
    assert found["balanced_accuracy", ""].value == pytest.approx(
        exact.metrics["balanced_accuracy"], abs=1e-4
    )
    for row in exact.per_class:
        for metric in ("sensitivity", "specificity"):
            assert found[metric, row.name].value == pytest.approx(row.metrics[metric], abs=1e-4)
    assert measured(result).noise == 0
    assert result.evaluation is not None
    assert result.evaluation.weights_sha256 == result.weights_sha256


def test_plain_and_secagg_give_the_same_bits() -> None:
    noise = Gaussian(epsilon=3.0, delta=1e-4)
    sums = [
        measured(
            study(aggregator=aggregator, privatizer=noise, insecure_seeded_secrets=True).run()
        ).sums
        for aggregator in (Plain(), SecAgg())
    ]
    assert sums[0] == sums[1]


@pytest.mark.parametrize("noise", ["local", "distributed"])
def test_noise_is_as_large_as_the_result_says(noise: Any) -> None:
    federation = study(
        privatizer=Gaussian(epsilon=4.0, delta=1e-4, noise=noise, clip_norm=3.0),
        aggregator=SecAgg(), min_contributors=4, max_colluding=1,
    )  # fmt: skip
    exact = np.array(measured(attrs.evolve(federation, privatizer=NoPrivacy()).run()).sums)
    # A run without privacy trains other weights, so the noise shows where every score is known:
    # in cells of the bins of an AUC that no example is in, most of which are the same.
    found = measured(federation.run())
    quiet = np.array([abs(e) < 0.5 for e in exact]) & np.array(
        [cell.startswith("auc") for cell in found.cells]
    )
    spread = np.array(found.sums)[quiet].std()
    assert quiet.sum() > 20
    assert 0.3 * found.noise < spread < 3 * found.noise


def test_skellam_noise_can_be_used() -> None:
    federation = study(
        evaluation=EvaluationPlan(
            parts=("accuracy",), privatizer=Skellam(epsilon=8.0, delta=1e-4, noise="local")
        )
    )
    (estimate, *_) = measured(federation.run()).estimates
    assert estimate.low <= estimate.high


def test_a_lost_site_leaves_the_score_of_the_others() -> None:
    def lose_site_2(exchange: int, site: int, reply: bytes) -> bytes | None:
        return None if site == 2 and exchange > 0 else reply

    federation = study(aggregator=Plain(), min_contributors=3, engine=FaultyEngine(lose_site_2))
    result = federation.run()
    assert measured(result).contributors in (4, 5)
    evaluation = federation.evaluation
    assert evaluation is not None
    losing = attrs.evolve(
        federation, engine=FaultyEngine(lambda _, site, reply: None if site == 2 else reply)
    )
    again = losing.run()
    exact = exact_scores(losing, again, sites=(0, 1, 3, 4))
    assert measured(again).contributors == 4
    assert measured(again).estimates[0].value == pytest.approx(exact.main, abs=1e-4)


def test_natural_centres_are_scored_on_their_test_images() -> None:
    federation = study(
        dataset=QuadrantImages(), partitioner=Natural(), sites=4, holdout_fraction=0.0
    )
    result = federation.run()
    assert result.scores is not None
    assert measured(result).examples == result.scores.images
    assert measured(result).estimates[0].value == pytest.approx(result.scores.main, abs=1e-4)


def test_an_evaluation_is_charged_to_the_test_images(tmp_path: Path) -> None:
    federation = study(privatizer=Gaussian(epsilon=3.0, delta=1e-4), evaluation=EvaluationPlan())
    federation.run(tmp_path / "run")
    ledger = Ledger(tmp_path / "run" / "evaluation" / "ledger.sqlite")
    with ledger.read_transaction() as book:
        counts = book.charge_counts("site 0, test images")
    assert sum(counts.values()) == 1
    record = json.loads((tmp_path / "run" / "evaluation" / "result.json").read_text())
    assert record["guarantee"]["epsilon"] <= 3.0
    assert record["scores"] is None
    assert record["measured"]["estimates"][0]["metric"] == "accuracy"


def test_a_stopped_evaluation_continues_and_is_charged_for_each_attempt(tmp_path: Path) -> None:
    class Cut(Exception):  # noqa: N818 - a broken connection
        pass

    def cut(exchange: int, site: int, reply: bytes) -> bytes | None:
        del exchange
        if site == 4:
            raise Cut
        return reply

    private = {"privatizer": Gaussian(epsilon=3.0, delta=1e-4)}
    run = tmp_path / "run"
    plain = study(**private, evaluation=None)
    trained = plain.run(run)
    evaluation = EvaluationPlan(retries=1)
    with pytest.raises(Cut):
        plain.evaluate(run, evaluation, engine=FaultyEngine(cut))
    result = plain.evaluate(run, evaluation)
    assert result.measured is not None
    assert result.weights_sha256 == trained.weights_sha256
    with Ledger(run / "evaluation" / "ledger.sqlite").read_transaction() as book:
        charged = Counter(
            {site: sum(book.charge_counts(f"site {site}, test images").values()) for site in (0, 4)}
        )
    # The first attempt was lost after every site had answered, and counts.
    assert charged == {0: 2, 4: 2}
    assert result.guarantee is not None
    assert result.guarantee.epsilon <= 3.0
    with pytest.raises(RequestError, match="is finished"):
        plain.evaluate(run, evaluation)


def test_a_run_that_was_stopped_is_evaluated_after_it_is_resumed(tmp_path: Path) -> None:
    federation = study(rounds=2)
    asked = iter(range(100))
    with pytest.raises(StoppedError):
        federation.run(tmp_path / "run", stop=lambda: next(asked) >= 1)
    result = federation.resume(tmp_path / "run")
    assert measured(result).estimates


def test_resume_continues_an_evaluation_that_alone_was_interrupted(tmp_path: Path) -> None:
    federation = study()
    # The training is one attempt, and the evaluation is stopped before its own.
    asked = iter(range(100))
    with pytest.raises(StoppedError):
        federation.run(tmp_path / "run", stop=lambda: next(asked) >= 1)
    result = federation.resume(tmp_path / "run")
    assert result.measured is not None
    with pytest.raises(RequestError, match="is finished"):
        federation.resume(tmp_path / "run")


def test_a_model_of_another_run_can_be_evaluated(tmp_path: Path) -> None:
    first = study(evaluation=None).run(tmp_path / "first")
    other = study(seed=7, evaluation=None)
    result = other.evaluate(tmp_path / "first", EvaluationPlan(), out=tmp_path / "elsewhere")
    assert result.weights_sha256 == first.weights_sha256


class HalfFrozenNet(nn.Module):
    """A frozen layer, drawn from the seed of the study, under a trained one."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.frozen = nn.Linear(channels * 64, 5).requires_grad_(requires_grad=False)
        self.head = nn.Linear(5, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.head(self.frozen(images.flatten(1)))
        return outputs


FROZEN = f"{__name__}:HalfFrozenNet"


@frozen
class PlainModel:
    """A model that no plugin offers, so that a study file cannot name it."""

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return HalfFrozenNet(spec.channels, len(spec.classes))


@frozen
class OtherOrder:
    """The same images, with the classes in another order."""

    def load(self) -> Splits:
        return attrs.evolve(QuadrantImages().load(), task=Multiclass(("b", "a", "c", "d")))


@pytest.mark.parametrize(
    ("trained", "more", "words"),
    [
        ({}, {"dataset": OtherOrder()}, "their classes are b, a, c, d, not a, b, c, d"),
        (
            {"model": Standardized(mean=(0.5,), deviation=(0.2,), model=CNN())},
            {"model": Standardized(mean=(0.1,), deviation=(0.2,), model=CNN())},
            r"model.mean is \[0.1\] in the study and \[0.5\] in the run",
        ),
        ({}, {"model": CNN(width=4)}, "model.width is 4 in the study and 16 in the run"),
        (
            {"model": Module(module=FROZEN)},
            {"model": Module(module=FROZEN), "seed": 7},
            "another frozen parameter frozen.weight .*; give .federation. the seed of the run",
        ),
    ],
    ids=["classes", "preparation", "network", "seed"],
)
def test_weights_are_evaluated_by_their_own_model(
    trained: Any, more: Any, words: str, tmp_path: Path
) -> None:
    study(evaluation=None, **trained).run(tmp_path / "first")
    other = study(evaluation=None, **{**trained, **more})
    with pytest.raises(StudyError, match=words):
        other.evaluate(tmp_path / "first", EvaluationPlan(), out=tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_run_whose_study_has_no_table_of_the_model_is_refused(tmp_path: Path) -> None:
    federation = study(evaluation=None)
    federation.run(tmp_path / "first")
    path = tmp_path / "first" / "study.toml"
    tables = toml.read(path, what="the study") | {"model": 3}
    path.write_text(tomli_w.dumps(tables))
    with pytest.raises(StudyError, match="model must be a table"):
        federation.evaluate(tmp_path / "first", EvaluationPlan(), out=tmp_path / "elsewhere")


def test_weights_of_a_class_without_plugin_are_evaluated(tmp_path: Path) -> None:
    federation = study(model=PlainModel(), evaluation=None)
    first = federation.run(tmp_path / "first")
    result = federation.evaluate(tmp_path / "first", EvaluationPlan(), out=tmp_path / "scores")
    assert result.weights_sha256 == first.weights_sha256


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"holdout_fraction": 0.0}, "use partitioner .natural., or set"),
        ({"evaluation": EvaluationPlan(parts=("nothing",))}, "no part 'nothing'"),
        ({"evaluation": EvaluationPlan(by=("age",))}, "no column of groups 'age'"),
        ({"evaluation": EvaluationPlan(epsilon=1.0)}, "no such parameter"),
        (
            {"evaluation": EvaluationPlan(epsilon=-1.0), "privatizer": Gaussian()},
            "the evaluation: 'epsilon' must be > 0",
        ),
        ({"evaluation": EvaluationPlan(examples=9)}, "for a deployment"),
        ({"privatizer": Gaussian(unit="site")}, "hides whole sites"),
    ],
)
def test_a_bad_evaluation_is_refused_before_training(more: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=words):
        study(**more).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("measured", [None, EVALUATION], ids=["holdout", "evaluation"])
def test_sites_too_small_to_hold_images_out_are_refused(measured: Any, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"holdout_fraction = 0.04 holds no .* few images"):
        study(
            dataset=QuadrantImages(100), holdout_fraction=0.04, evaluation=measured
        ).run(tmp_path / "run")  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_study_file_keeps_its_evaluation() -> None:
    federation = study(
        evaluation=EvaluationPlan(
            epsilon=1.0, delta=1e-5, by=("site",), privatizer=Gaussian(noise="distributed")
        )
    )
    from cohortium.study import study_file, toml

    tables = toml.loads(federation.as_toml(), where="study")
    del tables["dataset"]
    tables["dataset"] = {"name": "phantom"}
    again = study_file.build(tables, into=Federation)
    assert again.evaluation == federation.evaluation


def test_facts_about_images_can_be_measured() -> None:
    federation = study(
        evaluation=None, measurement=Measurement(of="images", data="train"), holdout_fraction=0.0
    )
    found = federation.run().measured
    assert found is not None
    estimates = {(e.metric, e.name): e.value for e in found.estimates}
    images = federation.prepare().splits.train.images / 255
    assert estimates["mean", "0"] == pytest.approx(images.mean(), abs=1e-3)
    assert estimates["deviation", "0"] == pytest.approx(images.std(), abs=1e-3)
    assert estimates["images", ""] == pytest.approx(len(images), rel=1e-3)


def test_the_transcript_of_an_evaluation_holds_its_noised_sum_alone() -> None:
    federation = study(privatizer=Gaussian(epsilon=3.0, delta=1e-4), min_contributors=2)
    prepared = evaluation_study(federation, EVALUATION).prepare()
    for audit in (audit_transcript, audit_secrets):
        finding = audit(prepared)
        assert not finding.is_refuted, finding.observation


def test_a_forecast_says_how_wide_intervals_will_be() -> None:
    federation = study(privatizer=Gaussian(epsilon=3.0, delta=1e-4), dataset=QuadrantImages(600))
    prepared = prepare_evaluation(federation, EVALUATION)
    forecast = forecast_evaluation(prepared)
    accuracy = forecast.intervals[0]
    (told,) = [e for e in measured(federation.run()).estimates if e.metric == "accuracy"][:1]
    assert accuracy.noise == pytest.approx((told.noise_high - told.noise_low) / 2, rel=0.5)
    assert forecast.smallest_group is not None
    assert 1 < forecast.smallest_group < forecast.examples
    assert any(each.group == "site 4" for each in forecast.intervals)
    dear = attrs.evolve(
        federation, evaluation=EvaluationPlan(epsilon=0.01), privatizer=Gaussian(delta=1e-4)
    )
    assert dear.evaluation is not None
    assert forecast_evaluation(prepare_evaluation(dear, dear.evaluation)).smallest_group is None


@frozen
class GroupedImages(QuadrantImages):
    """Images of two groups, and some without one."""

    def load(self) -> Splits:
        splits = super().load()

        def grouped(part: Examples | None) -> Examples | None:
            if part is None:
                return None
            codes = np.random.default_rng(0).integers(-1, 2, (len(part), 1))
            return attrs.evolve(part, groups=codes)

        train = grouped(splits.train)
        assert train is not None
        return attrs.evolve(
            splits,
            train=train,
            validation=grouped(splits.validation),
            test=grouped(splits.test),
            groups=(GroupColumn("sex", ("female", "male")),),
        )


def test_groups_are_scored_where_the_data_name_them() -> None:
    federation = study(
        dataset=GroupedImages(480), evaluation=EvaluationPlan(parts=("accuracy",), by=("sex",))
    )
    result = federation.run()
    prepared = federation.prepare()
    held = prepared.splits.train.select(np.concatenate(prepared.holdout))
    assert held.groups is not None
    found = {e.group: e.value for e in measured(result).estimates if e.group}
    for code, name in enumerate(("female", "male")):
        chosen = held.select(np.flatnonzero(held.groups[:, 0] == code))
        watch = Evaluation.of(chosen, prepared.run_config.spec, prepared.run_config.model, "cpu")
        assert watch is not None
        net = prepared.run_config.network()
        parameters.load_state_dict(net, result.weights)
        assert found[f"sex: {name}"] == pytest.approx(watch.score(net).main, abs=1e-4)


@frozen
class ImagesWithSites(GroupedImages):
    """The same images, whose groups have the name that stands for the hospitals."""

    def load(self) -> Splits:
        return attrs.evolve(super().load(), groups=(GroupColumn("site", ("north", "south")),))


def test_groups_called_like_the_hospitals_are_refused() -> None:
    with pytest.raises(StudyError, match=r"a column of groups 'site', .*; rename the column"):
        prepare_evaluation(study(dataset=ImagesWithSites(480)), EVALUATION)


def test_declared_groups_of_a_deployment_are_those_of_the_data() -> None:
    splits = GroupedImages().load()
    spec = attrs.evolve(splits.spec, groups=(GroupColumn("sex", ("male", "female")),))
    with pytest.raises(DataError, match="no column of groups 'sex' with the values male, female"):
        spec.group_codes(splits.train, splits.groups)
    same = attrs.evolve(splits.spec, groups=splits.groups)
    assert same.group_codes(splits.train, splits.groups).groups is not None


@frozen
class Doubled:
    """Each image occurs twice, as in a public set that nobody has looked through."""

    def load(self) -> Splits:
        splits = QuadrantImages().load()
        images = splits.train.images.copy()
        images[1::2] = images[::2]
        return attrs.evolve(splits, train=attrs.evolve(splits.train, images=images))


def test_test_images_that_were_trained_on_are_named(tmp_path: Path) -> None:
    study(dataset=Doubled()).run(tmp_path / "run")
    lines = (tmp_path / "run" / "evaluation" / "events.jsonl").read_text().splitlines()
    warnings = " ".join(json.loads(lines[0])["warnings"])
    assert "test images are training images too; for these, the guarantees" in warnings
    study().run(tmp_path / "other")
    lines = (tmp_path / "other" / "evaluation" / "events.jsonl").read_text().splitlines()
    assert not any("training images too" in each for each in json.loads(lines[0])["warnings"])
