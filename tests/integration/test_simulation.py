from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve, frozen
from torch import nn

from cohortium import Federation
from cohortium.errors import CohortiumError, PrivacyError, RequestError, RunError, StudyError
from cohortium.plugin import DataSpec, FederationSpec, LocalResult, LocalTask, SitePrivatizer
from cohortium.roles.events import AttemptFailed, RoundCompleted, SiteFailed, SiteReplied
from cohortium_fedavg import FedAvg, FedProx
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_phantom import Phantom
from cohortium_secagg import SecAgg
from tests.support.federations import (
    FaultyEngine,
    QuadrantImages,
    RecordingObserver,
    tiny_federation,
)


@frozen
class Norm:
    """A network with BatchNorm."""

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(spec.channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                nn.Linear(144, len(spec.classes)),
            )  # fmt: skip


def test_fedavg_reaches_accuracy() -> None:
    result = tiny_federation(rounds=6).run()
    assert result.accuracy is not None
    assert result.accuracy > 0.9
    assert result.guarantee is None
    assert [event.round for event in result.history] == list(range(6))


def test_the_history_is_a_tidy_table() -> None:
    pandas = pytest.importorskip("pandas")
    result = tiny_federation(privatizer=Gaussian(unit="site"), rounds=3, evaluate_every=2).run()
    table = pandas.DataFrame(result.history.rows())
    assert list(table["round"]) == [1, 2, 3]
    assert list(table["attempt"]) == [event.attempt for event in result.history]
    assert table["accuracy"].isna().tolist() == [True, False, False]
    assert table["epsilon"].is_monotonic_increasing
    assert result.history[1].scores is not None
    assert table["auc"][1] == result.history[1].scores.metrics["auc"]
    assert (table["contributors"] == 6).all()
    assert result.history._repr_html_().count("<tr>") == 4
    head, *lines = str(result.history).splitlines()
    assert head.split() == list(table)
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert len({len(line) for line in (head, *lines)}) == 1
    assert f"{result.accuracy:.2%}" in result._repr_html_()


def test_each_exchange_is_counted() -> None:
    def tamper(count: int, site: int, reply: bytes) -> bytes | None:
        return None if (count, site) in ((1, 4), (3, 2)) else reply

    engine = FaultyEngine(tamper)
    result = tiny_federation(
        aggregator=SecAgg(reconstruction_threshold=3), engine=engine, rounds=1
    ).run()
    keys, shares, vectors, unmasking = result.history[0].stages
    assert [keys.name, shares.name, vectors.name, unmasking.name] == [
        "keys", "shares", "vectors", "unmasking",
    ]  # fmt: skip
    assert (keys.num_asked, keys.dropped, shares.num_asked, shares.dropped) == (6, (), 6, (4,))
    assert (vectors.num_asked, vectors.dropped, unmasking.num_asked, unmasking.dropped) == (
        5,
        (),
        5,
        (2,),
    )
    assert result.history[0].dropped == (4,)
    sent = [
        len(broadcast) * len(each) + sum(map(len, each.values())) for broadcast, each in engine.log
    ]
    assert [stage.download_bytes for stage in result.history[0].stages] == sent
    assert vectors.upload_bytes > keys.upload_bytes > 0
    trained = sum(stage.seconds for stage in result.history[0].stages)
    assert trained == pytest.approx(result.seconds.train)


@pytest.mark.parametrize(
    "trainer",
    [
        FedAvg(),
        *(
            pytest.param(trainer, marks=pytest.mark.slow)
            for trainer in (FedProx(mu=0.1), FedSGD(), FedAvg(local_steps=2))
        ),
    ],
)
def test_plain_and_secagg_runs_give_same_bits(trainer: object) -> None:
    hashes = {
        tiny_federation(trainer=trainer, aggregator=aggregator).run().weights_sha256
        for aggregator in (
            "plain",
            SecAgg(),
            SecAgg(reconstruction_threshold=5, num_shares=6),
            "plain",
        )
    }
    assert len(hashes) == 1


@pytest.mark.slow
def test_seeded_noise_repeats_and_real_noise_does_not() -> None:
    def weights(*, seeded: bool) -> str:
        return (
            tiny_federation(
                privatizer=Gaussian(epsilon=50.0),
                trainer=FedSGD(),
                insecure_seeded_secrets=seeded,
                rounds=1,
            )
            .run()
            .weights_sha256
        )

    assert weights(seeded=True) == weights(seeded=True)
    assert weights(seeded=False) != weights(seeded=False)


