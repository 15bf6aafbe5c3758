"""The tutorial from DICOM files to a private run is followed to its end, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cohortium.study import toml
from tests.support.command_server import write_script

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial-dicom.md").read_text("utf-8")
BLOCK = re.compile(r"^```(\w+)\n(?:# (\S+)\n)?(.*?)^```", re.MULTILINE | re.DOTALL)


class Newcomer:
    """Someone who follows the page from top to bottom, and notes what each command says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder / "study", dict[str, str]()
        self.folder.mkdir()
        self.scripts = write_script(folder / "bin")
        for language, name, text in BLOCK.findall(PAGE):
            if name:
                (self.folder / name).write_text(text, "utf-8")
            elif language == "sh" and "pip install" not in text and "mkdir" not in text:
                self.said[text.strip()] = self.run(text)

    def run(self, commands: str) -> str:
        places = [str(self.scripts), str(Path(sys.executable).parent), os.environ["PATH"]]
        code = [str(ROOT / "core"), str(ROOT / "plugins")]
        done = subprocess.run(
            ["bash", "-e", "-c", commands],
            cwd=self.folder,
            env=os.environ | {"PATH": os.pathsep.join(places), "PYTHONPATH": os.pathsep.join(code)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, commands + done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    return Newcomer(tmp_path_factory.mktemp("chest"))


def test_dicom_tutorial_output_is_as_shown(newcomer: Newcomer) -> None:
    shown = [text for language, _, text in BLOCK.findall(PAGE) if language == "text"]
    said = "".join(newcomer.said.values())
    exact = [text for text in shown if "test accuracy" not in text]
    assert len(exact) == len(shown) - 1 == 3
    for text in exact:
        assert text in said
    assert newcomer.said["python make_files.py"] == "1400 files\n"


def test_dicom_tutorial_plans_a_dropout_as_it_says(newcomer: Newcomer) -> None:
    plans = [said for command, said in newcomer.said.items() if "plan study.toml" in command]
    told = [re.findall(r"max dropouts per round +(\d+)", said) for said in plans]
    assert told == [["0"], ["1"]]


def test_dicom_tutorial_run_is_private_and_accurate(newcomer: Newcomer) -> None:
    result, bare = (
        json.loads((newcomer.folder / name / "result.json").read_text("utf-8"))
        for name in ("first", "bare")
    )
    assert result["guarantee"]["unit"] == "patient"
    assert result["guarantee"]["epsilon"] <= 6.0
    assert result["accuracy"] > 0.9
    assert bare["accuracy"] > 0.9
    assert bare["guarantee"] is None
    for report in ("first/report.html", "report.html", "data.html"):
        assert (newcomer.folder / report).stat().st_size > 10_000


def test_deployment_repeats_the_simulated_study(newcomer: Newcomer) -> None:
    simulated, deployed = (
        toml.read(newcomer.folder / name, what="the study")
        for name in ("study.toml", "deployment.toml")
    )
    differing = {"dataset", "partitioner", "data", "engine"}
    assert {k: v for k, v in simulated.items() if k not in differing} == {
        k: v for k, v in deployed.items() if k not in differing
    }
