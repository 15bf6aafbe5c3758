"""A hospital that evaluates a model: its test images, its refusals, its ledger, its own figures."""

from __future__ import annotations

import contextlib
import json
import logging
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from attrs import define, evolve, field, frozen
from msgspec import structs

from cohortium import Federation
from cohortium.data.examples import Examples
from cohortium.data.groups import GroupColumn
from cohortium.data.splits import Splits
from cohortium.deployment import rehearsal
from cohortium.deployment.own_scores import read_scores
from cohortium.deployment.site_config import SiteConfig
from cohortium.errors import CohortiumError, DataError, StudyError
from cohortium.messages.codec import decode_either, encode
from cohortium.messages.deployment import Acceptance, Invitation
from cohortium.messages.run import Refusal, Reply, Request
from cohortium.rounds.coordinator import Coordinator
from cohortium.runs.evaluate import prepare_evaluation
from cohortium.runs.invite import build_invitation
from cohortium.study import toml
from cohortium.study.measurement import EvaluationPlan
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_npz import Npz
from cohortium_secagg import SecAgg
from tests.support.federations import QuadrantImages, tiny_federation
from tests.support.rehearsed_site import RehearsedSite, changed, copy_site, edit

SITES = 3

MASKED = 2
"""The stage of an attempt in which sites send their masked vectors."""


def simulation(**changes: Any) -> Federation:
    parts: dict[str, Any] = {
        "privatizer": Gaussian(epsilon=6.0, delta=1e-3),
        "trainer": FedSGD(sampling_rate=1.0),
        "sites": SITES,
        "rounds": 1,
        "holdout_fraction": 0.4,
        "evaluation": EvaluationPlan(parts=("accuracy",), retries=1),
    }
    return tiny_federation(**(parts | changes))


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rehearsed") / "all"
    rehearsal.write_rehearsal(simulation().prepare(), folder, engine="inline")
    return folder


@pytest.fixture
def place(rehearsed: Path, tmp_path: Path) -> Path:
    """A copy of hospital 1 that a test may change."""
    return copy_site(rehearsed, tmp_path / "site-1")


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[RehearsedSite]:
    hospital = RehearsedSite(folder)
    try:
        yield hospital
    finally:
        hospital.stop()


@pytest.fixture
def hospital(place: Path) -> Iterator[RehearsedSite]:
    with serving(place) as made:
        yield made


@pytest.fixture(scope="module")
def study(rehearsed: Path) -> Federation:
    return Federation.read(rehearsed / "study.toml")


@pytest.fixture(scope="module")
def invitations(study: Federation) -> tuple[Invitation, Invitation]:
    """Those of the training and of the evaluation."""
    assert study.evaluation is not None
    measured = prepare_evaluation(study, study.evaluation)
    return build_invitation(study.prepare()), build_invitation(measured)


@pytest.fixture(scope="module")
def invitation(invitations: tuple[Invitation, Invitation]) -> Invitation:
    return invitations[1]


def request_of(study: Federation, invitation: Invitation, attempt: int = 0) -> bytes:
    """The first request of an attempt at the evaluation."""
    assert study.evaluation is not None
    ready = prepare_evaluation(study, study.evaluation)
    coordinator = Coordinator(evolve(ready.run_config, session=invitation.session))
    coordinator.begin_attempt(0, attempt, range(SITES))
    return coordinator.next_requests().broadcast


def refused(answer: Any, code: str, words: str) -> None:
    assert isinstance(answer, Refusal), answer
    assert answer.code == code, answer.reason
    assert words in answer.reason


# --- What is accepted and charged ----------------------------------------------------------------


def test_evaluation_is_charged_to_the_test_images(
    hospital: RehearsedSite, study: Federation, invitation: Invitation
) -> None:
    edit(hospital.folder, test={"declared_examples": 5})
    hospital.restart()
    accepted = hospital.send(invitation)
    assert accepted == Acceptance(invitation.session, 1, 5, {})
    assert isinstance(hospital.send(request_of(study, invitation)), Reply)
    train, test = hospital.config.accounts
    assert hospital.charges() == {train: 0, test: 1}


