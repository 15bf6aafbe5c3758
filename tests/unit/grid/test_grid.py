"""Grids: cells and names, going on, failures, tables, and the difference of two cells."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cohortium import grid as grids
from cohortium import reporting
from cohortium.errors import (
    CohortiumError,
    DataError,
    RecordError,
    RequestError,
    StoppedError,
    StudyError,
)
from cohortium.grid.paired import bootstrap
from cohortium.inference.classifier import Classifier
from cohortium.runs.evaluate import final_weights
from cohortium.runs.result import LAST, predictions_of
from cohortium.runs.saved_weights import read_weights
from tests.support.command_line import PARTS, cohortium
from tests.support.federations import tiny_federation

STUDY = "\n[federation]\nrounds = 1\nthreads = 1" + PARTS

GRID = """
[grid]
seeds = [1, 2]
"federation.sites" = [4, 5]
[grid.privacy.off]
privatizer.name = "none"
[grid.privacy.on]
privatizer.epsilon = 6.0
"""


def write(folder: Path, text: str, name: str = "small.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_cells_are_every_combination_in_the_files_order(tmp_path: Path) -> None:
    grid = grids.read(write(tmp_path, GRID + STUDY))
    cells = grid.cells()
    assert [cell.name for cell in cells] == [
        "sites=4,privacy=off", "sites=4,privacy=on", "sites=5,privacy=off", "sites=5,privacy=on",
    ]  # fmt: skip
    assert [cell.federation(7).sites for cell in cells] == [4, 4, 5, 5]
    assert cells[0].federation(7).seed == 7
    assert cells[0].tables["privatizer"] == {"name": "none"}
    assert cells[1].tables["privatizer"]["clip_norm"] == 7.0


def test_runs_with_equal_models_share_one(tmp_path: Path) -> None:
    widths = '[grid]\n"model.width" = [4, 8]\n"federation.sites" = [4, 5]\nseeds = [1, 2]\n'
    runs = grids.plan(grids.read(write(tmp_path, widths + STUDY)), tmp_path / "out")
    models = {run.name: run.federation.model for run in runs}
    assert len(models) == 8
    assert len({id(model) for model in models.values()}) == 2
    for name, model in models.items():
        assert f"width={getattr(model, 'width', 0)}" in name


def test_excluded_combinations_give_no_cell(tmp_path: Path) -> None:
    exclude = '[grid]\nexclude = [{ sites = 4, privacy = "off" }, { sites = 5, privacy = "on" }]\n'
    grid = grids.read(write(tmp_path, exclude + GRID.replace("[grid]\n", "", 1) + STUDY))
    assert [cell.name for cell in grid.cells()] == ["sites=4,privacy=on", "sites=5,privacy=off"]
    flips = '[grid]\n"trainer.flips" = [true, false]\nexclude = [{ flips = true }]\n'
    (cell,) = grids.read(write(tmp_path, flips + STUDY)).cells()
    assert cell.name == "flips=false"


def test_override_sets_keys_for_matching_combination(tmp_path: Path) -> None:
    joint = """
