"""Evaluation at the sites while the model is trained: sums, price, interruptions, a killed run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from cohortium import reporting
from cohortium.errors import RequestError, RunError, StoppedError
from cohortium.ledger.ledger import Ledger
from cohortium.plugin import SitesEvaluated
from cohortium.runs.evaluate import prepare_evaluation
from cohortium.runs.evaluation_forecast import forecast_evaluation
from cohortium.study.evaluation_study import evaluation_study
from cohortium.study.measurement import EvaluationPlan
from cohortium_fedsgd import FedSGD
from cohortium_gaussian import Gaussian
from cohortium_secagg import SecAgg
from tests.support.federations import FaultyEngine, RecordingObserver, tiny_federation
from tests.support.study_files import STUDY, write_files

if TYPE_CHECKING:
    from pathlib import Path

    from cohortium import Federation

SITES = 4
NOISE = Gaussian(epsilon=6.0, delta=1e-3)
PLAN = EvaluationPlan(every=1, parts=("accuracy",), privatizer=NOISE, retries=1)


def study(**more: Any) -> Federation:
    """A training without noise, so that its bits repeat, whose evaluations have real noise."""
    return tiny_federation(
        **{
            "sites": SITES,
            "rounds": 3,
            "threads": 1,
            "holdout_fraction": 0.4,
            "trainer": FedSGD(sampling_rate=1.0),
            "evaluation": PLAN,
            **more,
        }
    )


def charged(run: Path) -> list[int]:
    """Charged attempts at the evaluation by site."""
    with Ledger(run / "evaluation" / "ledger.sqlite").read_transaction() as book:
        return [
            sum(book.charge_counts(f"site {site}, test images").values()) for site in range(SITES)
        ]


def trained_rounds(run: Path) -> list[int]:
    told = json.loads((run / "evaluation" / "result.json").read_text())
    return [each["trained_rounds"] for each in told["measured_by_round"]]


@pytest.fixture(scope="module")
def plain_weights() -> str:
    return study(evaluation=None).run().weights_sha256


def test_evaluations_leave_the_training_as_it_was(plain_weights: str, tmp_path: Path) -> None:
    federation = study(
        rounds=3, evaluation=EvaluationPlan(every=2, parts=("accuracy",), privatizer=NOISE),
        aggregator=SecAgg(),
    )  # fmt: skip
    watch = RecordingObserver()
    result = federation.run(tmp_path / "run", observers=[watch])
    found = result.evaluation
    assert found is not None
    assert found.guarantee is not None
    assert result.weights_sha256 == plain_weights == found.weights_sha256
    assert [each.trained_rounds for each in found.measured_by_round] == [2, 3]
    assert len({event.measured for event in found.history}) == 2
    assert found.measured is not None
    assert found.measured.estimates == found.measured_by_round[-1].estimates
    assert charged(tmp_path / "run") == [2] * SITES
    # One ε covers both releases, so the noise is that of their composition.
    single = study(evaluation=EvaluationPlan(parts=("accuracy",), privatizer=NOISE))
    once = prepare_evaluation(single, single.evaluation).run_config.plan.guarantee  # type: ignore[arg-type]
    assert once is not None
    assert found.guarantee.epsilon <= NOISE.epsilon
    assert found.guarantee.noise_multiplier > 1.3 * once.noise_multiplier
    (event,) = watch.of(SitesEvaluated)
    assert (event.rounds, event.contributors) == (2, SITES)
    assert event.main == found.measured_by_round[0].estimates[0]
    assert event.guarantee_so_far.epsilon < found.guarantee.epsilon
    page = reporting.render([reporting.read(tmp_path / "run")])
    table = re.search(r'id="by-round".*?</table>', page, re.DOTALL)
    assert table is not None
    assert table.group().count('scope="row"') == 2
    assert "All 2 evaluations cost" in page


@pytest.mark.parametrize("every", [3, 60])
def test_every_above_the_rounds_is_one_evaluation(every: int) -> None:
    noise = {"privatizer": NOISE, "insecure_seeded_secrets": True}
    one, other = (
        study(**noise, evaluation=EvaluationPlan(every=every, parts=("accuracy",))).run()
        for every in (0, every)
    )
    assert one.evaluation is not None
    assert other.evaluation is not None
    assert one.evaluation.measured == other.evaluation.measured
    assert one.weights_sha256 == other.weights_sha256


def test_forecast_is_that_of_all_evaluations() -> None:
    federation = study()
    assert federation.evaluation is not None
    many = forecast_evaluation(prepare_evaluation(federation, federation.evaluation))
    once = attrs.evolve(federation.evaluation, every=0)
    single = forecast_evaluation(prepare_evaluation(federation, once))
    assert (many.releases, single.releases) == (3, 1)
    assert many.intervals[0].noise > 1.2 * single.intervals[0].noise


class Cut(Exception):  # noqa: N818 - a broken connection
    pass


@pytest.mark.parametrize("nth", [0, 1, 4])
def test_run_cut_at_any_exchange_reaches_the_same_weights(
    nth: int, plain_weights: str, tmp_path: Path
) -> None:
    def cut(exchange: int, site: int, reply: bytes) -> bytes | None:
        if (exchange, site) == (nth, SITES - 1):
            raise Cut
        return reply

    run = tmp_path / "run"
    with pytest.raises(Cut):
        study().run(run, engine=FaultyEngine(cut))
    study().resume(run)
    assert json.loads((run / "result.json").read_text())["weights_sha256"] == plain_weights
    assert trained_rounds(run) == [1, 2, 3]
    # Exchanges of training and evaluation alternate.  A retry takes the place of a lost attempt.
    assert charged(run) == [3 + nth % 2] * SITES


def test_too_few_sites_leave_out_an_earlier_evaluation(tmp_path: Path) -> None:
    def silent(exchange: int, site: int, reply: bytes) -> bytes | None:
        return None if exchange == 1 and site == 0 else reply

    plan = EvaluationPlan(every=1, parts=("accuracy",), privatizer=NOISE)
    federation = study(evaluation=plan, min_contributors=SITES)
    run = tmp_path / "run"
    with pytest.raises(RunError, match="round 1 failed"):
        federation.run(run, engine=FaultyEngine(silent))
    federation.resume(run)
    assert trained_rounds(run) == [2, 3]
    assert charged(run) == [3] * SITES


def test_stopped_evaluation_continues_with_its_training(tmp_path: Path) -> None:
    run, asked = tmp_path / "run", iter(range(100))
    with pytest.raises(StoppedError, match=r"cohortium resume \S*run`"):
        study().run(run, stop=lambda: next(asked) >= 1)
    with pytest.raises(RequestError, match="between the rounds of a run; continue with"):
        evaluation_study(study(), PLAN).resume(run / "evaluation")
    study().resume(run)
    assert trained_rounds(run) == [1, 2, 3]


def test_lost_folder_of_evaluations_is_named(tmp_path: Path) -> None:
    run, asked = tmp_path / "run", iter(range(100))
    with pytest.raises(StoppedError):
        study().run(run, stop=lambda: next(asked) >= 2)
    (run / "evaluation").rename(tmp_path / "gone")
    with pytest.raises(RunError, match="evaluation is gone"):
        study().resume(run)


NETWORK = '''
import os
from pathlib import Path

import torch
from torch import nn


class Net(nn.Sequential):
    """It waits at a gate in the evaluation that follows the first one."""

    def __init__(self, channels, classes):
        super().__init__(nn.Flatten(), nn.Linear(64 * channels, classes))

    def forward(self, images):
        gate, record = Path("gate"), Path("record/evaluation/weights/last.safetensors")
        if not torch.is_grad_enabled() and len(images) == 1 and gate.exists() and record.exists():
            gate.read_bytes()
        return super().forward(images)
'''


@pytest.mark.slow
def test_killed_process_goes_on_with_its_evaluation(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "gated.py").write_text(NETWORK)
    text = STUDY.replace('name = "cnn"\nwidth = 4', 'name = "module"\nmodule = "gated:Net"')
    text = text.replace("rounds = 2", "rounds = 3\nholdout_fraction = 0.5").replace(
        'name = "gaussian"\nepsilon = 50.0\ndelta = 1e-3\nclip_norm = 1.0', 'name = "none"'
    )
    text += (
        '[evaluation]\nevery = 1\nretries = 1\nparts = ["accuracy"]\n'
        '[evaluation.privatizer]\nname = "gaussian"\nepsilon = 50.0\ndelta = 1e-3\n'
    )
    (tmp_path / "study.toml").write_text(text, "utf-8")

    def command(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "cohortium", *arguments, "--quiet"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    undisturbed = command("run", "study.toml", "--out", "whole")
    _, errors = undisturbed.communicate(timeout=600)
    assert undisturbed.returncode == 0, errors
    os.mkfifo(tmp_path / "gate")
    process = command("run", "study.toml", "--out", "record")
    # The file opens once the process waits at the gate, within the second evaluation.
    with (tmp_path / "gate").open("wb"):
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=600)
    assert process.returncode == -signal.SIGKILL
    (tmp_path / "gate").unlink()
    again = command("resume", "record")
    _, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    whole, record = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "record")
    )
    assert record["weights_sha256"] == whole["weights_sha256"]
    assert trained_rounds(tmp_path / "record") == [1, 2, 3]
    with Ledger(tmp_path / "record" / "evaluation" / "ledger.sqlite").read_transaction() as book:
        counts = [sum(book.charge_counts(f"site {n}, test images").values()) for n in range(2)]
    # The first site had been charged, and had released nothing.
    assert counts == [4, 3]
