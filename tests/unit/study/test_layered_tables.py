"""Names first, values after: what choices and settings say is what runs, or an error."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortium import Federation, discover
from cohortium import grid as grids
from cohortium.errors import StudyError
from cohortium.study import study_file
from cohortium_descriptor import Descriptor
from cohortium_fedavg import FedProx
from cohortium_phantom import Phantom
from tests.support.command_line import PARTS, cohortium

BASE = f'\n[federation]\nsites = 4\nrounds = 1{PARTS}[privatizer]\nname = "none"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


def trainers(path: Path, *choices: str) -> list[Any]:
    catalog = discover()
    return [cell.federation(1, catalog).trainer for cell in grids.read(path, choices).cells()]


RATES = '"trainer.learning_rate" = [0.03, 0.1, 0.3]\n'
ALGORITHM = 'algorithm.prox = { trainer = { name = "fedprox", mu = 0.1 } }\n'


@pytest.mark.parametrize("axes", [RATES + ALGORITHM, ALGORITHM + RATES])
def test_value_axis_reaches_part_of_other_axis(tmp_path: Path, axes: str) -> None:
    path = write(tmp_path, f"[grid]\n{axes}{BASE}")
    assert trainers(path) == [FedProx(learning_rate=rate, mu=0.1) for rate in (0.03, 0.1, 0.3)]


SETTINGS = [
    "trainer.learning_rate=0.3", "trainer.name=fedprox", "trainer.mu=0.2", "model.width=4",
]  # fmt: skip


@settings(max_examples=24, deadline=None)
@given(st.permutations(SETTINGS))
def test_the_order_of_settings_changes_nothing(order: list[str]) -> None:
    tables = Federation.read(None, ["model.name=cnn", *order])
    assert tables.trainer == FedProx(learning_rate=0.3, mu=0.2)
    assert tables == Federation.read(None, [*reversed(order), "model.name=cnn"])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_nested_name_settings_apply_first(order: tuple[int, ...]) -> None:
    given_ = ["model.center_on.examples=30", "model.center_on=phantom", "model.whiten=0.5"]
    federation = Federation.read(None, [given_[n] for n in order])
    assert federation.model == Descriptor(center_on=Phantom(examples=30), whiten=0.5)


def test_a_setting_reaches_every_cell_or_is_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path, f"[grid]\n{ALGORITHM}algorithm.own = {{ trainer.local_epochs = 2 }}\n{BASE}"
    )
    rates = [trainer.learning_rate for trainer in trainers(path, "trainer.learning_rate=0.3")]
    assert rates == [0.3, 0.3]
    cells = grids.read(
        path, ["trainer.schedule=cosine", "trainer.local_steps=5", "model.wide=3"]
    ).cells()
    with pytest.raises(StudyError, match=r"algorithm=prox.*--set model\.wide=3: model 'cnn' has"):
        cells[0].federation(1)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (  # of two axes that set one key one would be a label alone
            RATES + "speed.slow = { trainer.learning_rate = 0.001 }\n",
            (
                r"learning_rate = 0\.03: trainer\.learning_rate = 0\.03 would not reach the study, "
                r"where .* speed = slow sets trainer\.learning_rate = 0\.001"
            ),
        ),
        (
            'one.a = { trainer.name = "fedprox" }\ntwo.b = { trainer.name = "fedsgd" }\n',
            r"one = a: trainer\.name = 'fedprox' would not reach the study, where .* two = b",
        ),
        (
            (
                "loss.a = { trainer.optimizer_options = { momentum = 0.5 } }\n"
                '"trainer.optimizer_options" = [1, 2]\n'
            ),
            r"loss = a: trainer\.optimizer_options\.momentum = 0\.5 would not reach the study",
        ),
        (
            RATES + "override = [{ match = { learning_rate = 0.1 }, set = "
            "{ trainer.learning_rate = 0.2 } }]\n",
            (
                r"learning_rate = 0\.1: trainer\.learning_rate = 0\.1 would not reach the study, "
                r"where .*grid\.override.* learning_rate=0\.1 sets"
            ),
        ),
        (  # a combination may replace what the choices that it names set, and no other
            (
                "speed.slow = { trainer.learning_rate = 0.001 }\nsize.s = { model.width = 3 }\n"
                'override = [{ match = { size = "s" }, set = { trainer.learning_rate = 0.2 } }]\n'
            ),
            r"speed = slow: trainer\.learning_rate = 0\.001 would not reach the study",
        ),
        ("when.a = { federation.seed = 3 }\n", r"a choice sets federation\.seed, which 'seeds'"),
    ],
)
def test_ineffective_grid_setting_error_names_it(tmp_path: Path, grid: str, words: str) -> None:
    path = write(tmp_path, f"[grid]\n{grid}{BASE}")
    for command in (["run", "--dry-run"], ["plan"]):
        with pytest.raises(StudyError, match=words):
            cohortium(command[0], str(path), *command[1:])


def test_override_replaces_settings_of_its_choices(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "[grid]\nnoise.own = { privatizer.clip_norm = 7.0 }\nsize = { s = { model.width = 3 } }\n"
        '[[grid.override]]\nmatch = { noise = "own", size = "s" }\n'
        'set = { privatizer.name = "none", model.width = 5 }\n'
        + BASE.replace('[privatizer]\nname = "none"\n', ""),
    )
    (cell,) = grids.read(path).cells()
    assert (cell.tables["privatizer"], cell.tables["model"]["width"]) == ({"name": "none"}, 5)


def test_two_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(
        StudyError, match=r"--set trainer\.optimizer_options={.*} sets|would not reach"
    ):
        Federation.read(
            None,
            ["trainer.optimizer_options.momentum=0.5", "trainer.optimizer_options={momentum=0.9}"],
        )
    with pytest.raises(StudyError, match=r"momentum=0\.5: .* would not reach the study, where"):
        Federation.read(
            None, ["trainer.optimizer_options.momentum=0.5", "trainer.optimizer_options=3"]
        )


def test_replaced_setting_is_reported() -> None:
    (told,) = study_file.ignored_keys(None, ["federation.sites=4", "federation.sites=5"])
    assert told == "--set federation.sites=4 is replaced by --set federation.sites=5."
    assert Federation.read(None, ["federation.sites=4", "federation.sites=5"]).sites == 5


@pytest.mark.parametrize(
    "axis",
    [
        '"trainer.learning_rate" = [1, 1.0]',
        "algorithm.a = { trainer.local_epochs = 1 }\nalgorithm.b = {}",  # 1 is the default
        (
            "algorithm.a = { trainer.local_epochs = 1, model.width = 3 }\n"
            "algorithm.b = { model.width = 3, trainer.local_epochs = 1 }"
        ),
    ],
)
def test_duplicate_grid_cells_are_refused(tmp_path: Path, axis: str) -> None:
    path = write(tmp_path, f"[grid]\n{axis}\n{BASE}")
    names = [cell.name for cell in grids.read(path).cells()]
    for command in (["run", "--dry-run"], ["run"], ["plan"]):
        with pytest.raises(StudyError, match=re.escape(" and ".join(names)) + " are one study"):
            cohortium(command[0], str(path), *command[1:])


def test_keys_ignored_by_choice_are_reported(tmp_path: Path) -> None:
    path = write(tmp_path, f"[grid]\nseeds = [1, 2]\n{ALGORITHM}{BASE}")
    words = f"algorithm = prox: learning_rate of [trainer] in {path} were for 'fedavg'"
    code, stdout, stderr = cohortium("run", str(path), "--dry-run", "--out", str(tmp_path / "out"))
    assert (code, stdout.count("to run")) == (0, 2)
    assert stderr.count(words) == 1
    assert cohortium("plan", str(path))[2].count(words) == 1
    assert words not in cohortium("run", str(path), "--dry-run", "--quiet")[2]
    # One that is given anew is not lost.
    assert (
        "learning_rate" not in cohortium("plan", str(path), "--set", "trainer.learning_rate=0.1")[2]
    )


def test_replaced_study_seed_is_reported(tmp_path: Path) -> None:
    text = BASE.replace("sites = 4", "sites = 4\nseed = 7")
    path = write(tmp_path, f"[grid]\nseeds = [1]\n{ALGORITHM}{text}")
    assert "its seeds take the place of federation.seed" in cohortium("plan", str(path))[2]
    path = write(tmp_path, f"[grid]\n{ALGORITHM}{text}")
    assert grids.read(path).seeds == (7,)


NETS = """
[grid]
seeds = [1, 2]
[grid.net]
good = { model.width = 3 }
bad = { model = { name = "module", module = "no_such_package:Net" } }
"""


def test_dry_run_names_refused_cell(tmp_path: Path) -> None:
    path, out = write(tmp_path, NETS + BASE), tmp_path / "out"
    code, stdout, stderr = cohortium("run", str(path), "--dry-run", "--out", str(out))
    assert code == 2
    assert [line.split()[0] for line in stdout.splitlines()] == ["to", "to", "refused", "refused"]
    assert stderr.splitlines()[-1].startswith(
        "cohortium: net=bad is refused: there is no module 'no_such"
    )
    assert not out.exists()
    assert cohortium("run", str(path), "--dry-run", "--only", "net=good")[0] == 0


def test_a_grid_is_planned_as_one_table(tmp_path: Path) -> None:
    text = NETS + BASE.replace('name = "none"', 'name = "gaussian"\nepsilon = 6.0\ndelta = 1e-4')
    path = write(tmp_path, text)
    code, stdout, stderr = cohortium("plan", str(path), "--epsilon", "3", "--epsilon", "6")
    assert code == 2
    assert "net=bad is refused" in stderr
    head, _, *rows = stdout.splitlines()
    assert head.startswith("| net | ε of the whole run | at δ |")
    assert [row.split(" | ")[0] for row in rows if row.startswith("|")] == ["| good", "| good"]
    code, stdout, _ = cohortium("plan", str(path), "--only", "net=good", "--json")
    (line,) = json.loads(stdout)
    assert (code, line["cell"]) == (0, {"net": "good"})
    assert line["outlook"]["guarantee"]["epsilon"] <= 6.0