[[grid.override]]
match = { sites = 5, privacy = "on" }
set = { privatizer.clip_norm = 3.5 }
"""
    path = write(tmp_path, GRID + joint + STUDY)
    clips = [cell.tables["privatizer"].get("clip_norm") for cell in grids.read(path).cells()]
    assert clips == [None, 7.0, None, 3.5]
    with pytest.raises(StudyError, match=r"the grid varies privatizer\.clip_norm"):
        grids.read(path, ["privatizer.clip_norm=2.0"])


def test_filters_union_within_axis_intersect_across_axes(tmp_path: Path) -> None:
    grid = grids.read(write(tmp_path, GRID + STUDY))
    chosen = grid.select(["sites=4", "sites=5", "privacy=on", "seed=2"])
    assert [(cell.name, seed) for cell, seed in chosen] == [
        ("sites=4,privacy=on", 2), ("sites=5,privacy=on", 2),
    ]  # fmt: skip


def test_overrides_reach_cells_except_grid_axes(tmp_path: Path) -> None:
    path = write(tmp_path, GRID + STUDY)
    cells = grids.read(path, ["model.width=3", "federation.rounds=2"]).cells()
    assert {(c.tables["model"]["width"], c.tables["federation"]["rounds"]) for c in cells} == {
        (3, 2)
    }
    for setting in ("federation.sites=3", "federation.seed=3", "privatizer.epsilon=1.0"):
        with pytest.raises(StudyError, match="the grid varies"):
            grids.read(path, [setting])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("[grid]\nseeds = []", "different whole numbers"),
        ("[grid]\nseeds = [1, 1]", "different whole numbers"),
        ("[grid]\nseeds = [true]", "different whole numbers"),
        ('[grid]\nimages = "train"', '"test" or "validation"'),
        (
            '[grid]\nimages = "validation"\n"federation.evaluate_every" = [0, 1]',
            "evaluate_every = 0 never scores",
        ),
        ("[grid]\nsites = [1, 2]", 'write the key as "table.key"'),
        ('[grid]\n"federation.sites" = []', "a list of numbers or strings"),
        ('[grid]\n"federation.observers" = [["events"]]', "need a name each"),
        ('[grid]\n"federation.sites" = [4, 4]', "two of its choices have one name"),
        ('[grid]\n"federation.seed" = [1, 2]', "seeds go into"),
        ("[grid.privacy]\noff = 1", "a choice is a table"),
        ("[grid]\nprivacy = 3", "a list of values, or a table"),
        ("[grid.privacy.on]\nprivatiser.epsilon = 1.0", "no [privatiser]; did you mean privatiz"),
        ("grid = 3", "must be a table"),
        ("[grid]\nexclude = 3", "a list of tables"),
        ("[grid]\nexclude = [{ sites = 4 }]", "there is no sites = 4"),
        ("[grid]\noverride = [{ sites = 4 }]", "must have two tables"),
        (
            "[[grid.override]]\nmatch = { sites = 4 }\nset = { model.width = 3 }",
            "there is no sites = 4",
        ),
        (
            "\n".join(["[grid]", *(f'"model.k{n}" = {list(range(11))}' for n in range(4))]),
            "more than 10000",
        ),
    ],
)
def test_invalid_grid_is_refused_in_one_sentence(tmp_path: Path, table: str, words: str) -> None:
    with pytest.raises(StudyError) as caught:
        grids.read(write(tmp_path, table)).cells()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_select_takes_whole_key(tmp_path: Path) -> None:
    grid = grids.read(write(tmp_path, GRID + STUDY))
    assert grid.select(["federation.sites=4"]) == grid.select(["sites=4"])
    with pytest.raises(RequestError, match=r"has no 'model.sites' there; did you mean sites"):
        grid.select(["model.sites=4"])


@pytest.mark.parametrize(
    ("only", "words"),
    [
        ("sites", "axis=choice"),
        ("site=4", "did you mean sites"),
        ("sites=6", "there are 4, 5"),
    ],
)
def test_a_filter_that_names_nothing_is_refused(tmp_path: Path, only: str, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        grids.read(write(tmp_path, GRID + STUDY)).select([only])
    assert words in str(caught.value)


def test_dry_run_lists_cells_and_writes_nothing(tmp_path: Path) -> None:
    path, out = write(tmp_path, GRID + STUDY), tmp_path / "out"
    code, stdout, _ = cohortium("run", str(path), "--out", str(out), "--dry-run")
    assert code == 0
    assert stdout.count("to run") == 8
    assert not out.exists()


@pytest.mark.slow
def test_grid_resumes_unfinished_cells(tmp_path: Path) -> None:
    path, out = write(tmp_path, GRID + STUDY), tmp_path / "out"
    run = ["run", str(path), "--out", str(out), "--quiet", "--only", "privacy=off"]
    code, stdout, stderr = cohortium(*run, "--only", "sites=4")
    assert code == 0, stderr
    assert stdout.startswith("| sites | privacy | accuracy |")
    first = out / "sites=4,privacy=off" / "seed-1"
    before = (first / "result.json").stat().st_mtime_ns
    cut_short = out / "sites=5,privacy=off" / "seed-2"
    cell = next(c for c in grids.read(path).cells() if c.name == cut_short.parent.name)
    with pytest.raises(StoppedError):
        cell.federation(2).run(cut_short, stop=lambda: True)
    assert "unfinished  sites=5,privacy=off seed 2" in cohortium(*run, "--dry-run")[1]
    code, stdout, stderr = cohortium(*run)
    assert code == 0, stderr
    assert stderr.count("already finished") == 2
    assert (cut_short / "result.json").exists()
    assert (first / "result.json").stat().st_mtime_ns == before
    # The table on disk leads to each run's page.
    links = re.findall(r"\(<(.+?)>\)", (out / "table.md").read_text("utf-8"))
    assert links == [
        f"sites={sites},privacy=off/seed-{seed}/report.html" for sites in (4, 5) for seed in (1, 2)
    ]
    assert all("<html" in (out / link).read_text("utf-8") for link in links)
    assert "report.html" not in stdout
    with pytest.raises(
        RecordError, match=r"holds a grid; give the folder of one of its runs, such as .*seed-1\.$"
    ):
        reporting.read(out)
    # The table is of everything that is there, in all three forms.
    assert stdout.count("| off |") == 2
    lines = list(csv.DictReader(io.StringIO((out / "table.csv").read_text())))
    runs = list(csv.DictReader(io.StringIO((out / "runs.csv").read_text())))
    assert [line["seeds"] for line in lines] == ["2", "2"]
    for line in lines:
        each = [float(r["accuracy"]) for r in runs if r["sites"] == line["sites"]]
        assert float(line["accuracy_mean"]) == pytest.approx(np.mean(each))
        assert float(line["accuracy_sd"]) == pytest.approx(np.std(each, ddof=1))
    assert {len(r["weights_sha256"]) for r in runs} == {64}
    assert ET.parse(out / "plot.svg").getroot().tag.endswith("svg")


def test_a_folder_with_another_study_is_left_alone(tmp_path: Path) -> None:
    path, out = write(tmp_path, '[grid]\n"federation.sites" = [4]\n' + STUDY), tmp_path / "out"
    assert cohortium("run", str(path), "--out", str(out), "--quiet")[0] == 0
    record = out / "sites=4" / "seed-1" / "result.json"
    before = record.read_bytes()
    with pytest.raises(RequestError, match="holds something else"):
        cohortium("run", str(path), "--out", str(out), "--set", "model.width=3")
    assert record.read_bytes() == before
    (out / "sites=4" / "seed-1" / "study.toml").write_text("not a study")
    with pytest.raises(RequestError, match="holds something else"):
        cohortium("run", str(path), "--out", str(out))


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"rounds": 1}'])
def test_damaged_result_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    grid = grids.read(write(tmp_path, '[grid]\n"federation.sites" = [4]\n' + STUDY), [])
    folder = tmp_path / "out" / "sites=4" / "seed-1"
    folder.mkdir(parents=True)
    (folder / "result.json").write_bytes(content)
    with pytest.raises(CohortiumError, match=r"result\.json is damaged"):
        grids.rows(grid, tmp_path / "out")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    tiny_federation(rounds=1, sites=2).run(folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize("seed", ['"one"', "inf", "nan", "1e999", "-1", "1.5", "true"])
def test_foreign_seed_in_a_record_is_one_sentence(run: Path, seed: str) -> None:
    study = tomllib.loads((run / "study.toml").read_text())
    study["federation"]["seed"] = tomllib.loads(f"seed = {seed}")["seed"]
    (run / "study.toml").write_text(tomli_w.dumps(study))
    with pytest.raises(
        StudyError, match=r"study\.toml \[federation\]: seed must be a whole number"
    ):
        grids.compare(run, run)


@pytest.mark.parametrize(
    "change",
    [
        {"rounds": "many"}, {"rounds": None}, {"rounds": 1.5}, {"rounds": 10**400},
        {"max_upload_bytes": 10**30}, {"history": [{"accuracy": 10**400}]}, {"data": 3},
        {"history": [{"accuracy": "high"}]}, {"seconds": {"total": "long"}},
    ],
)  # fmt: skip
def test_foreign_number_in_a_result_is_one_sentence(
    run: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    place = run / "result.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | change))
    with pytest.raises(RecordError, match=r"result\.json is damaged"):
        grids.compare(run, run)
    with pytest.raises(RecordError, match=r"result\.json is damaged"):
        reporting.write([run])
    grid = grids.read(write(tmp_path, '[grid]\n"federation.sites" = [4]\n' + STUDY))
    shutil.copytree(run, tmp_path / "out" / "sites=4" / "seed-1")
    with pytest.raises(RecordError, match=r"result\.json is damaged"):
        grids.rows(grid, tmp_path / "out")


def test_result_without_rounds_has_no_validation_metric(run: Path, tmp_path: Path) -> None:
    place = run / "result.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"history": []}))
    text = '[grid]\nimages = "validation"\n"federation.sites" = [4]\n'
    grid = grids.read(write(tmp_path, text + STUDY))
    shutil.copytree(run, tmp_path / "out" / "sites=4" / "seed-1")
    (row,) = grids.rows(grid, tmp_path / "out")
    assert row.summary("accuracy") is None


@pytest.mark.parametrize("notes", [{}, {"rounds": "one"}, {"rounds": "-1"}, {"rounds": "1" * 400}])
def test_weights_with_foreign_notes_are_one_sentence(run: Path, notes: dict[str, str]) -> None:
    tensors, _ = read_weights(run / LAST)
    save_file(tensors, run / LAST, metadata=notes or None)
    with pytest.raises(DataError, match="does not say after which round"):
        Classifier.open(run)
    with pytest.raises(DataError, match="does not say after which round"):
        final_weights(run)


FAILING = """
[grid.rate]
good = { trainer.learning_rate = 0.01 }
bad = { trainer.learning_rate = 1e6, trainer.optimizer_options.weight_decay = 1e6 }
fine = { trainer.learning_rate = 0.02 }
"""


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_failing_cell_is_reported_and_others_finish(tmp_path: Path, jobs: int) -> None:
    text = FAILING + STUDY + '[privatizer]\nname = "none"\n'
    path, out = write(tmp_path, text), tmp_path / "out"
    run = ["run", str(path), "--out", str(out), "--quiet", "--jobs", str(jobs)]
    code, stdout, stderr = cohortium(*run)
    assert code == 1
    assert stderr.splitlines()[-1].startswith("cohortium: rate=bad seed 1 failed: round 1 failed")
    assert "| good |" in stdout
    assert "| fine |" in stdout
    assert "| bad |" not in stdout
    code, _, stderr = cohortium(*run)
    assert code == 1
    assert stderr.count("already finished") == 2


def test_one_study_takes_no_options_of_grids(tmp_path: Path) -> None:
    path = write(tmp_path, STUDY)
    for option in (["--only", "sites=3"], ["--jobs", "2"], ["--dry-run"]):
        with pytest.raises(RequestError, match=r"with a \[grid\]"):
            cohortium("run", str(path), *option)
    with pytest.raises(RequestError, match="is a grid of studies"):
        cohortium("audit", str(write(tmp_path, GRID + STUDY)))
    path = write(tmp_path, STUDY)
    with pytest.raises(RequestError, match=r"with a \[grid\]"):
        cohortium("plan", str(path), "--only", "sites=3")


def test_search_scores_validation_images_only(tmp_path: Path) -> None:
    text = '[grid]\nimages = "validation"\n"federation.sites" = [4]\n' + STUDY
    path, out = write(tmp_path, text), tmp_path / "out"
    code, stdout, _ = cohortium("run", str(path), "--out", str(out), "--quiet", "--json")
    assert code == 0
    result = json.loads((out / "sites=4" / "seed-1" / "result.json").read_text())
    (line,) = json.loads(stdout)
    assert line["images"] == "validation"
    assert line["accuracy_mean"] == result["history"][-1]["accuracy"]
    assert line["auc_mean"] == result["history"][-1]["auc"] != result["scores"]["metrics"]["auc"]


@pytest.mark.slow
def test_predictions_are_kept_and_compared(tmp_path: Path) -> None:
    path, out = write(tmp_path, GRID + STUDY), tmp_path / "out"
    assert cohortium("run", str(path), "--out", str(out), "--quiet", "--only", "sites=4")[0] == 0
    off, on = out / "sites=4,privacy=off", out / "sites=4,privacy=on"
    result = json.loads((off / "seed-1" / "result.json").read_text())
    said = predictions_of(off / "seed-1")
    assert said.values.shape == (40, 8)
    assert said.scores.main == result["scores"]["metrics"]["accuracy"]
    forth, back = grids.compare(off, on)[0], grids.compare(on, off)[0]
    assert forth.mean == pytest.approx(-back.mean)
    assert (forth.seeds, forth.images) == ((1, 2), 40)
    assert forth.low <= forth.mean <= forth.high
    same = grids.compare(off, off)[0]
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    code, stdout, _ = cohortium("compare", str(off / "seed-1"), str(on))
    assert code == 0
    assert "1 seed, 40 images" in stdout
    for wrong, words in ((tmp_path / "none", "does not exist"), (tmp_path, "holds")):
        with pytest.raises(RequestError, match=words):
            grids.compare(off, wrong)
    (on / "seed-1" / "simulation" / "predictions.npz").write_bytes(b"PK damaged")
    with pytest.raises(RequestError, match="is damaged"):
        grids.compare(off, on)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.floats(0.0, 0.2))
def test_bootstrap_interval_contains_mean_difference(seed: int, seeds: int, gain: float) -> None:
    rng = np.random.default_rng(seed)
    labels = np.arange(300) % 3
    first = rng.random((seeds, 300)) < 0.6 + gain
    second = rng.random((seeds, 300)) < 0.6
    gains = first.astype(float) - second
    found = bootstrap(gains, labels, rng, draws=400)
    mean, low, high = found["accuracy"]
    assert mean == pytest.approx(gains.mean())
    assert low <= mean <= high
    assert found["balanced accuracy"][0] == pytest.approx(mean)  # classes of one size


def test_bootstrap_interval_width_matches_theory() -> None:
    """With one seed it is the paired test's: 1.96 standard errors each way."""
    rng = np.random.default_rng(3)
    gains = rng.choice([-1.0, 0.0, 1.0], p=[0.05, 0.8, 0.15], size=(1, 949))
    _, low, high = bootstrap(gains, np.arange(949) % 8, rng)["accuracy"]
    expected = 2 * 1.96 * gains.std() / np.sqrt(949)
    assert high - low == pytest.approx(expected, rel=0.04)


def test_seeds_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    labels = np.arange(200) % 2
    alike = np.tile(rng.choice([0.0, 1.0], p=[0.9, 0.1], size=200), (4, 1))
    apart = alike.copy()
    apart[:2], apart[2:] = -0.5, 0.7
    widths = []
    for gains in (alike, apart):
        _, low, high = bootstrap(gains, labels, np.random.default_rng(5), draws=2000)["accuracy"]
        widths.append(high - low)
    assert widths[1] > 5 * widths[0]