def test_fedsgd_equals_hand_written_loop() -> None:
    result = tiny_federation(
        trainer=FedSGD(sampling_rate=1.0, optimizer_options={}), rounds=3
    ).run()
    ready = tiny_federation(rounds=3).prepare()
    net = ready.run_config.network()
    images = torch.from_numpy(ready.splits.train.images).float() / 255
    labels = torch.from_numpy(ready.splits.train.labels)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    for number in range(3):
        optimizer.param_groups[0]["lr"] = 0.06 * (1 - number / 3)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net((images - 0.5) / 0.5), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for name, weight in net.named_parameters():
        assert torch.allclose(result.weights[name], weight, atol=2e-5), name


def test_site_updates_are_weighted_by_examples() -> None:
    skewed = tiny_federation(
        partitioner="quantity", trainer=FedSGD(sampling_rate=1.0), rounds=1
    ).run()
    even = tiny_federation(trainer=FedSGD(sampling_rate=1.0), rounds=1).run()
    for name, weight in even.weights.items():
        assert torch.allclose(skewed.weights[name], weight, atol=1e-5), name


def test_batch_statistics_are_aggregated_but_not_counters() -> None:
    result = tiny_federation(model=Norm(), rounds=3).run()
    assert float(result.weights["1.running_var"].sub(1).abs().max()) > 0.1
    assert "1.num_batches_tracked" not in result.weights
    sgd = tiny_federation(model=Norm(), trainer=FedSGD(), rounds=3).run()
    assert float(sgd.weights["1.running_mean"].abs().max()) > 0.01


def test_batch_norm_under_example_privacy_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"BatchNorm2d.*use GroupNorm"):
        tiny_federation(model=Norm(), privatizer=Gaussian()).run()
    tiny_federation(model=Norm(), privatizer=Gaussian(unit="site")).prepare()


@pytest.mark.parametrize(
    "site", [pytest.param(k, marks=[] if k == 2 else [pytest.mark.slow]) for k in range(6)]
)
@pytest.mark.parametrize(
    ("round_", "stage", "stages"), [*((0, k, 4) for k in range(4)), *((1, k, 2) for k in range(2))]
)
def test_dropout_at_any_stage_keeps_sum_exact(
    round_: int, stage: int, stages: int, site: int
) -> None:
    exchange = 4 * round_ + stage
    engine = FaultyEngine(lambda count, k, reply: None if (count, k) == (exchange, site) else reply)
    result = tiny_federation(aggregator=SecAgg(), engine=engine, evaluate_every=0).run()
    # A site lost while unmasking has contributed already.
    lost = site if stage < stages - 1 else None
    assert len(result.history[round_].stages) == stages
    assert result.history[round_].contributors == tuple(k for k in range(6) if k != lost)
    assert result.history[1 - round_].contributors == tuple(range(6))
    plain = FaultyEngine(lambda count, k, reply: None if (count, k) == (round_, lost) else reply)
    assert (
        result.weights_sha256
        == tiny_federation(engine=plain, evaluate_every=0).run().weights_sha256
    )


@pytest.mark.parametrize("stage", range(4))
def test_one_dropout_too_many_is_a_clear_failure(tmp_path: Path, stage: int) -> None:
    engine = FaultyEngine(lambda count, k, reply: None if count >= stage and k < 3 else reply)
    with pytest.raises(RunError, match="round 1 failed: ") as error:
        tiny_federation(aggregator=SecAgg(), engine=engine).run(tmp_path / "run")
    assert error.value.exit_code == 1
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "weights" / "last.safetensors").exists()


def test_failed_attempt_is_retried_and_charged() -> None:
    engine = FaultyEngine(lambda count, k, reply: None if count == 0 and k < 5 else reply)
    recorder = RecordingObserver()
    result = tiny_federation(
        engine=engine, retries=2, min_contributors=3, privatizer=Gaussian(unit="site")
    ).run(observers=[recorder])
    assert [event.attempt for event in recorder.of(AttemptFailed)] == [0]
    assert [event.attempt for event in result.history] == [1, 2]
    spent = [event.guarantee_so_far.epsilon for event in recorder.of(RoundCompleted)]
    assert spent == sorted(spent)
    assert spent[-1] < 6 <= result.guarantee.epsilon * 1.01  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "change",
    [
        lambda reply: b"",
        lambda reply: reply[:-1],
        lambda reply: reply + b"\x00",
        lambda reply: b"\x00" * len(reply),
        lambda reply: b"PICKLE" + reply,
    ],
)
@pytest.mark.parametrize("aggregator", ["plain", "secagg"])
def test_damaged_reply_drops_only_its_site(
    aggregator: str, change: Callable[[bytes], bytes]
) -> None:
    engine = FaultyEngine(lambda count, k, reply: change(reply) if (count, k) == (0, 2) else reply)
    recorder = RecordingObserver()
    result = tiny_federation(rounds=1, engine=engine, aggregator=aggregator).run(
        observers=[recorder]
    )
    assert result.history[0].dropped == (2,)
    (failure,) = recorder.of(SiteFailed)
    assert (failure.site, failure.code) == (2, "malformed")


