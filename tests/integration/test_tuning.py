"""A search with its final run: charges, choice, interruptions, a killed search, and its record."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import attrs
import pytest

import cohortium
from cohortium import Federation, Tuning, reporting
from cohortium.crypto.randomness import Randomness
from cohortium.crypto.signing import SigningKey
from cohortium.errors import RecordError, RequestError, RunError, StoppedError
from cohortium.inference.classifier import Classifier
from cohortium.inference.export.card import Exported, model_card
from cohortium.ledger.cost import AttemptCost, PrivacyScope
from cohortium.ledger.ledger import Ledger
from cohortium.runs.run_state import RunState
from cohortium.runs.signatures import seen_signatures
from cohortium.tuning import CandidateScore, TuningPlan, TuningResult, read_plan, tune
from cohortium.tuning.record import write_plan
from cohortium_fedavg import FedAvg
from cohortium_phantom import Phantom
from tests.support.searches import DELTA, EPSILON, SITES, rates, search_of, searched
from tests.support.study_files import PATHS

if TYPE_CHECKING:
    from pathlib import Path

LEAD, OTHER = (SigningKey.generate(Randomness.insecure_from_seed(seed)) for seed in (1, 2))
SCOPE = PrivacyScope(unit="example", against="everyone")


def charged(folder: Path, account: str = "site {}") -> list[Counter[AttemptCost]]:
    """Charges of each site over the whole search."""
    with Ledger(folder / "ledger.sqlite").read_transaction() as book:
        return [book.charge_counts(account.format(site)) for site in range(SITES)]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> TuningResult:
    study, folder = searched(), tmp_path_factory.mktemp("searches") / "tuned"
    return cohortium.tune(study, search_of(study), folder, signing_key=LEAD)


def test_ledger_of_each_site_equals_the_stated_price(tuned: TuningResult) -> None:
    training, test = tuned.plan.prices
    for spent in charged(tuned.folder):
        # Two candidates of one round, and a final run of three.
        assert spent.total() == 2 + 3
        assert SCOPE.epsilon(spent, DELTA) == pytest.approx(training.together, abs=1e-6)
    for spent in charged(tuned.folder, "site {}, test images"):
        assert spent.total() == 2 + 1
        assert SCOPE.epsilon(spent, DELTA) == pytest.approx(test.together, abs=1e-6)
    assert not list(tuned.folder.glob("*/ledger.sqlite"))
    assert training.together <= EPSILON


def test_final_guarantee_covers_the_search(tuned: TuningResult) -> None:
    training, test = tuned.plan.prices
    assert tuned.final.guarantee is not None
    assert tuned.final.guarantee.epsilon == pytest.approx(training.together, abs=1e-9)
    evaluation = reporting.read(tuned.folder / "final").evaluation
    assert evaluation is not None
    assert evaluation.guarantee is not None
    assert evaluation.guarantee.epsilon == pytest.approx(test.together, abs=1e-9)


def test_choice_is_the_best_noised_score(tuned: TuningResult) -> None:
    scores = tuned.choice.scores
    assert [each.candidate for each in scores] == list(tuned.plan.drawn)
    best = max(scores, key=lambda each: each.value or 0.0)
    assert tuned.choice.chosen == best.candidate
    assert all(each.low is not None and each.metric == "accuracy" for each in scores)


def test_result_page_says_all(tuned: TuningResult) -> None:
    told = json.loads((tuned.folder / "result.json").read_text())
    assert told == tuned.as_json()
    assert told["chosen"] == tuned.choice.chosen
    assert [price["images"] for price in told["prices"]] == ["training", "test"]
    page = (tuned.folder / "table.md").read_text("utf-8")
    assert f"{tuned.choice.chosen} (chosen)" in page
    assert "a private evaluation of each candidate (accuracy)" in page
    assert str(tuned.plan.prices[0]) in page


def test_report_says_that_tuning_is_counted(tuned: TuningResult) -> None:
    page = re.sub(r"\s+", " ", reporting.render([reporting.read(tuned.folder / "final")]))
    assert "counts a search for the settings before this run (2 candidates)" in page
    first = reporting.render([reporting.read(tuned.folder / tuned.choice.scores[0].run)])
    assert "counts a search" not in first


def test_finished_search_is_refused(tuned: TuningResult) -> None:
    study = searched()
    with pytest.raises(RequestError, match=r"is finished; its result is \S+result\.json\.$"):
        tune(study, search_of(study), tuned.folder)


def test_finished_search_says_that_other_settings_have_no_effect(tuned: TuningResult) -> None:
    study = searched()
    for other, search in (
        (study, search_of(study, rounds=2)),
        (searched(seed=7), search_of(searched(seed=7))),
    ):
        with pytest.raises(RequestError, match=r"of other settings.* another folder with --out"):
            tune(other, search, tuned.folder)


def test_final_run_and_its_evaluation_are_signed(tuned: TuningResult) -> None:
    for folder in (tuned.folder / "final", tuned.folder / "final" / "evaluation"):
        (seen,) = seen_signatures(folder)
        assert (seen.is_valid, seen.made.key) == (True, LEAD.public.hex())
    for score in tuned.choice.scores:
        assert seen_signatures(tuned.folder / score.run) == ()


def test_signed_search_continues_with_its_key_alone(tuned: TuningResult, tmp_path: Path) -> None:
    study, folder = searched(), tmp_path / "search"
    shutil.copytree(tuned.folder, folder)
    # As after a kill at the very end.
    (folder / "result.json").unlink()
    for key in (None, OTHER):
        with pytest.raises(RequestError, match=f"begins with '{LEAD.public.hex()[:16]}"):
            tune(study, search_of(study), folder, signing_key=key)
    found = tune(study, search_of(study), folder, signing_key=LEAD)
    assert found.final.weights_sha256 == tuned.final.weights_sha256
    for name in ("result.json", "signer", "final/signatures.json"):
        (folder / name).unlink()
    with pytest.raises(RequestError, match="finished without a signature; leave --sign-with out"):
        tune(study, search_of(study), folder, signing_key=LEAD)
    tune(study, search_of(study), folder)


def test_key_named_by_a_killed_start_is_forgotten(tuned: TuningResult, tmp_path: Path) -> None:
    (tmp_path / "signer").write_text(f"{OTHER.public.hex()}\n", "utf-8")
    write_plan(tmp_path, tuned.plan)
    assert [path.name for path in tmp_path.iterdir()] == ["search.json"]
    with pytest.raises(RequestError, match="is not empty"):
        write_plan(tmp_path, tuned.plan, LEAD)


def test_lost_evaluation_of_the_final_run_is_stated(
    tuned: TuningResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folder = searched(), tmp_path / "search"
    shutil.copytree(tuned.folder, folder)
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "final")
    begin = RunState.start_attempt

    def interrupted(state: RunState, attempt: int) -> None:
        begin(state, attempt)
        if state.prepared.federation.measurement is not None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunState, "start_attempt", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune(study, search_of(study), folder, signing_key=LEAD)
    assert not (folder / "result.json").exists()
    found = tune(study, search_of(study), folder, signing_key=LEAD)
    assert found.is_evaluation_lost
    assert not tuned.is_evaluation_lost
    assert found.final.rounds == 3
    assert found.plan.prices == tuned.plan.prices
    assert not (folder / "final" / "evaluation" / "result.json").exists()
    assert (folder / "final" / "report.html").exists()
    assert json.loads((folder / "result.json").read_text()) == found.as_json()
    assert found.as_json()["final"]["is_evaluation_lost"]
    assert "its ε counts as spent, and it has no score." in (folder / "table.md").read_text("utf-8")
    assert "counts as spent" not in (tuned.folder / "table.md").read_text("utf-8")


@pytest.mark.slow
def test_stopped_search_continues_without_another_charge(tmp_path: Path) -> None:
    study, folder = searched(rounds=1), tmp_path / "search"
    tuning = search_of(study)
    plans: list[TuningPlan] = []
    stops: list[str] = []

    class Stop:
        """Stop before every other attempt, of which each search has six."""

        def __init__(self) -> None:
            self.calls = 0

        def __call__(self) -> bool:
            self.calls += 1
            return self.calls > 1

    for _ in range(20):
        try:
            found = tune(study, tuning, folder, stop=Stop(), planned=plans.append)
        except StoppedError as error:
            stops.append(str(error))
        else:
            break
    assert len(stops) >= 4
    assert all("the same command continues it" in told for told in stops)
    assert len({plan.digest for plan in plans}) == 1
    assert all(plan == plans[0] for plan in plans)
    for spent in charged(folder):
        assert spent.total() == 2 + 1
        assert SCOPE.epsilon(spent, DELTA) == pytest.approx(found.plan.prices[0].together, abs=1e-6)
    assert found.final.rounds == 1


KILLED = """
import sys
from pathlib import Path
from cohortium.tuning import tune
from tests.support.searches import search_of, searched

