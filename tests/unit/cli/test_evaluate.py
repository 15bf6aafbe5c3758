"""`cohortium evaluate`, and the evaluation that ends a run."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.command_server import command
from tests.support.study_files import PATHS, write_files

EVALUATED = [
    "--set", "federation.holdout_fraction=0.5", "--set", "evaluation.epsilon=40",
    "--set", 'evaluation.parts=["accuracy"]',
]  # fmt: skip


def cohortium(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    where = os.pathsep.join([str(cwd), *map(os.path.abspath, PATHS)])
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd), "PYTHONPATH": where}
    return command(*arguments, cwd=cwd, environment=environment)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_files(folder)
    done = cohortium("run", "study.toml", *EVALUATED, "--out", "record", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "told").write_text(done.stdout, "utf-8")
    return folder


def test_run_prints_the_main_score_and_its_price(trained: Path) -> None:
    told = (trained / "told").read_text("utf-8").splitlines()
    (score,) = [line for line in told if "sites' accuracy" in line]
    (price,) = [line for line in told if line.lstrip().startswith("evaluation ")]
    assert "(95 %: " in score
    assert "ε = 40 " in price
    assert price.endswith("for the test images of 2 sites")
    assert (trained / "record" / "evaluation" / "result.json").exists()


def test_finished_run_with_evaluation_is_not_resumed(trained: Path) -> None:
    done = cohortium("resume", "record", cwd=trained)
    assert (done.returncode, done.stderr) == (
        2, "cohortium: the run in record is finished; its result is record/result.json.\n"
    )  # fmt: skip


def test_evaluations_between_rounds_are_planned_and_printed(tmp_path: Path) -> None:
    write_files(tmp_path)
    asked = ["study.toml", *EVALUATED, "--set", "evaluation.every=1"]
    planned = cohortium("plan", *asked, cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert re.search(r"(?m)^evaluations +2, which one guarantee covers *$", planned.stdout)
    (told,) = json.loads(cohortium("plan", *asked, "--json", cwd=tmp_path).stdout)
    assert told["evaluation"]["releases"] == 2
    done = cohortium("run", *asked, "--out", "record", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, score, second = [
        line for line in done.stderr.splitlines() if line.startswith(("round", "evaluated"))
    ]
    assert first.startswith("round 1/2")
    assert score.startswith("evaluated at 2 sites after round 1: accuracy ")
    assert second.startswith("round 2/2")
    inner = cohortium("resume", "record/evaluation", cwd=tmp_path)
    assert inner.returncode == 2
    assert "continue with `cohortium resume record`" in inner.stderr


def test_evaluate_command_prints_estimates_and_guarantee(trained: Path) -> None:
    asked = ["evaluate", "record", "--epsilon", "0.01", "--by", "site", "--out", "again"]
    done = cohortium(*asked, cwd=trained)
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["score", "of", "value", "95", "%", "interval"]
    assert [row.split("  ")[0].rstrip() for row in rows[:3]] == ["accuracy"] * 3
    assert "site 1" in rows[2]
    assert "hidden by the noise" in done.stdout
    assert "guarantee: ε = 0.01 " in done.stdout
    assert "sites: 2 of 2; declared test images: 30" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("round 1/1")
    finished = cohortium(*asked, cwd=trained)
    assert finished.returncode == 2
    assert "is finished" in finished.stderr


def test_evaluate_command_prints_json_alone(trained: Path) -> None:
    done = cohortium(
        "evaluate", "record", "--part", "auc", "--json", "--out", "as-json", cwd=trained
    )
    assert (done.returncode, done.stderr) == (0, "")
    stored = json.loads((trained / "as-json" / "result.json").read_text())
    assert json.loads(done.stdout) == stored
    assert {each["metric"] for each in stored["measured"]["estimates"]} == {"auc"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone"], "gone"),
        (["record"], "record/evaluation is finished"),
        (["record"], "result.json; `cohortium evaluate` with --out makes"),
        (["record", "--epsilon", "-1", "--out", "x"], "the evaluation: 'epsilon' must be > 0"),
        (["record", "--part", "acuraccy", "--out", "x"], "did you mean accuracy"),
        (["record", "--by", "site", "--by", "site", "--out", "x"], "must name each once"),
        (["record", "--by", "age", "--out", "x"], "no column of groups 'age'"),
        (["record", "--study", "gone.toml", "--out", "x"], "gone.toml"),
        (["record", "--set", "federation.holdout_fraction=0.0", "--out", "x"], "no test images"),
    ],
)
def test_impossible_evaluation_is_one_sentence(
    trained: Path, arguments: list[str], words: str
) -> None:
    done = cohortium("evaluate", *arguments, cwd=trained)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert done.stdout == ""
    assert not (trained / "x").exists()


def test_study_without_evaluation_needs_options(tmp_path: Path) -> None:
    write_files(tmp_path)
    held = ["--set", "federation.holdout_fraction=0.5"]
    assert cohortium("run", "study.toml", *held, "--out", "r", cwd=tmp_path).returncode == 0
    refused = cohortium("evaluate", "r", cwd=tmp_path)
    assert refused.returncode == 2
    assert "has no [evaluation]" in refused.stderr
    done = cohortium("evaluate", "r", "--epsilon", "5", "--quiet", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