def test_one_name_is_charged_for_both(
    place: Path, study: Federation, invitations: tuple[Invitation, Invitation],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    name = SiteConfig.read(place / "site.toml").dataset_id
    # One set may be part of the other, where both are charged to one account.
    with np.load(place / "data.npz") as stored:
        held = {key: stored[key] for key in stored.files}
    for what in ("images", "labels"):
        held[f"test_{what}"] = held[f"train_{what}"][:8]
    np.savez(place / "data.npz", **held)
    edit(place, test={"dataset_id": name})
    training, measuring = invitations
    with serving(place) as hospital:
        hospital.server.self_check()
        for one in (training, measuring, changed(training)):
            assert isinstance(hospital.send(one), Acceptance)
        assert isinstance(hospital.send(request_of(study, measuring)), Reply)
        assert hospital.charges() == {name: 1}
    assert not any("have changed" in told for told in caplog.messages)


def test_training_images_can_be_measured(
    hospital: RehearsedSite, invitations: tuple[Invitation, Invitation]
) -> None:
    training, measuring = invitations
    shared = toml.loads(training.study, where="test")
    facts = changed(measuring, measurement={"of": "images", "data": "train", "parts": []})
    facts = changed(facts, data=shared["data"])
    assert isinstance(hospital.send(facts), Acceptance)


def test_allowed_plugins_hold_for_the_named_parts(
    place: Path, study: Federation, invitation: Invitation
) -> None:
    names = [f"cohortium:{n}" for n in ("cnn", "fedsgd", "gaussian", "plain", "linear", "secagg")]
    model = toml.loads(invitation.study, where="test")["model"]["name"]
    edit(place, policy={"allowed_plugins": [*names, f"cohortium:{model}"]})
    with serving(place) as hospital:
        assert isinstance(hospital.send(invitation), Acceptance)
        assert isinstance(hospital.send(request_of(study, invitation)), Reply)
        other = changed(invitation, trainer={"name": "fedavg", "sampling_rate": 1.0})
        answer = hospital.send(other)
        refused(answer, "policy.allowed_plugins", "the trainer 'fedavg'")


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"measurement": {"parts": ["nothing"]}}, "study", "no part 'nothing'"),
        ({"measurement": {"parts": ["accuracy", "accuracy"]}}, "study", "name each once"),
        ({"measurement": {"by": ["age"]}}, "study", "no column of groups 'age'"),
        ({"measurement": {"data": "all"}}, "study", "expected 'test' or 'train'"),
        ({"measurement": {"of": "names"}}, "study", "expected 'scores' or 'images'"),
        ({"measurement": {"path": "/etc/shadow"}}, "study", "no such parameter"),
        ({"measurement": 3}, "tables", "no table [measurement]"),
        ({"evaluation": {"epsilon": 1.0}}, "tables", "table [evaluation], which no site is sent"),
        ({"privatizer": {"epsilon": 60.0}}, "policy.epsilon", "this site allows"),
        ({"federation": {"retries": 900}}, "policy.epsilon", "this site allows"),
        ({"federation": {"insecure_seeded_secrets": True}}, "policy.epsilon", "public seed"),
        ({"federation": {"sites": 60_000}}, "policy.max_sites", "60,000 sites"),
        ({"data": {"size": [9, 8]}}, "data", "another type, shape"),
        (
            {
                "data": {"groups": [{"name": "sex", "values": ["f", "m"]}]},
                "measurement": {"by": ["sex"]},
            },
            "data",
            "no column of groups 'sex'",
        ),
    ],
)
def test_unacceptable_evaluation_is_refused_with_code(
    hospital: RehearsedSite, invitation: Invitation, changes: dict[str, Any], code: str, words: str
) -> None:
    if changes.get("federation", {}).get("retries"):
        # The privatizer would calibrate its noise to so many attempts.
        changes = {**changes, "privatizer": {"epsilon": 60.0}}
    refused(hospital.send(changed(invitation, **changes)), code, words)
    assert not list((hospital.folder / "runs").glob("*"))


@pytest.mark.parametrize("declared", [0, 3])
def test_only_a_declared_number_of_test_images_can_refuse(
    place: Path, invitation: Invitation, declared: int
) -> None:
    edit(place, test={"declared_examples": declared})
    few = changed(invitation, data={"examples": 2})
    with serving(place) as hospital:
        if declared:
            refused(hospital.send(few), "examples", "correct examples under [evaluation]")
        else:
            assert isinstance(hospital.send(few), Acceptance)