class Kill:
    def __init__(self, after):
        self.after, self.calls = after, 0
    def start_run(self):
        return self.told
    def told(self, event):
        self.calls += 1
        if self.calls == self.after:
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)

study = searched(retries=1, rounds=2, evaluation=None, holdout_fraction=0.0)
tune(study, search_of(study, score="public"), Path(sys.argv[1]), observers=[Kill(int(sys.argv[2]))])
"""


@pytest.mark.slow
def test_killed_search_repeats_no_charge(tmp_path: Path) -> None:
    folder = tmp_path / "search"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, [".", *PATHS]))}
    code = 1
    for after in (2, 4, 1000):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(folder), str(after)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        code = done.returncode
        assert code in (0, -signal.SIGKILL), done.stderr
    assert code == 0
    plan = read_plan(folder)
    assert plan is not None
    for spent in charged(folder):
        # A killed attempt is charged, and its retry is within the plan.
        assert 2 + 2 <= spent.total() <= 2 * (1 + 1) + (2 + 1)
        assert SCOPE.epsilon(spent, DELTA) <= plan.prices[0].together


@pytest.mark.slow
def test_search_is_bound_to_its_folder(tmp_path: Path) -> None:
    study, folder = searched(), tmp_path / "search"
    with pytest.raises(StoppedError):
        tune(study, search_of(study), folder, stop=lambda: True)
    other = search_of(study, studies=rates(study, 0.05, 0.3))
    with pytest.raises(RequestError, match="of other candidates or of other data"):
        tune(study, other, folder)
    (folder / "ledger.sqlite").unlink()
    with pytest.raises(RunError, match="gone, though attempts are charged there"):
        tune(study, search_of(study), folder)
    (folder / "search.json").write_text("{}", "utf-8")
    with pytest.raises(RecordError, match="is damaged"):
        tune(study, search_of(study), folder)
    (folder / "search.json").unlink()
    with pytest.raises(RequestError, match="is not empty; give another folder"):
        tune(study, search_of(study), folder)


@pytest.mark.slow
def test_public_images_score_without_any_charge(tmp_path: Path) -> None:
    study = searched(evaluation=None, holdout_fraction=0.0)
    told: list[CandidateScore] = []
    tuning = search_of(study, score="public", share=0.4)
    found = tune(study, tuning, tmp_path / "search", scored=told.append)
    assert "40 validation images" in found.plan.scored_on
    assert "no ε covers them" in found.plan.scored_on
    assert tuple(told) == found.choice.scores
    for score in told:
        result = json.loads((tmp_path / "search" / score.run / "result.json").read_text())
        assert score.value == result["history"][-1]["accuracy"]
        assert score.low is None
    with Ledger(tmp_path / "search" / "ledger.sqlite").read_transaction() as book:
        assert book.names() == [f"site {site}" for site in range(SITES)]
    blind = searched(
        dataset=Phantom(examples=60, validation=0), evaluation=None, holdout_fraction=0.0
    )
    with pytest.raises(cohortium.CohortiumError, match="no public validation images"):
        tune(blind, search_of(blind, score="public"), tmp_path / "blind")


@pytest.mark.slow
def test_candidate_that_fails_is_counted_and_not_chosen(tmp_path: Path) -> None:
    # No site sends an update with values beyond the privatizer's limit.
    trainer = FedAvg(batch_size=64)
    study = searched(rounds=1, evaluation=None, holdout_fraction=0.0, trainer=trainer)
    tuning = Tuning(studies=rates(study, 1e5, 0.001), rounds=1, score="public", share=0.5)
    found = tune(study, tuning, tmp_path / "search")
    failed, fine = found.choice.scores
    assert failed.value is None
    assert failed.failure
    assert found.choice.chosen == fine.candidate == "rate=0.001"
    assert found.plan.counted == 2


@pytest.mark.slow
def test_seeded_search_charges_each_candidate(tmp_path: Path) -> None:
    study = searched(evaluation=None, holdout_fraction=0.0, insecure_seeded_secrets=True)
    tuning = search_of(study, score="public")
    first = tune(study, tuning, tmp_path / "first")
    again = tune(study, tuning, tmp_path / "again")
    assert first.plan.prices[0].simulation
    assert first.choice == again.choice
    assert first.final.weights_sha256 == again.final.weights_sha256
    assert [spent.total() for spent in charged(tmp_path / "first")] == [2 + 3] * SITES


@pytest.mark.slow
def test_model_card_says_that_tuning_is_counted(tmp_path: Path) -> None:
    study = searched(
        dataset=Phantom(examples=90, validation=20, test=20), evaluation=None,
        holdout_fraction=0.0, rounds=2,
    )  # fmt: skip
    tuning = search_of(study, score="public")
    found = tune(study, tuning, tmp_path / "search")
    card = model_card(Classifier.open(tmp_path / "search" / "final"), Exported({}, None))
    assert "**Tuning is counted.** 2 candidates of 1 rounds came before this run" in card
    assert f"Chosen: `{found.choice.chosen}`" in card
    assert "is inside ε" in card
    second = model_card(
        Classifier.open(tmp_path / "search" / found.choice.scores[1].run), Exported({}, None)
    )
    assert "Its guarantee counts the candidates before it, 1, and none after" in second
    # The study of the final run is one that can be run, and its guarantee counts the search.
    federation = Federation.read(tmp_path / "search" / "final" / "study.toml")
    guarantee = federation.prepare().run_config.plan.guarantee
    assert guarantee is not None
    assert guarantee.epsilon == pytest.approx(found.plan.prices[0].together, abs=1e-9)
    assert attrs.evolve(federation, search=None).prepare().run_config.plan.guarantee != guarantee
