"""The command as people have it: a process, its exit code, and one sentence."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.command_server import command

SMALL = [
    "--set", "dataset.examples=300", "--set", "dataset.validation=50", "--set", "dataset.test=80",
    "--set", "federation.rounds=2", "--set", "federation.threads=1",
]  # fmt: skip


PATHS = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


def cohortium(
    *arguments: str, cwd: Path, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    # Also the code under test, where it is not what is installed.
    where = os.pathsep.join([str(path or cwd), *map(os.path.abspath, PATHS)])
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd), "PYTHONPATH": where}
    return command(*arguments, cwd=cwd, environment=environment)


def plugin(folder: Path, distribution: str, name: str, source: str) -> None:
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[cohortium]\n{name} = {distribution}\n")
    (folder / f"{distribution}.py").write_text(source)


def test_a_study_runs_and_leaves_its_record(tmp_path: Path) -> None:
    done = cohortium("run", *SMALL, "--out", "record", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    assert "ε = 6 " in done.stdout
    rounds = [line for line in done.stderr.splitlines() if line.startswith("round")]
    assert len(rounds) == 2
    assert "\x1b" not in done.stderr
    record = tmp_path / "record"
    assert {p.name for p in record.iterdir()} == {
        "study.toml", "events.jsonl", "result.json", "checkpoint", "dataset.json", "ledger.sqlite",
        "report.html", "simulation", "weights",
    }  # fmt: skip
    files = [path for path in record.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    result = json.loads((record / "result.json").read_text())
    assert result["guarantee"]["against"] == "everyone"
    events = [json.loads(line) for line in (record / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == [
        "RunStarted", "RoundCompleted", "RoundCompleted", "RunCompleted",
    ]  # fmt: skip
    again = cohortium("run", "record/study.toml", "--json", "--out", "again", cwd=tmp_path)
    assert again.returncode == 0
    assert again.stderr == ""
    assert json.loads(again.stdout) == json.loads((tmp_path / "again/result.json").read_text())


def test_plan_command_predicts_run_guarantee(tmp_path: Path) -> None:
    done = cohortium("plan", *SMALL, "--epsilon", "1", "--epsilon", "6", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "noise / sensitivity" in done.stdout
    assert "max dropouts per round" in done.stdout
    assert "ε after 1 round " in done.stdout
    assert "weights bytes, site and round" in done.stdout
    done = cohortium("plan", *SMALL, "--json", "--epsilon", "1", "--epsilon", "6", cwd=tmp_path)
    small, large = json.loads(done.stdout)
    assert small["guarantee"]["noise_multiplier"] > large["guarantee"]["noise_multiplier"]
    assert large["spent"][-1] == [2, large["guarantee"]["epsilon"]]
    assert (large["steps"], large["sampling_rate"]) == (1, 0.4)
    assert large["batch"] == pytest.approx(0.4 * 300 / 10)
    run = cohortium("run", *SMALL, "--json", "--out", "record", cwd=tmp_path)
    assert json.loads(run.stdout)["guarantee"] == large["guarantee"]
    unprivate = ["--set", "privatizer.name=none", "--epsilon", "1"]
    refused = cohortium("plan", *SMALL, *unprivate, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "no parameter epsilon" in refused.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "record"]


BROKEN = "raise RuntimeError('no licence')"
SECOND = """
from attrs import frozen
from cohortium.plugin import Offer, hookimpl
COHORTIUM_API = 1
@frozen
class Mine:
    def partition(self, examples, num_sites, rng): ...
@hookimpl
def cohortium_partitioners():
    return [Offer("dirichlet", Mine, "Mine.")]
