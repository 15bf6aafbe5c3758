"""A class in a file beside the study: found by whatever makes a network of that study."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cohortium import Federation, grid
from cohortium.errors import NetworkError, RequestError, StoppedError
from cohortium.inference.classifier import Classifier
from cohortium.study import toml
from cohortium_module import Module
from tests.support.study_files import PATHS, STUDY, write_files

NET = """
import random

from torch import nn

from helpers import WIDTH

assert random.random() < 1


class Net(nn.Sequential):
    def __init__(self, channels, classes):
        super().__init__(nn.Flatten(), nn.Linear(64 * channels, WIDTH), nn.Linear(WIDTH, classes))
"""
OWN = STUDY.replace('name = "cnn"\nwidth = 4', 'name = "module"\nmodule = "mynets:Net"')
OWN = OWN.replace('path = "data.npz"', 'path = "DATA"')


def write(folder: Path, *, width: int = 5) -> Path:
    """A study in `folder`, with its class, and files called as Python's own modules are."""
    folder.mkdir(parents=True, exist_ok=True)
    write_files(folder)
    (folder / "mynets.py").write_text(NET)
    (folder / "helpers.py").write_text(f"WIDTH = {width}\n")
    for name in ("random", "colorsys", "numpy", "torch"):
        (folder / f"{name}.py").write_text("raise AssertionError('a file shadows a module')\n")
    path = folder / "study.toml"
    path.write_text(OWN.replace("DATA", str(folder / "data.npz")))
    return path


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, in which nothing is found; what was imported is forgotten."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    forget()
    yield tmp_path / "elsewhere"
    forget()


def forget() -> None:
    for name in ("mynets", "helpers", "colorsys"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_resume_and_predict_from_another_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "mine")
    before = (list(sys.path), list(sys.meta_path))
    asked = iter([False, True])
    with pytest.raises(StoppedError):
        Federation.read(path).run("run", stop=lambda: next(asked))
    assert (sys.path, sys.meta_path) == before
    import colorsys

    assert "mine" not in str(colorsys.__file__)
    recorded = toml.read(Path("run/study.toml"), what="the study")
    assert recorded["model"]["folder"] == str(tmp_path / "mine")
    record = Path("run").absolute()
    (tmp_path / "third").mkdir()
    os.chdir(tmp_path / "third")
    forget()
    assert Federation.read(record / "study.toml").resume(record).rounds == 2
    forget()
    assert Classifier.open(record).rounds == 2


def test_two_studies_load_their_own_modules(tmp_path: Path) -> None:
    one, other = (
        Federation.read(write(tmp_path / name, width=w)) for name, w in (("a", 3), ("b", 7))
    )
    for _ in range(2):
        for federation, width in ((one, 3), (other, 7)):
            assert federation.prepare().parameters == 64 * width + width + width * 3 + 3


def test_grid_cells_load_local_module(tmp_path: Path) -> None:
    path = write(tmp_path / "mine")
    text = path.read_text() + '\n[grid.net]\nsmall = { model.name = "cnn" }\n'
    text += 'own = { model = { name = "module", module = "mynets:Net" } }\n'
    (tmp_path / "mine" / "cells.toml").write_text(text)
    cells = grid.read(tmp_path / "mine" / "cells.toml").cells()
    assert [cell.federation(1).prepare().parameters > 0 for cell in cells] == [True, True]


def test_nested_part_records_study_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "mine")
    settings = ["model.name=pretrained", "model.images=phantom"]
    settings += ['model.network={name="module", module="mynets:Net"}']
    federation = Federation.read(path, settings)
    assert federation.model.network.folder == str(tmp_path / "mine")  # type: ignore[attr-defined]


def test_study_without_file_searches_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    federation = Federation.read(None, ["model.name=module", "model.module=mynets:Net"])
    assert federation.model == Module(module="mynets:Net")
    assert federation.model.folder == str(tmp_path / "mine")


@pytest.mark.slow
def test_another_process_makes_the_same_network(tmp_path: Path) -> None:
    ready = Federation.read(write(tmp_path / "mine")).prepare()
    code = (
        "import pickle, sys\nfrom cohortium import parameters\n"
        "print(parameters.sha256(pickle.load(sys.stdin.buffer).network()))"
    )
    where = os.pathsep.join(map(os.path.abspath, PATHS))
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        input=pickle.dumps(ready.run_config), env=os.environ | {"PYTHONPATH": where},
        capture_output=True, check=True,
    )  # fmt: skip
    from cohortium import parameters

    assert done.stdout.decode().strip() == parameters.sha256(ready.run_config.network())


@pytest.mark.slow
def test_command_finds_module_from_other_directory(tmp_path: Path) -> None:
    path = write(tmp_path / "mine")
    where = os.pathsep.join(map(os.path.abspath, PATHS))

    def cohortium(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "cohortium", *arguments],
            env=os.environ | {"PYTHONPATH": where}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    cohortium("run", str(path), "--quiet", "--out", "run")
    called = cohortium("predict", "run", str(tmp_path / "mine" / "data.npz"))
    assert called.count("\n") == 13


def test_missing_module_error_names_places_and_remedy(tmp_path: Path) -> None:
    path = write(tmp_path / "mine")
    with pytest.raises(
        NetworkError, match=r"no module 'mynet' among .*put mynet.py next to the st"
    ):
        Federation.read(path, ["model.module=mynet:Net"]).prepare()
    gone = Module(module="mynet:Net", folder=str(tmp_path / "gone"))
    with pytest.raises(NetworkError, match=r"'mynet' in .*gone, where the study lies, or"):
        gone.build(Federation.read(path).prepare().run_config.spec, 1)


def test_module_hidden_by_installed_module_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "mine")
    with pytest.raises(NetworkError, match=r"random.* has no 'Net'; .*mine/random.py is hidden by"):
        Federation.read(path, ["model.module=random:Net"]).prepare()


def test_study_folder_with_undecodable_name_is_refused(tmp_path: Path) -> None:
    try:
        path = tmp_path / os.fsdecode(b"no\xfftext") / "study.toml"
        path.parent.mkdir()
    except OSError:
        pytest.skip("the file system takes text alone")
    path.write_text(OWN.replace("DATA", "data.npz"))
    (path.parent / "mynets.py").write_text(NET)
    with pytest.raises(RequestError, match="is no text in this locale"):
        Federation.read(path)


@pytest.mark.slow
def test_torchvision_build_mismatch_error_names_remedy(tmp_path: Path) -> None:
    """A stand-in that fails as a torchvision for CUDA does beside a torch without."""
    package = tmp_path / "stood" / "torchvision"
    package.mkdir(parents=True)
    source = "raise RuntimeError('operator torchvision::nms does not exist')\n"
    (package / "__init__.py").write_text(source)
    code = (
        "import sys\nfrom cohortium.plugin import DataSpec, Multiclass\n"
        "from cohortium_module import Module\n"
        "spec = DataSpec(channels=3, size=(8, 8), task=Multiclass(('a', 'b')), examples=9)\n"
        "try:\n    Module(module='torchvision.models:resnet18').build(spec, 1)\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    where = os.pathsep.join([str(tmp_path / "stood"), *map(os.path.abspath, PATHS)])
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=os.environ | {"PYTHONPATH": where}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("NetworkError 'torchvision.models' cannot be imported: Runtime")
    assert "are not of one build" in done.stdout
    assert "PyTorch's page on installation" in done.stdout
    assert done.stdout.count("\n") == 1
