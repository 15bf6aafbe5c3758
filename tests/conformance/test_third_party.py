"""A stranger's package, installed beside ours, is found, run and checked like ours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.clean_environment import Python, clean_python

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parents[1] / "third_party" / "cohortium-example"

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


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Python:
    """A clean environment with the example installed in it."""
    workload = tmp_path_factory.mktemp("stranger")
    shutil.copytree(SOURCE, workload / "source", ignore=shutil.ignore_patterns("__pycache__"))
    found = clean_python(workload)
    found.install(workload / "source")
    return found


def test_third_party_plugin_is_listed_active(python: Python) -> None:
    records: list[dict[str, Any]] = json.loads(python.cohortium("plugins", "--json"))
    (example,) = (r for r in records if r["distribution"] == "cohortium-example")
    assert (example["name"], example["status"], example["version"]) == (
        "example",
        "active",
        "1.0.0",
    )
    assert len({offer["role"] for offer in example["offers"]}) == 8
    assert any(r["distribution"] == "cohortium" and r["status"] == "active" for r in records)


def test_study_using_third_party_plugin_runs(python: Python) -> None:
    (python.workload / "study.toml").write_text(STUDY, encoding="utf-8")
    options = ("--out", "record", "--observer", "counting", "--json")
    result = json.loads(python.cohortium("run", "study.toml", *options))
    assert result["accuracy"] > 0.8
    assert result["guarantee"] is None
    counts = json.loads((python.workload / "record" / "counts.json").read_text(encoding="utf-8"))
    assert set(counts.values()) == {6}
    written = (python.workload / "record" / "study.toml").read_text(encoding="utf-8")
    assert 'name = "any-order"' in written


def test_check_passes(python: Python) -> None:
    said = python.cohortium("check", "example")
    assert "✗" not in said
    assert said.count(" of example (cohortium-example 1.0.0)") == 8


def test_third_party_plugin_tests_pass(python: Python) -> None:
    said = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "source/tests")
    assert " passed" in said


def test_example_plugin_is_absent_from_current_environment(python: Python) -> None:
    del python
    probe = subprocess.run(
        [sys.executable, "-c", "import cohortium_example"], capture_output=True, check=False
    )
    assert probe.returncode != 0
