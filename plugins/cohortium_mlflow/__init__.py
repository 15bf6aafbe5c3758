"""A run written to MLflow: `pip install 'cohortium[mlflow]'`.

`MLFLOW_TRACKING_URI` names its destination.  Without it, the run is written to its own folder.
Nothing leaves the machine unless you name a server.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from attrs import define, frozen

from cohortium.plugin import (
    Observer,
    Offer,
    RoundCompleted,
    RunCompleted,
    RunFailed,
    RunStarted,
    StudyError,
    hookimpl,
)

if TYPE_CHECKING:
    from cohortium.plugin import Event

COHORTIUM_API = 1


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
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise StudyError(
                "the observer 'mlflow' needs a package; pip install 'cohortium[mlflow]'."
            ) from error
        return MLflowWriter(self, MlflowClient)


@define
class MLflowWriter:
    """One run of MLflow's, from the run's start to its end."""

    terms: MLflow
    connect: Any
    client: Any = None
    run: str = ""

    def __call__(self, event: Event) -> None:
        """Write the numbers of `event`."""
        match event:
            case RunStarted():
                self._begin(event)
            case RoundCompleted() if self.client:
                for name, value in event.metrics().items():
                    self.client.log_metric(self.run, name, value, step=event.round + 1)
            case RunCompleted() if self.client:
                self.client.set_tag(self.run, "weights_sha256", event.weights_sha256)
                self.client.set_terminated(self.run, "FINISHED")
            case RunFailed() if self.client:
                self.client.set_terminated(self.run, "FAILED")

    def _begin(self, event: RunStarted) -> None:
        uri = self.terms.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri:
            if event.folder is None:
                return
            # Plain files need only MLflow.  From version 3 on it requires this variable for them.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = str(event.folder.absolute() / "mlruns")
        self.client = self.connect(uri)
        found = self.client.get_experiment_by_name(self.terms.experiment)
        experiment = found.experiment_id if found else None
        experiment = experiment or self.client.create_experiment(self.terms.experiment)
        self.run = self.client.create_run(experiment).info.run_id
        for name in ("rounds", "sites", "parameters"):
            self.client.log_param(self.run, name, getattr(event, name))
        self.client.set_tag(self.run, "guarantee", str(event.guarantee or "none"))


@hookimpl
def cohortium_observers() -> list[Offer[Observer]]:
    """Offer `mlflow`."""
    return [Offer("mlflow", MLflow, "Parameters and metrics by round, for MLflow.")]