@pytest.mark.parametrize(("aggregator", "exchanges"), [("plain", 1), ("secagg", 4)])
def test_site_replies_are_reported_as_they_arrive(aggregator: str, exchanges: int) -> None:
    engine = FaultyEngine(lambda count, site, reply: None if (count, site) == (0, 2) else reply)
    recorder = RecordingObserver()
    tiny_federation(rounds=1, engine=engine, aggregator=aggregator).run(observers=[recorder])
    answers = recorder.of(SiteReplied)
    assert {(a.round, a.attempt, a.site == 2) for a in answers} == {(0, 0, False)}
    for turn in range(exchanges):
        counts = [(a.num_replied, a.num_asked) for a in answers if a.stage == turn]
        asked = 6 if turn == 0 else 5
        assert counts == [(n + 1, asked) for n in range(5)]
    assert {a.stage for a in answers} == set(range(exchanges))


def test_malformed_reply_is_not_reported() -> None:
    engine = FaultyEngine(lambda count, site, reply: reply[:-1] if site == 2 else reply)
    recorder = RecordingObserver()
    tiny_federation(rounds=1, engine=engine).run(observers=[recorder])
    assert [a.site for a in recorder.of(SiteReplied)] == [0, 1, 3, 4, 5]


def test_a_reply_of_another_stage_is_stale() -> None:
    kept: dict[int, bytes] = {}

    def tamper(count: int, site: int, reply: bytes) -> bytes:
        kept.setdefault(site, reply)
        return kept[site] if site == 2 else reply

    recorder = RecordingObserver()
    tiny_federation(engine=FaultyEngine(tamper), rounds=2).run(observers=[recorder])
    assert [(f.site, f.code, f.round) for f in recorder.of(SiteFailed)] == [(2, "stale", 1)]


class Poisoned(FedAvg):
    """NaN at the sites with an even number of examples of class 0, odd ones train."""

    def train(self, task: LocalTask, privatizer: Any) -> LocalResult:
        trained = super().train(task, privatizer)
        if int((task.labels == 0).sum()) % 2:
            trained.vector[0] = float("nan")
        return trained


def test_nan_update_fails_its_site_only() -> None:
    recorder = RecordingObserver()
    result = tiny_federation(trainer=Poisoned(), rounds=1).run(observers=[recorder])
    failures = recorder.of(SiteFailed)
    assert {f.code for f in failures} == {"non-finite"}
    assert 0 < len(failures) < 6
    assert result.history[0].dropped == tuple(f.site for f in failures)


def test_nan_everywhere_fails_the_run_with_the_reason() -> None:
    trainer = FedAvg(learning_rate=1e6, optimizer_options={"weight_decay": 1e6})
    with pytest.raises(RunError, match=r"Sites 0, 1, 2, 3, 4, 5: its update holds NaN"):
        tiny_federation(trainer=trainer, model="cnn").run()


def test_unrunnable_study_writes_nothing(tmp_path: Path) -> None:
    for changes in (
        {"aggregator": SecAgg(reconstruction_threshold=7, num_shares=7)},
        {"model": Norm(), "privatizer": Gaussian()},
        {"partitioner": "natural", "sites": 50},
        {"device": "tpu9"},
    ):
        with pytest.raises(CohortiumError) as error:
            tiny_federation(**changes).run(tmp_path / "run")
        assert error.value.exit_code == 2
        assert not (tmp_path / "run").exists()


@frozen
class Hands:
    """Deals what it was told to."""

    parts: tuple[tuple[int, ...], ...]

    def partition(self, examples: object, num_sites: int, rng: np.random.Generator) -> list[Any]:
        return [np.array(indices, dtype=np.int64) for indices in self.parts]