def test_site_without_test_images_refuses_evaluation(
    place: Path, invitations: tuple[Invitation, Invitation]
) -> None:
    edit(place, test=None)
    training, measuring = invitations
    with serving(place) as hospital:
        refused(hospital.send(measuring), "data", "this site has none")
        assert isinstance(hospital.send(training), Acceptance)


def test_session_of_a_training_is_refused(
    hospital: RehearsedSite, invitations: tuple[Invitation, Invitation]
) -> None:
    training, measuring = invitations
    assert isinstance(hospital.send(training), Acceptance)
    again = Invitation(training.session, measuring.study, measuring.directory, measuring.versions)
    refused(hospital.send(again), "session", "another configuration")
    hospital.restart()
    refused(hospital.send(again), "session", "another configuration")


def test_budget_of_the_test_images_ends(
    hospital: RehearsedSite, study: Federation, invitation: Invitation
) -> None:
    again = changed(invitation)
    for one in (invitation, again):
        answer = hospital.send(one)
        if isinstance(answer, Refusal):
            refused(answer, "budget", "the site's budget is")
            break
        for attempt in range(2):
            hospital.send(request_of(study, one, attempt))
    else:
        pytest.fail("a second evaluation is charged again, and there is no room for it")
    train, test = hospital.config.accounts
    assert hospital.charges() == {train: 0, test: 2}


# --- Overlap -------------------------------------------------------------------------------------


def with_arrays(folder: Path, **arrays: Any) -> None:
    with np.load(folder / "data.npz") as stored:
        held = {key: stored[key] for key in stored.files}
    np.savez(folder / "data.npz", **{**held, **arrays})


def test_shared_images_are_refused_in_the_log_only(
    place: Path, invitations: tuple[Invitation, Invitation], caplog: pytest.LogCaptureFixture
) -> None:
    with np.load(place / "data.npz") as stored:
        images, train = stored["test_images"].copy(), stored["train_images"]
    images[3], images[5] = train[0], train[7]
    with_arrays(place, test_images=images)
    told = f"2 of the {len(images)} test images are training images too; remove these"
    with serving(place) as hospital:
        with pytest.raises(DataError, match=told):
            hospital.server.self_check()
        for invitation in invitations:
            answer = hospital.send(invitation)
            refused(answer, "site-error", "its log says why")
            assert "2" not in answer.reason
    assert any(told in line for line in caplog.messages)


@pytest.mark.parametrize("is_comparable", [True, False])
def test_shared_patients_are_refused_where_numbers_can_be_compared(
    place: Path, *, is_comparable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with np.load(place / "data.npz") as stored:
        sizes = {split: len(stored[f"{split}_labels"]) for split in ("train", "test")}
        test = {f"train_{what}": stored[f"test_{what}"] for what in ("images", "labels")} | {
            "classes": stored["classes"]
        }
    with_arrays(place, train_patients=np.arange(sizes["train"]))
    np.savez(place / "test.npz", train_patients=np.arange(sizes["test"]) + 10**6, **test)
    own = {"dataset": {"name": "npz", "path": "test.npz"}}
    edit(place, test={**own, "has_same_patient_numbers": is_comparable}, policy={"unit": "patient"})
    with serving(place) as hospital:
        hospital.server.self_check()
    assert any("are not compared" in line for line in caplog.messages) != is_comparable
    np.savez(place / "test.npz", train_patients=np.arange(sizes["test"]) // 2, **test)
    with serving(place) as hospital:
        if is_comparable:
            patients = (sizes["test"] + 1) // 2
            told = f"{patients} of the {patients} patients with test images have training images"
            with pytest.raises(DataError, match=told):
                hospital.server.self_check()
        else:
            hospital.server.self_check()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test": {"dataset_id": ""}}, "'dataset_id'"),
        ({"test": {"datasetid": "x"}}, "did you mean dataset_id"),
        ({"test": {"dataset": {"name": "npy"}}}, "no plugin offers the dataset 'npy'"),
        ({"test": {"dataset": 3}}, r"needs a table \[test.dataset\]"),
        ({"policy": {"unit": "site"}}, "needs the dataset_id of"),
        ({"tset": {"dataset_id": "x"}}, r"has no \[tset\]"),
    ],
)
def test_invalid_table_of_test_images_gives_one_sentence(
    place: Path, changes: dict[str, Any], words: str
) -> None:
    if "dataset" in changes.get("test", {}) and isinstance(changes["test"]["dataset"], int):
        file = toml.read(place / "site.toml", what="the site file")
        file["test"]["dataset"] = 3
        (place / "site.toml").write_text(tomli_w.dumps(file))
    else:
        edit(place, **changes)
    with pytest.raises(CohortiumError, match=words) as error:
        SiteConfig.read(place / "site.toml")
    assert "\n" not in str(error.value)


