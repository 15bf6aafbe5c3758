"""What trackers write is what the events said, read back by the trackers' own readers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cohortium.errors import RunError, StudyError
from cohortium.plugin import RoundCompleted, RunFailed, RunStarted
from cohortium.testing.observers import sample_events
from cohortium_mlflow import MLflow
from cohortium_tensorboard import TensorBoard
from tests.support.federations import RecordingObserver, tiny_federation

ROUNDS = [event for event in sample_events(None) if isinstance(event, RoundCompleted)]


def test_tensorboard_reads_back_every_number(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = TensorBoard().start_run()
    for event in sample_events(tmp_path):
        writer(event)
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    wanted = ROUNDS[0].metrics()
    assert set(read.Tags()["scalars"]) == set(wanted)
    assert {"accuracy", "loss", "epsilon", "contributors"} <= set(wanted)
    for name, value in wanted.items():
        points = read.Scalars(name)
        assert [point.step for point in points] == [1, 2]
        if name != "attempt":
            assert [point.value for point in points] == pytest.approx([value, value])
    (text,) = read.Tensors("guarantee/text_summary")
    assert text.tensor_proto.string_val[0].decode().startswith("ε = 2 at δ = 1e-05")


MLFLOW = """
import json, sys
from pathlib import Path
from cohortium.plugin import RunFailed
from cohortium.testing.observers import sample_events
from cohortium_mlflow import MLflow

class NoNetwork:
    def __init__(self, *_, **__): raise AssertionError("a socket was opened")
import socket
socket.socket = NoNetwork

folder, uri = Path(sys.argv[1]), sys.argv[2]
failed = RunFailed(reason="no.")
for events in (sample_events(folder), [sample_events(folder)[0], failed], [failed]):
    writer = MLflow(uri=uri, experiment="lungs").start_run()
    for event in events:
        writer(event)

from mlflow.tracking import MlflowClient
client = MlflowClient(uri or str(folder / "mlruns"))
experiment = client.get_experiment_by_name("lungs").experiment_id
runs = client.search_runs([experiment], order_by=["attributes.start_time ASC"])
print(json.dumps([
    {
        "status": run.info.status,
        "params": run.data.params,
        "tags": run.data.tags,
        "history": {
            name: [[p.step, p.value] for p in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        },
    }
    for run in runs
]))
"""


@pytest.mark.parametrize("named", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_mlflow_file_store_reads_back_every_number(tmp_path: Path, named: bool) -> None:
    import json

    # A process of its own: MLflow sets the logging and the environment of its host.
    uri = f"{tmp_path / 'store'}" if named else ""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    if named:
        environment["MLFLOW_ALLOW_FILE_STORE"] = "true"
    (tmp_path / "run").mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MLFLOW, str(tmp_path / "run"), uri],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    whole, failed = json.loads(done.stdout.splitlines()[-1])
    assert (whole["status"], failed["status"]) == ("FINISHED", "FAILED")
    assert whole["params"] == {"rounds": "2", "sites": "3", "parameters": "188"}
    assert whole["tags"]["weights_sha256"] == "0" * 64
    assert whole["tags"]["guarantee"].startswith("ε = 2 at δ = 1e-05")
    assert set(whole["history"]) == set(ROUNDS[0].metrics())
    for name, value in ROUNDS[0].metrics().items():
        steps, values = zip(*whole["history"][name], strict=True)
        assert steps == (1, 2)
        assert name == "attempt" or values == (value, value)
    assert failed["history"] == {}
    assert (tmp_path / ("store" if named else "run/mlruns")).is_dir()
    assert {path.name for path in tmp_path.iterdir()} <= {"store", "run"}


@pytest.mark.parametrize(
    ("observer", "package"), [(TensorBoard(), "tensorboard"), (MLflow(), "mlflow.tracking")]
)
def test_tracker_without_package_names_install_command(
    observer: TensorBoard | MLflow, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(StudyError, match=r"pip install 'cohortium\["):
        observer.start_run()


@pytest.mark.parametrize("observer", [TensorBoard(), MLflow()])
def test_a_run_without_a_folder_is_not_written(
    observer: TensorBoard | MLflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    writer = observer.start_run()
    for event in sample_events(None):
        writer(event)
    writer(RunFailed(reason="no."))
    assert isinstance(sample_events(None)[0], RunStarted)
    assert not list(tmp_path.iterdir())


class Server:
    """An MLflow server that does not answer at some of its calls."""

    def __init__(self, *outages: int) -> None:
        self.outages, self.calls, self.closed = outages, 0, ""
        self.metrics: list[tuple[int, str]] = []

    def connect(self, _uri: str) -> Server:
        return self

    def get_experiment_by_name(self, _name: str) -> None:
        self._answer()

    def create_experiment(self, _name: str) -> str:
        return "0"

    def create_run(self, _experiment: str) -> SimpleNamespace:
        return SimpleNamespace(info=SimpleNamespace(run_id="1"))

    def log_param(self, *_: object) -> None:
        pass

    set_tag = log_param

    def log_batch(self, _run: str, metrics: list[Any]) -> None:
        self._answer()
        self.metrics += [(metric.step, metric.key) for metric in metrics]

    def set_terminated(self, _run: str, status: str) -> None:
        self.closed = status

    def _answer(self) -> None:
        from mlflow.exceptions import MlflowException

        self.calls += 1
        if self.calls in self.outages:
            raise MlflowException("API request to http://me:secret@host/api failed\nat length")


def test_mlflow_outage_within_a_run_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, broken = Server(), Server(2, 3)  # the first call is of the start
    for server in (whole, broken):
        monkeypatch.setattr("mlflow.tracking.MlflowClient", server.connect)
        study = tiny_federation(rounds=3, sites=2)
        assert study.run(observers=[MLflow(uri="http://host")]).rounds == 3
        assert server.closed == "FINISHED"
    assert {step for step, _ in whole.metrics} == {1, 2, 3}
    assert broken.metrics == whole.metrics
    (told,) = [each.getMessage() for each in caplog.records if each.name.startswith("cohortium")]
    assert told.startswith("the observer MLflow failed at RoundCompleted: mlflow: ")
    assert "API request to http://host/api failed)" in told
    assert "secret" not in caplog.text


def test_mlflow_outage_at_the_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow.tracking.MlflowClient", Server(1).connect)
    seen = RecordingObserver()
    with pytest.raises(RunError, match=r"mlflow: .*http://host/api failed\); start it, or name"):
        tiny_federation().run(observers=[seen, MLflow(uri="http://host")])
    assert not seen.of(RoundCompleted)
