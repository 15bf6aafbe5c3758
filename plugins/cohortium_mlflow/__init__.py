"""A run written to MLflow: `pip install 'cohortium[mlflow]'`.

`MLFLOW_TRACKING_URI` names its destination.  Without it, the run is written to its own folder.
Nothing leaves the machine unless you name a server.
"""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Any, Final

from attrs import define, field, frozen

from cohortium.plugin import (
    Observer,
    Offer,
    RoundCompleted,
    RunCompleted,
    RunError,
    RunFailed,
    RunStarted,
    StudyError,
    hookimpl,
)

if TYPE_CHECKING:
    from cohortium.plugin import Event

COHORTIUM_API = 1

MAX_BATCH: Final = 1000
"""Most metrics that MLflow takes at a time."""

MAX_REASON: Final = 300
"""Characters of MLflow's own reason in a sentence."""


@frozen(kw_only=True)
class MLflow:
    """Parameters, and metrics by round.

    Attributes:
        experiment: The experiment's name.
        uri: Destination.  By default it is `MLFLOW_TRACKING_URI`, or else `mlruns` in the run's
            folder (a run without a folder is then not written).
    """

    experiment: str = "cohortium"
    uri: str = ""

    def start_run(self) -> MLflowWriter:
        """Return a writer for one run.

        Raises:
            StudyError: The package mlflow is not installed.
        """
        # Set before the import: MLflow reports its use to its makers, which the user has not asked
        # for.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # A run waits while a listener works, and MLflow's own patience with a server is minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise StudyError(
                "the observer 'mlflow' needs a package; pip install 'cohortium[mlflow]'."
            ) from error
        return MLflowWriter(self, MlflowClient)


@define
class MLflowWriter:
    """One run of MLflow's, from the run's start to its end.

    Metrics that the destination does not take are sent again with those of the next round.
    """

    terms: MLflow
    connect: Any
    client: Any = None
    run: str = ""
    unsent: list[Any] = field(factory=list)

    def __call__(self, event: Event) -> None:
        """Write the numbers of `event`.

        Raises:
            RunError: The destination does not take them.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._write(event)
        except (MlflowException, OSError) as error:
            raise RunError(
                f"mlflow: the destination of the run's numbers cannot be used ({_reason(error)}); "
                "start it, or name another one in MLFLOW_TRACKING_URI."
            ) from error

    def _write(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._begin(event)
            case RoundCompleted() if self.client:
                self.unsent += _metrics(event)
                self._send()
            case RunCompleted() if self.client:
                self._send()
                self.client.set_tag(self.run, "weights_sha256", event.weights_sha256)
                self.client.set_terminated(self.run, "FINISHED")
            case RunFailed() if self.client:
                self._send()
                self.client.set_terminated(self.run, "FAILED")

    def _send(self) -> None:
        while self.unsent:
            self.client.log_batch(self.run, metrics=self.unsent[:MAX_BATCH])
            del self.unsent[:MAX_BATCH]

    def _begin(self, event: RunStarted) -> None:
        uri = self.terms.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri:
            if event.folder is None:
                return
            # Plain files need only MLflow.  From version 3 on it requires this variable for them.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = str(event.folder.absolute() / "mlruns")
        client = self.connect(uri)
        found = client.get_experiment_by_name(self.terms.experiment)
        experiment = found.experiment_id if found else None
        experiment = experiment or client.create_experiment(self.terms.experiment)
        self.run = client.create_run(experiment).info.run_id
        for name in ("rounds", "sites", "parameters"):
            client.log_param(self.run, name, getattr(event, name))
        client.set_tag(self.run, "guarantee", str(event.guarantee or "none"))
        self.client = client


def _metrics(event: RoundCompleted) -> list[Any]:
    from mlflow.entities import Metric

    now = time.time_ns() // 1_000_000
    return [
        Metric(name, value, timestamp=now, step=event.round + 1)
        for name, value in event.metrics().items()
    ]


def _reason(error: Exception) -> str:
    """Return an error's first line, without the password that an address may have."""
    line = str(error).partition("\n")[0] or type(error).__name__
    return re.sub(r"//[^/@\s]+@", "//", line)[:MAX_REASON]


@hookimpl
def cohortium_observers() -> list[Offer[Observer]]:
    """Offer `mlflow`."""
    return [Offer("mlflow", MLflow, "Parameters and metrics by round, for MLflow.")]