"""
NORM = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(2704, 8))
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "model.name=dpresnt"], "no plugin offers the model 'dpresnt'; did you mean"),
        (["--set", "model.name=brokn"], "the plugin broken (brokenplug 1.0) is broken: Runtime"),
        (["--set", "partitioner.name=dirichlet"], "'dirichlet' is offered by dirichlet (cohort"),
        (
            ["--set", "privatizer.epsilon=high"],
            "--set privatizer.epsilon=high: expected float, got",
        ),
        (
            ["--set", "privatizer.epsilom=3"],
            "--set privatizer.epsilom=3: privatizer 'gaussian' has no such",
        ),
        (
            ["--set", "privatizer.epsilon=-1"],
            "--set privatizer.epsilon=-1: privatizer 'gau",
        ),
        (["study.toml", "--set", "federation.rounds=2"], "study.toml [federation] sites: expected"),
        (["--set", "federation.threads=100000"], "--set federation.threads=100000: the federation"),
        (["--set", "trainer.learning_rate=1e300"], "'learning_rate' must be <= 1000000.0"),
        (["--set", "federation.site=3"], "--set federation.site=3: there is no such term; did you"),
        (["study.toml"], "study.toml [federation] sites: expected int, got 'ten'"),
        (["none.toml"], "cannot read the study none.toml: No such file"),
        (["--set", "federation.sites=3"], "secagg: federation.sites is 3, but must be at least 4"),
        (["--set", "partitioner.name=natural"], "natural"),
        (["--set", "federation.sites=200", "--set", "dataset.examples=300"], "lower sites or min"),
        (["--set", "model.name=module", "--set", "model.module=norm:Net"], "use GroupNorm"),
        (["--set", "privatizer.epsilon=1e-9", "--set", "privatizer.delta=1e-12"], "cannot be met"),
        (["--set", "dataset.name=npz", "--set", "dataset.path=bad.npz"], "bad.npz"),
        (["--set", "dataset.name=npz", "--set", "dataset.path=no.npz"], "there is no file"),
        (["--set", "dataset.name=npz"], "path"),
        (["--out", "full"], "full is not empty"),
        (["--set", "trainer.flips=true"], "flips and turns need a model whose inputs are images"),
        (["--set", "trainer.class_weights=[1.0,2.0]"], "2 class weights, but 8 classes"),
        (["--set", "trainer.optimizer=sgdd"], "did you mean sgd"),
        (["--set", "engine.name=ray"], "pip install 'cohortium[ray]'"),
        (["--observer", "tensorboard"], "pip install 'cohortium[tensorboard]'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_invalid_command_is_one_sentence_without_files(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    plugins = tmp_path / "plugins"
    plugin(plugins, "brokenplug", "broken", BROKEN)
    if "partitioner.name=dirichlet" in arguments:
        plugin(plugins, "secondplug", "second", SECOND)
    (plugins / "norm.py").write_text(NORM)
    for extra in ("ray", "tensorboard"):  # as if it were not installed
        (plugins / f"{extra}.py").write_text("raise ImportError('there is none')")
    (tmp_path / "study.toml").write_text('[federation]\nsites = "ten"\n')
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 damaged")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    small = () if "dataset.name=npz" in arguments else SMALL  # which are phantom's terms
    done = cohortium("run", *small, *arguments, cwd=tmp_path, path=plugins)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.startswith("cohortium: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (tmp_path / "runs").exists()


def test_failed_run_states_reason_and_exits_one(tmp_path: Path) -> None:
    done = cohortium(
        "run", *SMALL, "--quiet", "--out", "record", "--set", "privatizer.name=none",
        "--set", "model.name=cnn", "--set", "trainer.name=fedavg",
        "--set", "trainer.learning_rate=1e6", "--set",
        "trainer.optimizer_options={weight_decay=1e6}",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "round 1 failed" in done.stderr
    assert "NaN or infinity" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "record" / "result.json").exists()
    assert "This run failed" in (tmp_path / "record" / "report.html").read_text()


@pytest.mark.slow
def test_report_command_handles_one_or_several_runs(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        done = cohortium(
            "run", *SMALL, "--quiet", "--out", name, "--set", f"federation.seed={seed}",
            cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].split() == ["report", f"{name}/report.html"]
    written = (tmp_path / "one/report.html").read_bytes()
    done = cohortium("report", "one", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("one/report.html\n", "")
    assert (tmp_path / "one/report.html").read_bytes() == written
    lost = cohortium("report", "one", "two", cwd=tmp_path)
    assert lost.returncode == 2
    assert "with --out FILE" in lost.stderr
    done = cohortium("report", "one", "two", "--out", "both.html", cwd=tmp_path)
    assert done.returncode == 0
    assert "federation.seed" in (tmp_path / "both.html").read_text()
    gone = cohortium("report", "three", cwd=tmp_path)
    assert gone.returncode == 2
    assert gone.stderr.startswith("cohortium: three does not exist; give the folder")
    (tmp_path / "notes.html").write_text("mine")
    mine = cohortium("report", "one", "--out", "notes.html", cwd=tmp_path)
    assert (mine.returncode, (tmp_path / "notes.html").read_text()) == (2, "mine")
    assert "notes.html exists and is no report" in mine.stderr
    nowhere = cohortium("report", "one", "--out", "no/where.html", cwd=tmp_path)
    assert nowhere.returncode == 2
    assert nowhere.stderr == (
        "cohortium: cannot write no/where.html: there is no folder no; make it first.\n"
    )


def test_run_trains_on_user_npz_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3
    images = (rng.integers(0, 60, (240, 12, 12)) + 60 * labels[:, None, None]).astype(np.uint8)
    np.savez(
        tmp_path / "own.npz",
        train_images=images, train_labels=labels, test_images=images, test_labels=labels,
    )  # fmt: skip
    done = cohortium(
        "run", "--set", "dataset.name=npz", "--set", "dataset.path=own.npz", "--json",
        "--set", "privatizer.name=none", "--set", "federation.rounds=20",
        "--set", "trainer.learning_rate=0.003", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"] > 0.8


@contextlib.contextmanager
def long_run(folder: Path, *settings: str) -> Iterator[subprocess.Popen[str]]:
    """A run with many rounds ahead, into `record`, whose first round is over."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cohortium", "run", *SMALL, *LONG, *settings, "--out", "record"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests themselves run in the background, Ctrl-C would be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    try:
        deadline = time.monotonic() + 600
        while not (folder / "record" / "weights" / "last.safetensors").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_run_prints_resume_command(tmp_path: Path, number: int) -> None:
    with long_run(tmp_path) as process:
        process.send_signal(number)
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    said = re.search(r"stopped after (\d+) of 2000 rounds; continue with `(.*)`\.\n$", errors)
    assert said is not None, errors
    events = (tmp_path / "record" / "events.jsonl").read_text().splitlines()
    rounds = [event for event in map(json.loads, events) if event["event"] == "RoundCompleted"]
    assert len(rounds) == int(said[1])
    refused = cohortium("run", *SMALL, "--out", "record", cwd=tmp_path)
    assert refused.returncode == 2
    assert said[2] in refused.stderr
    assert said[2] == "cohortium resume record"


