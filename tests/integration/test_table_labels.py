"""Tables, plots and reports say of what their figures are: whose network, rounds and data."""

from __future__ import annotations

import json
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import pytest

from cohortium import Federation, reporting
from cohortium.catalog.provenance import collect_provenance
from cohortium.data.scores import Scores
from cohortium.grid.differences import Difference
from cohortium.runs.site_scores import personalises
from cohortium_fedavg import FedAvg
from cohortium_fedmic import FedMIC
from cohortium_module import Module
from cohortium_phantom import Phantom
from tests.support.command_line import PARTS, cohortium

STUDY = f"""
[federation]
sites = 4
rounds = 1
threads = 1{PARTS}[privatizer]
name = "none"
[aggregator]
name = "plain"
"""


def run(*arguments: str) -> str:
    status, out, _ = cohortium(*arguments)
    assert status == 0
    return out


def ran(folder: Path, grid: str) -> Path:
    (folder / "grid.toml").write_text(f"{grid}\n{STUDY}")
    run("run", str(folder / "grid.toml"), "--out", str(folder / "out"), "--quiet")
    return folder / "out"


def rewrite(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def again(folder: Path) -> str:
    return run("run", str(folder.parent / "grid.toml"), "--out", str(folder), "--quiet")


def columns(table: str) -> dict[str, list[str]]:
    lines = [line.strip("| \n").split(" | ") for line in table.splitlines() if line[:1] == "|"]
    return {head: [line[n] for line in lines[2:]] for n, head in enumerate(lines[0])}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    choices = "width.two = { model.width = 2 }\nwidth.three = { model.width = 3 }"
    return ran(tmp_path_factory.mktemp("seeds"), f"[grid]\nseeds = [1, 2, 3]\n{choices}")


def test_mean_over_unequal_runs_is_labelled(seeds: Path) -> None:
    assert columns(again(seeds))["rounds finished"] == ["1", "1"]
    path = seeds / "width=two" / "seed-2" / "result.json"
    before = path.read_text()
    rewrite(path, rounds=9)
    try:
        assert columns(again(seeds))["rounds finished"] == ["1–9", "1"]
        line = (seeds / "table.csv").read_text().splitlines()
        assert "rounds_min,rounds_max" in line[0]
        told = run("compare", str(seeds / "width=two"), str(seeds / "width=three"))
        assert "the runs finished 1 to 9 rounds" in told
    finally:
        path.write_text(before)


def test_majority_share_is_shown_with_accuracy(seeds: Path) -> None:
    result = json.loads((seeds / "width=two" / "seed-1" / "result.json").read_text())
    share = max(map(sum, result["scores"]["confusion"])) / 40
    assert result["scores"]["majority_share"] == share
    assert result["history"][0]["majority_share"] == 2 / 16
    assert columns(again(seeds))["majority"] == [f"{100 * share:.2f}"] * 2
    assert "majority_share_mean" in (seeds / "table.csv").read_text().splitlines()[0]
    assert "majority_share" in (seeds / "runs.csv").read_text().splitlines()[0]
    assert "most frequent class alone" in (seeds / "plot.svg").read_text()
    told = run("compare", str(seeds / "width=two"), str(seeds / "width=three"))
    assert f"the most frequent class alone {share:.2%}" in told
    folders = [seeds / "width=two" / "seed-1", seeds / "width=three" / "seed-1"]
    single = reporting.render([reporting.read(folders[0])])
    assert f'alone, the most frequent class, is <data value="{share}">' in single
    assert 'class="limit"' in single
    both = reporting.render([reporting.read(folder) for folder in folders])
    assert both.count('id="majority"') == 1
    assert both.count('class="limit"') == 1


def test_comparison_states_seeds_and_images(seeds: Path) -> None:
    first, second = seeds / "width=two", seeds / "width=three"
    told = run("compare", str(first), str(second)).splitlines()
    assert told[0].startswith(
        "over 3 seeds (1, 2, 3), each with a partition of its own, and 40 test images"
    )
    assert "95% interval" in told[1]
    few = run("compare", str(first / "seed-1"), str(second))
    assert "over 1 seed (1)" in few
    assert "left out, for only one of the two has them: 2 seeds (2, 3)" in few
    assert "no interval (1 seed, 40 images; not distinguishable" in few
    stored = json.loads(run("compare", str(first / "seed-1"), str(second), "--json"))
    assert stored["differences"][0]["low"] is None
    assert not stored["differences"][0]["is_told_apart"]


@pytest.mark.parametrize(("number", "is_told"), [(1, False), (2, False), (3, True), (5, True)])
def test_difference_under_three_seeds_is_not_significant(number: int, *, is_told: bool) -> None:
    clear = Difference(
        metric="accuracy", mean=0.3, low=0.2, high=0.4, seeds=tuple(range(number)), images=900
    )
    assert clear.is_significant == is_told
    assert ("interval +20.00 to +40.00" in str(clear)) == is_told


@pytest.mark.slow
def test_data_sets_share_no_axis(tmp_path: Path) -> None:
    more = "phantom = { dataset.seed = 3 }\nodd = { dataset = { test = 41, seed = 5 } }"
    out = ran(tmp_path, f"[grid.cells]\n{more}")
    folders = [out / f"cells={name}" / "seed-1" for name in ("phantom", "odd")]
    rewrite(folders[1] / "result.json", data="other cells")
    events = folders[1] / "events.jsonl"
    renamed = re.sub(r'"dataset": ?"phantom"', '"dataset":"other cells"', events.read_text())
    events.write_text(renamed)
    table = columns(again(out))
    assert table["data set"] == ["phantom", "other cells"]
    texts = [element.text for element in ET.parse(out / "plot.svg").iter() if element.text]
    assert texts.count("test accuracy, %") == 2
    page = reporting.render([reporting.read(folder) for folder in folders])
    assert page.count("<figcaption>Accuracy by round: ") == 2
    assert page.count("<caption><strong>") == 2


def test_trainer_reading_site_state_counts_as_personalised() -> None:
    net = Module(module="torch.nn:Identity").build(Phantom(examples=8).load().spec, 1)

    @attrs.frozen
    class OwnNorms(FedAvg):
        def personalize(self, net: Any, state: Any) -> Any:
            return (net, state["norm"])[0]

    assert not personalises(FedAvg(), net)
    assert personalises(FedMIC(), net)
    assert personalises(OwnNorms(), net)


@pytest.mark.slow
def test_personalised_report_leads_with_site_scores(tmp_path: Path) -> None:
    algorithms = "mic = { trainer = { name = 'fedmic' } }\navg = { trainer.local_epochs = 2 }"
    out = ran(
        tmp_path, f'[grid]\n"federation.holdout_fraction" = [0.3]\n[grid.algorithm]\n{algorithms}'
    )
    table = (out / "table.md").read_text()
    heads = list(columns(table))
    assert heads[2:7] == [
        "own at sites", "global at sites", "majority at sites", "worst site", "global accuracy",
    ]  # fmt: skip
    assert "no site uses the global one" in table
    assert "accuracy of the sites' own models" in (out / "plot.svg").read_text()
    folder = out / "holdout_fraction=0.3,algorithm=mic" / "seed-1"
    result = json.loads((folder / "result.json").read_text())
    own = result["own"]
    assert result["is_personal"]
    page = reporting.render([reporting.read(folder)])
    assert f"<title>cnn on phantom: {100 * own['personal_score']:.1f}" in page
    assert page.index('id="own"') < page.index('id="accuracy"')
    assert "Test accuracy of the global network, which no hospital uses" in page
    other = out / "holdout_fraction=0.3,algorithm=avg" / "seed-1"
    both = reporting.render([reporting.read(folder), reporting.read(other)])
    assert both.index('id="own"') < both.index('id="accuracy"')
    assert "global; no hospital uses it" in both
    told = run("compare", str(folder), str(other))
    assert "of global networks, which no site uses" in told


def test_unscored_personal_networks_are_reported() -> None:
    result = Federation(
        dataset=Phantom(examples=120, validation=0, test=16), model="cnn", trainer=FedMIC(),
        privatizer="none", aggregator="plain", sites=3, rounds=1,
    ).run()  # fmt: skip
    (first, words), (second, told) = result.headline()
    assert (first, second) == ("sites' own accuracy", "global network")
    assert words.startswith("not measured")
    assert told.endswith("no site uses this network")
    assert isinstance(result.scores, Scores)


NET = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self, channels, classes):
        super().__init__(nn.Flatten(), nn.Linear(channels * 784, classes))