def test_unusable_test_images_are_named(place: Path) -> None:
    with np.load(place / "data.npz") as stored:
        held = {key: stored[key] for key in stored.files if not key.startswith("test_")}
        images, labels = stored["test_images"], stored["test_labels"]
    np.savez(place / "data.npz", **held)
    with pytest.raises(DataError, match=r"names no \[test.dataset\]"):
        SiteConfig.read(place / "site.toml").load_images()
    other = {"train_images": images[:, :4], "train_labels": labels, "classes": held["classes"]}
    np.savez(place / "test.npz", **other)
    edit(place, test={"dataset": {"name": "npz", "path": "test.npz"}})
    with pytest.raises(DataError, match="have another shape"):
        SiteConfig.read(place / "site.toml").load_images()
    np.savez(place / "test.npz", **(other | {"train_images": images}))
    edit(place, test={"declared_examples": 500})
    with pytest.raises(DataError, match="declares 500 test images, and there are"):
        SiteConfig.read(place / "site.toml").load_images()


# --- A coordinator that attacks ------------------------------------------------------------------


def with_weights(request: bytes, values: Callable[[int], Any]) -> bytes:
    """The request with other weights.  `values` makes so many of them."""
    read = decode_either(request, Request, Invitation)
    assert isinstance(read, Request)
    assert read.weights is not None
    count = len(read.weights) // 4
    made = np.broadcast_to(np.asarray(values(count), "<f4"), (count,))
    return encode(structs.replace(read, weights=memoryview(made.tobytes())))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_cost_nothing(
    hospital: RehearsedSite, study: Federation, invitation: Invitation, value: float
) -> None:
    hospital.send(invitation)
    asked = with_weights(request_of(study, invitation), lambda count: [*[0.0] * (count - 1), value])
    answer = hospital.send(asked)
    assert isinstance(answer, Refusal)
    assert "not all finite" in answer.reason
    assert set(hospital.charges().values()) == {0}


@pytest.mark.parametrize("parts", [["accuracy"], ["auc", "calibration", "classes"]])
@pytest.mark.parametrize("value", [3e38, -3e38, 1e20, 0.0])
def test_huge_weights_are_answered_as_others_are(
    hospital: RehearsedSite,
    study: Federation,
    invitation: Invitation,
    value: float,
    parts: list[str],
) -> None:
    # A refusal that depends on the network's outputs would be a release without noise.
    assert study.evaluation is not None
    asked = evolve(study, evaluation=evolve(study.evaluation, parts=tuple(parts)))
    own = changed(invitation, measurement={"parts": parts})
    assert isinstance(hospital.send(own), Acceptance)
    request = with_weights(request_of(asked, own), lambda _: value)
    assert isinstance(hospital.send(request), Reply)
    _, test = hospital.config.accounts
    assert hospital.charges()[test] == 1


def test_other_weights_in_one_attempt_get_no_second_answer(
    hospital: RehearsedSite, study: Federation, invitation: Invitation
) -> None:
    hospital.send(invitation)
    first, second = (request_of(study, invitation, attempt) for attempt in range(2))
    assert isinstance(hospital.send(with_weights(second, lambda _: 0.5)), Reply)
    for late in (with_weights(second, lambda _: -0.5), second, first):
        assert isinstance(hospital.send(late), Refusal)
    hospital.restart()
    # Its memory is gone and its ledger is not: no attempt is answered twice, nor one too many.
    assert isinstance(hospital.send(first), Reply)
    for late in (first, second):
        assert isinstance(hospital.send(with_weights(late, lambda _: -0.5)), Refusal)
    assert isinstance(hospital.send(request_of(study, invitation, attempt=2)), Refusal)
    _, test = hospital.config.accounts
    assert hospital.charges()[test] == 2