LONG = [
    "--set", "federation.rounds=2000", "--set", "privatizer.name=none",
    "--set", "federation.sites=4", "--set", "federation.evaluate_every=0",
]  # fmt: skip


@pytest.mark.slow
def test_second_signal_ends_round_at_once(tmp_path: Path) -> None:
    # Signals come when a round has just begun, and it takes some seconds.
    slowly = ["--set", "trainer.name=fedavg", "--set", "trainer.local_steps=5000"]
    with long_run(tmp_path, *slowly) as process:
        assert process.stderr is not None
        process.send_signal(signal.SIGINT)
        while "once more to stop at once" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 130, errors
    assert errors.endswith(
        "cohortium: stopped within a round; continue with `cohortium resume record`.\n"
    )
    assert not (tmp_path / "record" / "result.json").exists()


NOTING = """
from cohortium.plugin import Offer, RunStarted, hookimpl

COHORTIUM_API = 1


class {kind}:
    def start_run(self):
        def listen(event):
            if isinstance(event, RunStarted):
                with (event.folder / "{name}.txt").open("a") as file:
                    file.write("started\\n")
        return listen


@hookimpl
def cohortium_observers():
    return [Offer("{name}", {kind}, "Notes that a run has started.")]
"""


@pytest.mark.slow
def test_resume_notifies_recorded_and_new_observers(tmp_path: Path) -> None:
    for name in ("first", "second"):
        source = NOTING.format(kind=name.title(), name=name)
        plugin(tmp_path, f"noting_{name}", f"noting-{name}", source)
    small = [*SMALL, "--set", "privatizer.name=none", "--set", "aggregator.name=plain"]
    done = cohortium("run", *small, "--out", "run", "--observer", "first", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert tomllib.loads((tmp_path / "run" / "study.toml").read_text())["federation"][
        "observers"
    ] == ["first"]
    for options in (["--observer", "second"], []):
        break_off(tmp_path / "run")
        done = cohortium("resume", "run", "--quiet", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "first.txt").read_text() == "started\n" * 3
    assert (tmp_path / "run" / "second.txt").read_text() == "started\n" * 2
    break_off(tmp_path / "run")
    done = cohortium("resume", "run", "--observer", "third", cwd=tmp_path)
    assert done.returncode == 2
    assert "no plugin offers the observer 'third'" in done.stderr


def break_off(folder: Path) -> None:
    """Leave a run as it was after its last round, without its end."""
    (folder / "result.json").unlink()
    journal = folder / "checkpoint" / "run.log"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))