@pytest.mark.parametrize(
    ("partition", "words"),
    [
        (((0, 1), (2,), ()), "site 2 has no data"),
        (((0, 1), (2,), (1,)), "one example to two sites"),
        (((0, 1), (2,)), "2 parts for 3 sites"),
    ],
)
def test_invalid_partition_is_refused(partition: tuple[tuple[int, ...], ...], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        tiny_federation(partitioner=Hands(partition), sites=3).prepare()


def test_a_cohort_is_drawn_anew_each_round() -> None:
    result = tiny_federation(cohort_size=3, rounds=6, evaluate_every=0).run()
    chosen = [event.contributors for event in result.history]
    assert all(len(sites) == 3 for sites in chosen)
    assert len(set(chosen)) > 1


def test_simulated_site_gets_own_signing_key_only() -> None:
    ready = tiny_federation(adversary="active").prepare()
    directory = ready.run_config.directory
    recipes = [ready.site_factory(site) for site in range(6)]
    assert directory is not None
    assert directory.keys == tuple(r.identity.public for r in recipes if r.identity)
    privatizer = [recipe.identity.private for recipe in recipes if recipe.identity]
    assert len(set(privatizer)) == 6
    for site, recipe in enumerate(recipes):
        found = pickle.dumps(recipe)
        assert [key in found for key in privatizer] == [s == site for s in range(6)]
    assert tiny_federation().prepare().run_config.directory is None


def test_run_record_matches_result(tmp_path: Path) -> None:
    result = tiny_federation().run(tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved == json.loads(json.dumps(result.as_json()))
    assert set(saved) == {
        "accuracy", "scores", "calibration_error", "guarantee", "aggregation", "membership",
        "rounds", "sites", "dropouts", "max_upload_bytes", "seconds", "weights_sha256",
        "versions", "plugins", "history", "data", "is_personal", "own", "measured",
        "measured_by_round", "provenance", "session",
    }  # fmt: skip
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "run" / "weights" / "last.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in result.weights.items())
    assert "[privatizer]" in (tmp_path / "run" / "study.toml").read_text()


def test_nonempty_output_folder_is_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(RequestError, match="is not empty"):
        tiny_federation().run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_run_messages_carry_no_pickle_or_image() -> None:
    engine = FaultyEngine(lambda _, __, reply: reply)
    tiny_federation(engine=engine, rounds=1).run()
    sent = b"".join(broadcast for broadcast, _ in engine.log)
    image = QuadrantImages().load().train.images[0].tobytes()
    assert image not in sent
    assert b"\x80\x04" not in sent[:200]


def test_study_selects_observers_by_name(tmp_path: Path) -> None:
    tiny_federation(observers=("events",)).run(tmp_path / "run")
    assert (tmp_path / "run" / "events.jsonl").read_text().count("\n") == 4
    with pytest.raises(CohortiumError, match="did you mean 'events'"):
        tiny_federation(observers=("event",)).run()


def test_federations_compare_by_value() -> None:
    assert tiny_federation() == tiny_federation()
    assert isinstance(tiny_federation(), Federation)
    parts: Mapping[str, object] = {"model": "cnn", "sites": 3}
    assert tiny_federation(**parts) != tiny_federation()


SHARED: dict[str, Any] = {
    "privatizer": Gaussian(noise="distributed"),
    "aggregator": "secagg",
    "min_contributors": 5,
    "max_colluding": 1,
}


def test_noise_is_shared_under_secure_aggregation() -> None:
    result = tiny_federation(trainer=FedSGD(), rounds=2, **SHARED).run()
    assert result.guarantee is not None
    assert result.guarantee.against == "coordinator"
    assert "against the coordinator" in str(result.guarantee)


def test_shared_noise_with_plain_aggregation_is_refused() -> None:
    with pytest.raises(StudyError, match="shows it every site's release; use aggregator 'secagg'"):
        tiny_federation(trainer=FedSGD(), **{**SHARED, "aggregator": "plain"}).prepare()


@frozen
class Forgetful(SecAgg):
    """Says that it opens sums over two."""

    def confidentiality(self, federation_spec: FederationSpec) -> Any:
        return evolve(super().confidentiality(federation_spec), min_contributors=2)


def test_shared_noise_requires_its_min_contributors() -> None:
    with pytest.raises(StudyError, match="opens sums over 2 sites, and the guarantee needs 4"):
        tiny_federation(trainer=FedSGD(), **{**SHARED, "aggregator": Forgetful()}).prepare()


class Doubles(FedSGD):
    """Sends twice the gradient, for which half the noise was planned."""

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        trained = super().train(task, privatizer)
        return evolve(trained, vector=2 * trained.vector)


def test_trainer_changing_gradient_before_noise_releases_nothing() -> None:
    with pytest.raises(RunError, match="something else than the gradient that was clipped"):
        tiny_federation(trainer=Doubles(), rounds=1, **SHARED).run()
    tiny_federation(trainer=Doubles(), rounds=1, privatizer=Gaussian()).run()


def test_patients_are_partitioned_whole_and_protected() -> None:
    study = tiny_federation(
        dataset=Phantom(examples=320, test=20, validation=0, images_per_patient=4),
        privatizer=Gaussian(unit="patient", delta=1e-3),
        trainer=FedSGD(),
        rounds=1,
    )
    ready = study.prepare()
    assert ready.run_config.federation_spec.patients == 80
    patients = ready.splits.train.patients
    assert patients is not None
    owners = [set(patients[indices].tolist()) for indices in ready.partition]
    assert sum(map(len, owners)) == 80
    assert sum(map(len, ready.partition)) == 320
    result = study.run()
    assert result.guarantee is not None
    assert result.guarantee.unit == "patient"
