"""A stranger's package, installed beside ours, is found, run and checked like ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parents[1] / "third_party" / "cohortium-example"

COMMAND = "from cohortium.cli import main; main()"

STUDY = """
[federation]
sites = 3
rounds = 6
[dataset]
name = "squares"
[partitioner]
name = "alternating"
[model]
name = "linear"
[trainer]
name = "sign-sgd"
[privatizer]
name = "rounding"
[aggregator]
name = "committed"
[engine]
name = "any-order"
"""


class Python:
    """The interpreter of an environment of its own."""

    def __init__(self, path: Path, work: Path) -> None:
        self.path, self.work = path, work

    def __call__(self, *arguments: str) -> str:
        environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [str(self.path), *arguments],
            cwd=self.work,
            env={**environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stranger")


@pytest.fixture(scope="module")
def python(work: Path) -> Python:
    """A clean environment that sees this one's packages, with the example installed in it."""
    for needed in ("hatchling", "pip"):
        pytest.importorskip(needed, reason=f"{needed} is needed to build and install the example")
    shutil.copytree(SOURCE, work / "source", ignore=shutil.ignore_patterns("__pycache__"))
    venv.create(work / "env", with_pip=False)
    found = Python(work / "env" / ("Scripts" if os.name == "nt" else "bin") / "python", work)
    own = Path(found("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # `addsitedir` and not the bare path: an editable install of ours is a .pth file in there.
    parent = sysconfig.get_path("purelib")
    (own / "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n", "utf-8")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    found("-m", "pip", "install", *options, str(work / "source"))
    return found


def test_it_stands_beside_ours(python: Python) -> None:
    records: list[dict[str, Any]] = json.loads(python("-c", COMMAND, "plugins", "--json"))
    (example,) = (r for r in records if r["distribution"] == "cohortium-example")
    assert (example["name"], example["status"], example["version"]) == (
        "example",
        "active",
        "1.0.0",
    )
    assert len({offer["role"] for offer in example["offers"]}) == 8
    assert any(r["distribution"] == "cohortium" and r["status"] == "active" for r in records)


def test_a_study_of_its_parts_runs(python: Python) -> None:
    (python.work / "study.toml").write_text(STUDY, encoding="utf-8")
    options = ("--out", "record", "--observe", "counting", "--json")
    result = json.loads(python("-c", COMMAND, "run", "study.toml", *options))
    assert result["accuracy"] > 0.8
    assert result["guarantee"] is None
    counts = json.loads((python.work / "record" / "counts.json").read_text(encoding="utf-8"))
    assert counts == {"RunStarted": 1, "RoundFinished": 6, "RunFinished": 1}
    written = (python.work / "record" / "study.toml").read_text(encoding="utf-8")
    assert 'name = "any-order"' in written


def test_check_passes(python: Python) -> None:
    said = python("-c", COMMAND, "check", "example")
    assert "✗" not in said
    assert said.count(" of example (cohortium-example 1.0.0)") == 8


def test_its_own_tests_pass(python: Python) -> None:
    said = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "source/tests")
    assert " passed" in said


def test_it_is_installed_nowhere_else(python: Python) -> None:
    del python
    probe = subprocess.run(
        [sys.executable, "-c", "import cohortium_example"], capture_output=True, check=False
    )
    assert probe.returncode != 0