def test_other_study_in_one_session_is_refused(
    hospital: RehearsedSite, invitation: Invitation
) -> None:
    assert isinstance(hospital.send(invitation), Acceptance)
    other = changed(invitation, measurement={"parts": ["auc"]})
    again = structs.replace(other, session=invitation.session)
    refused(hospital.send(again), "session", "another configuration")


@pytest.mark.parametrize(
    "name", ["../../etc", "a\x00b", "site\n[policy]", "x" * 5000, "\u202esite", "\x1b[31m", ""]
)
def test_hostile_names_of_groups_are_refused_in_one_sentence(
    hospital: RehearsedSite, invitation: Invitation, name: str
) -> None:
    answer = hospital.send(changed(invitation, measurement={"by": [name]}))
    assert isinstance(answer, Refusal)
    assert "\n" not in answer.reason
    assert len(answer.reason) <= 1000
    assert answer.reason.isprintable()


# --- Restarts ------------------------------------------------------------------------------------


def test_restart_within_an_evaluation_repeats_the_same_bytes(
    hospital: RehearsedSite, study: Federation, invitation: Invitation
) -> None:
    request = request_of(study, invitation)
    hospital.send(invitation)
    reply = hospital.server.answer(request, b"")
    hospital.restart()
    assert hospital.server.answer(request, b"") == reply
    _, test = hospital.config.accounts
    assert hospital.charges()[test] == 1


def test_restart_before_the_reply_is_kept_stays_charged(
    hospital: RehearsedSite, study: Federation, invitation: Invitation
) -> None:
    request = request_of(study, invitation)
    hospital.send(invitation)
    assert isinstance(hospital.send(request), Reply)
    (hospital.folder / "runs" / invitation.session.hex() / "reply").unlink()
    hospital.restart()
    refused(hospital.send(request), "out-of-order", "charged before")
    assert isinstance(hospital.send(request_of(study, invitation, attempt=1)), Reply)
    _, test = hospital.config.accounts
    assert hospital.charges()[test] == 2


# --- Own figures ---------------------------------------------------------------------------------


