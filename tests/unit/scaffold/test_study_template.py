"""A first study: from a few answers to a file that runs."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import tomllib
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortium import Federation
from cohortium.cli import main
from cohortium.errors import StudyError
from cohortium.scaffold.study_template import Answers, customary_delta, render_study
from cohortium.study import study_file
from tests.support.command_server import command


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3
    images = (rng.integers(0, 60, (240, 12, 12)) + 60 * labels[:, None, None]).astype(np.uint8)
    path = tmp_path / 'own "best" \\ file.npz'
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return path


@pytest.mark.parametrize("epsilon", [None, 2.5])
@pytest.mark.parametrize("secagg", [True, False])
def test_generated_study_runs(
    npz: Path, tmp_path: Path, epsilon: float | None, secagg: bool
) -> None:
    answers = Answers(data=str(npz), sites=5, epsilon=epsilon, secagg=secagg)
    text, ready = render_study(answers)
    path = tmp_path / "study.toml"
    path.write_text(text, "utf-8")
    federation = attrs.evolve(Federation.read(path), rounds=2, threads=1)
    result = federation.run()
    assert (result.sites, result.rounds) == (5, 2)
    guarantee = ready.run_config.plan.guarantee
    assert (result.guarantee is None) == (guarantee is None) == (epsilon is None)
    if guarantee is not None:
        assert guarantee.epsilon == pytest.approx(2.5, rel=0.01)
        assert guarantee.delta == 1e-4
        assert not guarantee.warnings(240)
    assert (
        federation.aggregator.confidentiality(ready.run_config.federation_spec) is None
    ) != secagg
    tables = tomllib.loads(text)
    assert list(tables) == [name for name in study_file.TABLES if name in tables]
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert len(comments) > 10


def test_patients_and_centres_shape_the_study(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3
    path = tmp_path / "scans.npz"
    np.savez(
        path,
        train_images=rng.integers(0, 256, (240, 12, 12), np.uint8),
        train_labels=labels,
        train_patients=np.arange(240) // 2,
        train_clients=np.arange(240) // 40,
    )
    text, ready = render_study(Answers(data=str(path), sites=5, epsilon=2.5))
    assert tomllib.loads(text)["privatizer"]["unit"] == "patient"
    assert ready.run_config.plan.guarantee is not None
    assert ready.run_config.plan.guarantee.unit == "patient"
    assert not ready.run_config.plan.guarantee.warnings(120)
    assert "120 patients" in text
    assert '6 centres. With `name = "natural"`' in text
    natural = text.replace('name = "dirichlet"\nalpha = 0.5', 'name = "natural"')
    (tmp_path / "study.toml").write_text(natural, "utf-8")
    assert type(Federation.read(tmp_path / "study.toml").partitioner).__name__ == "Natural"


def test_single_images_of_patients_are_examples(npz: Path, tmp_path: Path) -> None:
    path = tmp_path / "single.npz"
    with np.load(npz) as arrays:
        np.savez(path, train_patients=np.arange(240), **arrays)
    text, _ = render_study(Answers(data=str(path), sites=5))
    assert "unit" not in tomllib.loads(text)["privatizer"]
    assert "centres" not in text


def test_epsilon_of_zero_is_no_open_study() -> None:
    with pytest.raises(StudyError, match="give a number above 0"):
        Answers(epsilon=0.0)


@given(st.integers(1, 10**9))
def test_suggested_delta_is_near_tenth_of_inverse(units: int) -> None:
    assert 0.0099 / units < customary_delta(units) < 0.1 / units


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    return told.err


def test_init_refusal_leaves_files_unchanged(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lesions").mkdir()
    before = set(tmp_path.iterdir())
    for arguments, words in (
        (["init"], "no terminal to ask them on"),
        (["init", "--yes", "--data", "gone.npz"], "there is no file"),
        (["init", "--yes", "--data", "npz"], "give the path of a file that ends in .npz"),
        (["init", "--yes", "--data", "bloodmnst"], "MedMNIST has no set 'bloodmnst'"),
        (["init", "--yes", "--data", "labels.csv"], "cohortium pack labels.csv -o labels.npz"),
        (["init", "--yes", "--data", "lesions"], "cohortium pack lesions -o lesions.npz"),
        (["init", "--yes", "--data", "gone/lesions/"], "cohortium pack gone/lesions/ -o lesions"),
        (["init", "--yes", "--data", str(npz), "--epsilon", "0"], "--epsilon 0: give 'none', or ε"),
        (["init", "--yes", "--data", "labels.csv", "--epsilon", "0"], "--epsilon 0: give 'none'"),
        (["init", "--yes", "--data", str(npz), "--epsilon", "low"], "give 'none', or ε"),
        (["init", "--yes", "--data", str(npz), "--epsilon", "-1"], "give 'none', or ε"),
        (["init", "--yes", "--data", str(npz), "--sites", "3"], "at least 4"),
        (["init", "--yes", "--data", str(npz), "--sites", "99"], "lower sites"),
    ):
        assert words in refused(arguments, capsys)
    assert set(tmp_path.iterdir()) == before
    (tmp_path / "study.toml").write_text("mine")
    assert "study.toml exists already" in refused(["init", "--yes"], capsys)
    assert (tmp_path / "study.toml").read_text() == "mine"


@pytest.mark.slow
def test_interactive_init_asks_four_questions(npz: Path, tmp_path: Path) -> None:
    person, side = pty.openpty()
    # What is no answer is asked for again, and what was answered is kept.
    os.write(person, f"no-such-set\n{npz.name}\n0\n4\nsome\nnone\nn\n".encode())
    done = subprocess.run(
        [sys.executable, "-m", "cohortium", "init", "mine.toml"],
        cwd=tmp_path, stdin=side, capture_output=True, text=True, check=False,
    )  # fmt: skip
    os.close(person)
    os.close(side)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("]: ") == 7
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["cohortium"] * 3
    assert "MedMNIST has no set 'no-such-set'" in done.stderr
    assert done.stdout.endswith("run it: cohortium run mine.toml\n")
    federation = Federation.read(tmp_path / "mine.toml")
    assert federation.sites == 4


@pytest.mark.slow
def test_the_default_answers_run_from_the_command_line(tmp_path: Path) -> None:
    small = [
        "--set", "dataset.examples=600", "--set", "dataset.validation=50",
        "--set", "dataset.test=80", "--set", "federation.rounds=2",
    ]  # fmt: skip
    for arguments in (["init", "--yes"], ["run", "study.toml", *small, "--out", "record"]):
        done = command(*arguments, cwd=tmp_path, environment=os.environ)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "record" / "result.json").exists()