@pytest.mark.slow
def test_resume_needs_only_run_folder(tmp_path: Path) -> None:
    seeded = [*SMALL, "--set", "federation.insecure_seeded_secrets=true", "--quiet"]
    whole = cohortium("run", *seeded, "--json", "--out", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    # As it was after the first round.
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    break_off(tmp_path / "broken")
    done = cohortium("resume", "broken", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    keys = ("weights_sha256", "scores", "guarantee", "history", "dropouts", "rounds")
    first, second = json.loads(whole.stdout), json.loads(done.stdout)
    assert [first[key] for key in keys] == [second[key] for key in keys]
    again = cohortium("resume", "broken", cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr == (
        "cohortium: the run in broken is finished; its result is broken/result.json.\n"
    )
    nothing = cohortium("resume", ".", cwd=tmp_path)
    assert nothing.returncode == 2
    assert "cohortium: . holds folders of runs; give one of them, such as broken." in nothing.stderr


def test_a_plugin_is_checked_by_name(tmp_path: Path) -> None:
    done = cohortium("check", "iid", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "✓" in done.stdout
    missing = cohortium("check", "idd", cwd=tmp_path)
    assert missing.returncode == 2
    assert "did you mean iid" in missing.stderr


def test_the_version_is_printed(tmp_path: Path) -> None:
    assert cohortium("--version", cwd=tmp_path).stdout.startswith("0.")


FAULTY = """
from attrs import frozen
from cohortium.plugin import Offer, hookimpl
COHORTIUM_API = 1
@frozen
class Mine:
    def partition(self, examples, num_sites, rng):
        return [examples.images[10 ** 9]]
@hookimpl
def cohortium_partitioners():
    return [Offer("mine", Mine, "Mine.")]
"""


def test_plugin_fault_error_names_plugin(tmp_path: Path) -> None:
    plugin(tmp_path, "acme_dealer", "dealer", FAULTY)
    done = cohortium("run", *SMALL, "--set", "partitioner.name=mine", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "cohortium: Mine.partition of the plugin dealer (acme_dealer 1.0) raised IndexError: index "
        "1000000000 is out of bounds for axis 0 with size 300 (acme_dealer.py, line 8); correct "
        "the plugin, which `cohortium check dealer` tries.\n"
    )


def test_a_runs_ledger_is_shown(tmp_path: Path) -> None:
    assert cohortium("run", *SMALL, "--quiet", "--out", "one", cwd=tmp_path).returncode == 0
    shown = cohortium("ledger", "one/ledger.sqlite", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "\x1b" not in shown.stdout
    assert shown.stdout.count("for one example against everyone") == 10
    result = json.loads((tmp_path / "one/result.json").read_text())
    delta = result["guarantee"]["delta"]
    done = cohortium(
        "ledger", "one/ledger.sqlite", "--json", "--data", "site 3", "--delta", str(delta),
        cwd=tmp_path,
    )  # fmt: skip
    (statement,) = json.loads(done.stdout)
    assert statement["data"] == "site 3"
    assert statement["epsilon"] == pytest.approx(result["guarantee"]["epsilon"], rel=1e-3)
    assert (statement["delta"], statement["unit"], statement["against"]) == (
        delta, "example", "everyone",
    )  # fmt: skip
    (run,) = statement["runs"]
    assert (run["attempts"], run["rounds"]) == (2, 2)
    assert run["mechanism"]["noise_multiplier"] == result["guarantee"]["noise_multiplier"]


BUDGET = """
[site]
id = 0
dataset_id = "lungs"
[dataset]
name = "phantom"
[policy]
epsilon = 3.0
delta = 1e-6
unit = "patient"
against = "everyone"
"""


def test_ledger_command_creates_once_and_shows_budget(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(BUDGET)
    missing = cohortium("ledger", "site.toml", cwd=tmp_path)
    assert missing.returncode == 2
    assert missing.stderr.startswith("cohortium: there is no ledger ")
    made = cohortium("ledger", "site.toml", "--create", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    budget = "a budget of ε = 3 at δ = 1e-06 for one patient against everyone"
    assert " ".join(made.stdout.split()) == f"lungs: ε = 0, of {budget}"
    (statement,) = json.loads(cohortium("ledger", "site.toml", "--json", cwd=tmp_path).stdout)
    assert statement["runs"] == []
    assert statement["budget"] == {
        "epsilon": 3.0, "delta": 1e-6, "scope": {"unit": "patient", "against": "everyone"},
    }  # fmt: skip
    bare = cohortium("ledger", "other.sqlite", "--create", cwd=tmp_path)
    assert bare.stdout == "nothing has been spent\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone.sqlite"], "there is no ledger gone.sqlite"),
        (["foreign"], "foreign is not a ledger"),
        (["site.toml", "--create"], "ledger.sqlite exists, and a ledger is never overwritten"),
        (["site.toml", "--data", "lung"], "nothing of 'lung'; did you mean lungs?"),
        (["site.toml", "--delta", "2"], "--delta 2: δ lies between 1e-100 and 1"),
        (["bad.toml"], "[policy] epsilom: the policy has no such parameter; did you mean epsilon"),
    ],
)
def test_invalid_ledger_command_gives_one_sentence(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    from cohortium.ledger.ledger import Ledger

    (tmp_path / "site.toml").write_text(BUDGET)
    (tmp_path / "bad.toml").write_text(BUDGET.replace("epsilon", "epsilom"))
    (tmp_path / "foreign").write_bytes(b"PK\x03\x04 and more")
    Ledger(tmp_path / "ledger.sqlite").create()
    done = cohortium("ledger", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.startswith("cohortium: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_piped_plugins_list_is_not_wrapped(tmp_path: Path) -> None:
    done = cohortium("plugins", cwd=tmp_path)
    lines = done.stdout.splitlines()
    # One line each, however long, with what it is and all of what it says of itself.
    (secagg,) = (line for line in lines if line.split()[1] == "secagg")
    assert secagg.startswith("aggregator")
    assert secagg.rstrip().endswith("dropouts heal.")
    assert max(map(len, lines)) > 80


def test_the_keys_of_the_federation_are_listed(tmp_path: Path) -> None:
    from cohortium.study.study import FEDERATION_KEYS

    done = cohortium("plugins", "federation", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    listed = [line.split()[0] for line in done.stdout.splitlines()[2:]]
    assert listed == list(FEDERATION_KEYS)
    (told,) = (line for line in done.stdout.splitlines() if line.split()[0] == "rounds")
    assert told.split(None, 3)[1:3] == ["int", "60"]
    (table,) = json.loads(cohortium("plugins", "federation", "--json", cwd=tmp_path).stdout)
    assert [parameter["name"] for parameter in table["parameters"]] == list(FEDERATION_KEYS)