def test_own_scores_are_exact_and_stay(
    hospital: RehearsedSite,
    study: Federation,
    invitation: Invitation,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "cohortium")
    hospital.send(invitation)
    assert isinstance(hospital.send(request := request_of(study, invitation)), Reply)
    folder = hospital.folder / "evaluations"
    path, predictions = sorted(folder.iterdir())
    assert path.name == f"{invitation.session.hex()}.json"
    assert predictions.name == f"{invitation.session.hex()}.npz"
    assert stat.S_IMODE(predictions.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    told = json.loads(path.read_text())
    assert told["dataset_id"] == hospital.config.account_of("test").data

    from cohortium.data.predictions import Predictions
    from cohortium.learning.evaluation import predict
    from cohortium.learning.preprocessing import preprocess

    own = hospital.config.load_images().of("test").train
    assert study.evaluation is not None
    run_config = prepare_evaluation(study, study.evaluation).run_config
    net = run_config.network()
    spec, model = run_config.spec, run_config.model
    exact = Predictions(
        predict(model, net, preprocess(model, own.images, spec), spec), own.labels, spec.task
    ).scores
    assert told["scores"]["metrics"]["accuracy"] == exact.metrics["accuracy"]
    assert told["scores"]["images"] == len(own)
    assert any(f"accuracy {exact.main:.2%}" in line for line in caplog.messages)
    assert sum("images: " in line for line in caplog.messages) >= len(spec.classes)
    assert decode_either(request, Request).weights is not None


def test_own_scores_name_the_study_that_trained(
    hospital: RehearsedSite, study: Federation, invitations: tuple[Invitation, Invitation]
) -> None:
    training, measuring = invitations
    hospital.send(changed(training, trainer={"sampling_rate": 0.5}))
    hospital.send(training)
    hospital.send(measuring)
    assert isinstance(hospital.send(request_of(study, measuring)), Reply)
    (stored,) = read_scores(hospital.folder / "evaluations")
    assert stored.study == training.study
    assert stored.images_sha256 == hospital.config.load_images().of("test").train.fingerprint.hex()


def test_failure_of_own_scores_changes_no_reply(
    hospital: RehearsedSite,
    study: Federation,
    invitation: Invitation,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (hospital.folder / "evaluations").write_text("mine")
    hospital.send(invitation)
    assert isinstance(hospital.send(request_of(study, invitation)), Reply)
    assert (hospital.folder / "evaluations").read_text() == "mine"
    assert any("own scores are not kept: cannot write" in line for line in caplog.messages)


def test_training_keeps_no_own_scores(
    hospital: RehearsedSite, study: Federation, invitations: tuple[Invitation, Invitation]
) -> None:
    training, _ = invitations
    hospital.send(training)
    coordinator = Coordinator(evolve(study.prepare().run_config, session=training.session))
    coordinator.begin_attempt(0, 0, range(SITES))
    assert isinstance(hospital.send(coordinator.next_requests().broadcast), Reply)
    assert not (hospital.folder / "evaluations").exists()


# --- The study lead ------------------------------------------------------------------------------


@define(eq=False)
class Corridor:
    """An engine to hospitals in this process.  `lost` does not answer requests."""

    hospitals: dict[int, RehearsedSite]
    lost: int | None = None

    def connect(self, sites: object) -> Any:
        assert sites is None
        return self

    def exchange(self, broadcast: bytes, per_site: Any, timeout: object = None) -> Any:
        is_request = isinstance(decode_either(broadcast, Request, Invitation), Request)
        for number, own in per_site.items():
            if not (is_request and number == self.lost):
                yield number, self.hospitals[number].server.answer(broadcast, own)

    def close(self) -> None: ...


@pytest.fixture
def hospitals(rehearsed: Path, tmp_path: Path) -> Iterator[dict[int, RehearsedSite]]:
    simulated = simulation(insecure_seeded_secrets=True, threads=1)
    rehearsal.write_rehearsal(simulated.prepare(), tmp_path / "all", engine="inline")
    with contextlib.ExitStack() as stack:
        yield {
            n: stack.enter_context(serving(tmp_path / "all" / f"site-{n}")) for n in range(SITES)
        }


def test_deployment_measures_as_the_simulation_does(
    hospitals: dict[int, RehearsedSite], tmp_path: Path
) -> None:
    deployed = Federation.read(tmp_path / "all" / "study.toml")
    assert deployed.check_sites(Corridor(hospitals)) == ()
    result = deployed.run(tmp_path / "run", engine=Corridor(hospitals))
    twin = simulation(insecure_seeded_secrets=True, threads=1).run()
    assert result.evaluation is not None
    assert twin.evaluation is not None
    assert result.evaluation.measured == twin.evaluation.measured
    # Later, one hospital is gone.
    plan = EvaluationPlan(parts=("accuracy",), examples=1000, epsilon=2.0)
    later = deployed.evaluate(
        tmp_path / "run", plan, out=tmp_path / "later", engine=Corridor(hospitals, lost=2)
    )
    assert later.measured is not None
    assert later.measured.contributors == SITES - 1
    assert later.weights_sha256 == result.weights_sha256


@define(eq=False)
class Severed(Corridor):
    """An engine from which `lost` disappears when it has masked a measurement.

    It has measured and been charged, and its vector never leaves the hospital.
    """

    _measuring: set[bytes] = field(factory=set)
    _is_gone: bool = False

    def exchange(self, broadcast: bytes, per_site: Any, timeout: object = None) -> Any:
        request = decode_either(broadcast, Request, Invitation)
        if isinstance(request, Invitation) and "[measurement]" in request.study:
            self._measuring.add(request.session)
        for number, own in per_site.items():
            if number == self.lost and self._is_gone:
                continue
            reply = self.hospitals[number].server.answer(broadcast, own)
            said = decode_either(reply, Reply, Refusal, Acceptance)
            if number == self.lost and request.session in self._measuring:
                self._is_gone = isinstance(said, Reply) and said.stage == MASKED
            if number != self.lost or not self._is_gone:
                yield number, reply


def test_hospital_lost_in_training_leaves_scores_of_others(
    hospitals: dict[int, RehearsedSite], tmp_path: Path
) -> None:
    deployed = Federation.read(tmp_path / "all" / "study.toml")
    result = deployed.run(tmp_path / "run", engine=Corridor(hospitals, lost=2))
    assert result.evaluation is not None
    assert result.evaluation.measured is not None
    assert result.evaluation.measured.contributors == SITES - 1
    assert result.evaluation.weights_sha256 == result.weights_sha256
    assert [*hospitals[2].charges().values()] == [0, 0]


@pytest.mark.slow
def test_hospital_lost_after_its_charge_leaves_scores_of_others(tmp_path: Path) -> None:
    simulated = simulation(
        dataset=QuadrantImages(1000), sites=5, insecure_seeded_secrets=True, threads=1,
        aggregator=SecAgg(reconstruction_threshold=4, num_shares=5),
        evaluation=EvaluationPlan(epsilon=2.0, parts=("accuracy",)),
    )  # fmt: skip
    rehearsal.write_rehearsal(simulated.prepare(), tmp_path / "all", engine="inline")
    deployed = Federation.read(tmp_path / "all" / "study.toml")
    with contextlib.ExitStack() as stack:
        hospitals = {
            n: stack.enter_context(serving(tmp_path / "all" / f"site-{n}")) for n in range(5)
        }
        engine = Severed(hospitals, lost=3)
        result = deployed.run(tmp_path / "run", engine=engine)
    assert result.dropouts == 0
    evaluation = result.evaluation
    assert evaluation is not None
    assert evaluation.weights_sha256 == result.weights_sha256
    measured = evaluation.measured
    assert measured is not None
    assert measured.contributors == 4
    # Each hospital was charged, the lost one too, and has its own exact figures.
    own = []
    for hospital in hospitals.values():
        assert [*hospital.charges().values()] == [1, 1]
        (path,) = (hospital.folder / "evaluations").glob("*.json")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        own.append(json.loads(path.read_text())["scores"])
    images = [each["images"] for number, each in enumerate(own) if number != 3]
    scores = [each["metrics"]["accuracy"] for number, each in enumerate(own) if number != 3]
    main = measured.estimates[0]
    assert main.metric == "accuracy"
    reach = main.noise_high - main.noise_low
    assert 0 < reach < 0.5
    assert abs(main.value - np.average(scores, weights=images)) < reach
    assert main.low <= main.noise_low
    assert main.noise_high <= main.high
    # The same sites in one process train the same weights.
    twin = evolve(simulated, evaluation=None).run()
    assert twin.weights_sha256 == result.weights_sha256


def test_deployment_evaluates_while_it_trains(
    hospitals: dict[int, RehearsedSite], tmp_path: Path
) -> None:
    plan = EvaluationPlan(every=1, parts=("accuracy",))
    twin = simulation(insecure_seeded_secrets=True, threads=1, rounds=2, evaluation=plan)
    deployed = Federation.read(tmp_path / "all" / "study.toml")
    assert deployed.evaluation is not None
    plan = evolve(deployed.evaluation, every=1, retries=0)
    deployed = evolve(deployed, rounds=2, evaluation=plan)
    for hospital in hospitals.values():
        edit(hospital.folder, policy={"epsilon": 20.0})
        hospital.restart()
    result = deployed.run(tmp_path / "run", engine=Corridor(hospitals))
    assert result.evaluation is not None
    assert [m.trained_rounds for m in result.evaluation.measured_by_round] == [1, 2]
    measured = twin.run().evaluation
    assert measured is not None
    assert result.evaluation.measured_by_round == measured.measured_by_round
    for hospital in hospitals.values():
        train, test = hospital.config.accounts
        assert hospital.charges() == {train: 2, test: 2}


@pytest.mark.parametrize("every", [0, 1])
def test_missing_test_images_end_the_run_before_training(
    hospitals: dict[int, RehearsedSite], tmp_path: Path, every: int
) -> None:
    edit(hospitals[1].folder, test=None)
    hospitals[1].restart()
    deployed = Federation.read(tmp_path / "all" / "study.toml")
    assert deployed.evaluation is not None
    plan = evolve(deployed.evaluation, every=every)
    # Two evaluations need the larger budget that the study then asks for.
    deployed = evolve(deployed, rounds=2 if every else 1, evaluation=plan)
    for ask in (
        lambda: deployed.check_sites(Corridor(hospitals)),
        lambda: deployed.run(tmp_path / "run", engine=Corridor(hospitals)),
    ):
        with pytest.raises(StudyError, match=r"site 1: the study evaluates .* has none"):
            ask()
    assert not (tmp_path / "run").exists()


@frozen
class GroupedImages(QuadrantImages):
    """Images with two columns of groups, the second of which not all images state."""

    def load(self) -> Splits:
        splits, columns = super().load(), (SITE_COLUMN, SEX)

        def grouped(part: Examples | None) -> Examples | None:
            if part is None:
                return None
            rng = np.random.default_rng(len(part))
            codes = np.stack([rng.integers(0, 3, len(part)), rng.integers(-1, 2, len(part))], 1)
            return evolve(part, groups=codes)

        train = grouped(splits.train)
        assert train is not None
        return evolve(splits, train=train, test=grouped(splits.test), groups=columns)


SITE_COLUMN = GroupColumn("scanner", ("one", "two", "three"))
SEX = GroupColumn("sex", ("female", "male"))


def test_rehearsed_groups_are_evaluated_as_in_the_simulation(tmp_path: Path) -> None:
    plan = EvaluationPlan(parts=("accuracy",), by=("sex",), retries=1)
    simulated = simulation(
        dataset=GroupedImages(), evaluation=plan, insecure_seeded_secrets=True, threads=1
    )
    rehearsal.write_rehearsal(simulated.prepare(), tmp_path / "all", engine="inline")
    deployed = Federation.read(tmp_path / "all" / "study.toml")
    assert deployed.data is not None
    assert deployed.data.groups == (SITE_COLUMN, SEX)
    with contextlib.ExitStack() as stack:
        hospitals = {
            n: stack.enter_context(serving(tmp_path / "all" / f"site-{n}")) for n in range(SITES)
        }
        result = deployed.run(engine=Corridor(hospitals))
        # A hospital may lack a column by which nothing is measured, or all of them in a training.
        (folder,) = [hospitals[0].folder]
        with np.load(folder / "data.npz") as stored:
            held = {name: stored[name] for name in stored.files if "group" not in name}
        np.savez(folder / "data.npz", **held)
        hospitals[0].restart()
        trains = evolve(deployed, evaluation=None)
        assert trains.run(engine=Corridor(hospitals)).weights_sha256 == result.weights_sha256
    twin = simulated.run().evaluation
    assert twin is not None
    assert result.evaluation is not None
    assert result.evaluation.measured == twin.measured
    assert {e.group for e in twin.measured.estimates if e.group} == {"sex: female", "sex: male"}  # type: ignore[union-attr]


def test_rehearsed_sites_with_overlap_have_one_account(tmp_path: Path) -> None:
    # Public data sets hold some images twice.
    own = QuadrantImages().load().train
    np.savez(
        tmp_path / "twice.npz",
        train_images=np.concatenate([own.images[:, 0]] * 2),
        train_labels=np.concatenate([own.labels] * 2),
    )
    simulated = simulation(dataset=Npz(path=str(tmp_path / "twice.npz")))
    rehearsal.write_rehearsal(simulated.prepare(), tmp_path / "all", engine="inline")
    deployed = Federation.read(tmp_path / "all" / "study.toml")
    assert deployed.holdout_fraction == 0
    assert deployed.evaluation is not None
    measured = prepare_evaluation(deployed, deployed.evaluation)
    with serving(tmp_path / "all" / "site-2") as hospital:
        assert len(hospital.config.accounts) == 1
        # Its budget has room for both.
        for prepared in (deployed.prepare(), measured):
            assert isinstance(hospital.send(build_invitation(prepared)), Acceptance)
        assert isinstance(hospital.send(request_of(deployed, build_invitation(measured))), Reply)
    study = toml.read(tmp_path / "all" / "study.toml", what="the study")
    held = sum(len(part) for part in simulated.prepare().holdout)
    assert study["evaluation"]["examples"] == held
