"""The tutorial is followed to its end: its package is found, checked, tested, and run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cohortium.roles import ROLES
from tests.support.command_server import command

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```\w+\n# (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Reader:
    """Someone who has written down every file of the tutorial in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = os.pathsep.join(map(str, [folder / "src", ROOT / "core", ROOT / "plugins"]))
        page = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
        for name, text in BLOCK.findall(page):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, "utf-8")
        self.install(tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"])

    def install(self, project: dict[str, object]) -> None:
        """Write the metadata that pip would write; `test_scaffold.py` runs pip itself."""
        (points,) = project["entry-points"].values()  # type: ignore[attr-defined]
        info = self.folder / "src" / "cohortium_ward-0.1.0.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n"
        (info / "METADATA").write_text(metadata, "utf-8")
        lines = [f"{name} = {package}" for name, package in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[cohortium]", *lines]), "utf-8")

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": self.path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def cohortium(self, *arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": self.path}
        done = command(*arguments, cwd=self.folder, environment=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    found = Reader(tmp_path_factory.mktemp("ward"))
    found("images.py")
    return found


def test_tutorial_plugin_offers_every_role(reader: Reader) -> None:
    records = json.loads(reader("-m", "cohortium", "plugins", "--json"))
    (ward,) = (record for record in records if record["name"] == "ward")
    assert ward["status"] == "active", ward
    assert [offer["role"] for offer in ward["offers"]] == list(ROLES)


def test_tutorial_tests_pass(reader: Reader) -> None:
    said = reader("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert " passed" in said
    assert "skipped" not in said


def test_tutorial_study_matches_described_results(reader: Reader) -> None:
    result = json.loads(reader.cohortium("run", "study.toml", "--out", "record", "--json"))
    assert result["guarantee"]["unit"] == "site"
    assert result["guarantee"]["epsilon"] <= 100
    assert result["dropouts"] > 0
    lines = (reader.folder / "record" / "budget.txt").read_text("utf-8").splitlines()
    assert len(lines) == result["rounds"] == 20
    options = ("--set", "privatizer.name=none", "--out", "bare", "--json")
    bare = json.loads(reader.cohortium("run", "study.toml", *options))
    assert bare["accuracy"] == pytest.approx(0.5, abs=0.1)
    assert result["accuracy"] < bare["accuracy"]


def test_tutorial_code_passes_ruff(reader: Reader) -> None:
    reader("-m", "ruff", "check", "--isolated", ".")
    reader("-m", "ruff", "format", "--isolated", "--check", ".")