"""


@pytest.mark.slow
def test_own_network_is_recorded_and_change_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "own_network.py"
    source.write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "own_network", None)
    monkeypatch.delitem(sys.modules, "own_network")
    study = Federation(
        dataset=Phantom(examples=120, validation=16, test=16), trainer="fedavg",
        model=Module(module="own_network:Net"), privatizer="none", aggregator="plain", sites=3,
        rounds=2,
    )  # fmt: skip
    result = study.run(tmp_path / "run")
    told = result.provenance["model"]
    assert (told["class"], told["file"]) == ("own_network:Net", str(source))
    assert "package" not in told
    page = reporting.render([reporting.read(tmp_path / "run")])
    assert "<title>own_network:Net on phantom" in page
    assert told["sha256"] in page
    assert "has changed since" not in page
    # As it was after the first round, and then with another file.
    broken = shutil.copytree(tmp_path / "run", tmp_path / "broken")
    (broken / "result.json").unlink()
    journal = broken / "checkpoint" / "run.log"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    source.write_text(NET + "# another\n")
    page = reporting.render([reporting.read(tmp_path / "run")])
    assert "That file has changed since" in page
    warnings: list[str] = []

    @attrs.frozen
    class Listener:
        def start_run(self) -> Any:
            return lambda event: warnings.extend(getattr(event, "warnings", ()))

    study.resume(broken, observers=[Listener()])
    assert re.search(r"started with other versions \(.*own_network:Net sha256", " ".join(warnings))
    source.unlink()
    assert "not where it was" in reporting.render([reporting.read(tmp_path / "run")])


@pytest.mark.slow
def test_packaged_network_provenance_includes_version() -> None:
    study = Federation(
        dataset="phantom", model=Module(module="torch.nn:LazyLinear"), trainer="fedavg",
        privatizer="none", aggregator="plain",
    )  # fmt: skip
    told = collect_provenance(study)["model"]
    assert told["class"] == "torch.nn.modules.linear:LazyLinear"
    assert told["package"] == f"torch {version('torch')}"
