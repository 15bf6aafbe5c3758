"""`cohortium tune`: the price before the first round, refusals, and a search to its end."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from cohortium.crypto.randomness import Randomness
from cohortium.crypto.signing import SigningKey
from tests.support.command_server import command

STUDY = """
[tune]
rounds = 1
score = "public"
"trainer.learning_rate" = [0.05, 0.4]
{more}
[federation]
sites = 3
rounds = 2
threads = 1

[dataset]
name = "phantom"
examples = 90
validation = 20
test = 20

[model]
name = "cnn"
width = 4

[trainer]
name = "fedsgd"
sampling_rate = 1.0

[privatizer]
name = "gaussian"
epsilon = 6.0
delta = 1e-3

[aggregator]
name = "plain"
"""


def cohortium(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd)}
    return command(*arguments, cwd=cwd, environment=environment)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "study.toml").write_text(STUDY.format(more=""), "utf-8")
    return tmp_path


def test_plan_states_the_price_and_runs_nothing(folder: Path) -> None:
    done = cohortium("tune", "study.toml", "--share", "0.3", "--plan", cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    assert "2, 1 rounds each" in lines["candidates"]
    assert "20 validation images that the data set" in lines["scored on"]
    assert "declares to be public; no ε covers them" in lines["scored on"]
    assert "ε = 1.8" in lines["training images: search"]
    assert "ε = 6 at δ = 0.001 for one example" in lines["training images: both"]
    assert "needs a secret random number" in lines["final model alone"]
    assert {path.name for path in folder.iterdir()} == {"study.toml"}
    planned = cohortium("plan", "study.toml", "--json", cwd=folder)
    assert planned.returncode == 0, planned.stderr
    told = json.loads(planned.stdout)
    assert told["drawn"] == ["learning_rate=0.05", "learning_rate=0.4"]
    assert told["prices"][0]["together"] <= 6.0


def test_random_number_shows_the_bound_of_the_model(folder: Path) -> None:
    more = 'number = "poisson"\ncandidates = 3\n'
    (folder / "study.toml").write_text(STUDY.format(more=more), "utf-8")
    done = cohortium("tune", "study.toml", "--plan", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "a secret poisson number, of which ε counts" in done.stdout
    assert "training images: final model alone" in done.stdout
    assert "Papernot and Steinke" in done.stdout


@pytest.mark.slow
def test_search_runs_to_its_end(folder: Path) -> None:
    seeded = ("tune", "study.toml", "--set", "federation.seed=2")
    key = SigningKey.generate(Randomness.insecure_from_seed(1))
    key.create(folder / "lead.pem")
    done = cohortium(*seeded, "--quiet", "--sign-with", "lead.pem", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"signed  with the coordinator's key {key.public.hex()[:16]}…" in done.stdout
    first, second = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert first.startswith("[1] learning_rate=0.05: accuracy ")
    assert second.startswith("[2] learning_rate=0.4: accuracy ")
    assert "chosen  learning_rate=" in done.stdout
    assert "guarantee  ε = 6 at δ = 0.001" in done.stdout
    told = json.loads((folder / "runs" / "study-tuned" / "result.json").read_text("utf-8"))
    assert told["guarantee"]["epsilon"] <= 6.0
    again = cohortium(*seeded, cwd=folder)
    assert again.returncode == 2
    assert "is finished; its result is" in again.stderr


def test_missing_key_is_refused_before_the_search(folder: Path) -> None:
    done = cohortium("tune", "study.toml", "--sign-with", "lead.pem", cwd=folder)
    assert done.returncode == 2
    assert "cannot read the key lead.pem" in done.stderr
    assert done.stdout == ""
    assert {path.name for path in folder.iterdir()} == {"study.toml"}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("rounds_ = 3\n", "a search has the keys candidates, evaluation_share, number"),
        ("seeds = [1, 2]\n", "a search has the keys"),
        ('"trainer.momentun" = [0.9, 0.8]\n', "there is no such|has no such parameter"),
        ("share = 1.5\n", "share"),
        ('number = "zipf"\n', "number"),
        ("candidates = 9\n", "candidates = 9 is more than the 2 combinations"),
        ('"federation.seed" = [1, 2]\n', "cannot be called 'seed'"),
        ('"privatizer.epsilon" = [6.0, 5.0]\n', "all candidates share the study's budget"),
    ],
)
def test_impossible_search_is_one_sentence(folder: Path, more: str, told: str) -> None:
    (folder / "study.toml").write_text(STUDY.format(more=more), "utf-8")
    done = cohortium("tune", "study.toml", cwd=folder)
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("cohortium: ")
    assert any(each in line for each in told.split("|")), line
    assert {path.name for path in folder.iterdir()} == {"study.toml"}


def test_wrong_command_for_a_study_names_the_right_one(folder: Path) -> None:
    done = cohortium("run", "study.toml", cwd=folder)
    assert done.returncode == 2
    assert "search with `cohortium tune study.toml`" in done.stderr
    changed = cohortium("tune", "study.toml", "--set", "trainer.learning_rate=1", cwd=folder)
    assert changed.returncode == 2
    assert "[tune] varies trainer.learning_rate" in changed.stderr
    budget = cohortium("plan", "study.toml", "--epsilon", "3", cwd=folder)
    assert budget.returncode == 2
    assert "without a [tune]" in budget.stderr
    text = (folder / "study.toml").read_text("utf-8")
    (folder / "both.toml").write_text("[grid]\nseeds = [1]\n" + text, "utf-8")
    both = cohortium("tune", "both.toml", cwd=folder)
    assert "has a [grid] and a [tune]" in both.stderr
    (folder / "none.toml").write_text(text[text.index("[federation]") :], "utf-8")
    none = cohortium("tune", "none.toml", cwd=folder)
    assert none.returncode == 2
    assert "has no table [tune]" in none.stderr
