"""The record of a run: a folder with the study, the weights and the result, each written whole."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from cohortium.errors import RunError, StudyError
from cohortium.facts import FACTS
from cohortium.files import write_whole
from cohortium.history import html_table
from cohortium.ledger import Ledger
from cohortium.metrics import Predictions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from cohortium.facts import DataFacts
    from cohortium.guarantee import Guarantee
    from cohortium.history import History
    from cohortium.metrics import Scores
    from cohortium.vocabulary import Secrecy


LAST = "checkpoint/weights.safetensors"
"""The weights after the last round that is complete."""

BEST = "checkpoint/best.safetensors"
"""The weights that did best on the public validation images, where there are any."""


@frozen(kw_only=True)
class Seconds:
    """Where a run's time went: in the exchanges, in the coordinator's own work, and in all."""

    train: float
    aggregate: float
    total: float


@frozen(kw_only=True)
class Result:
    """What a run came to.

    Attributes:
        scores: On the test images, or None where there are none.
        guarantee: What the whole run promises, or None without privacy.
        secrecy: What the aggregator hides from the coordinator, or None.
        rounds: That were completed.
        sites: In the federation.
        dropouts: Contributions that were asked for and did not enter a sum, over the run.
        upload_bytes_per_site_per_round: The largest that one site sent in a round.
        seconds: Where the time went.
        weights_sha256: Of the final weights; see `vector.fingerprint`.
        versions: Of Python and of the packages that the figures depend on.
        plugins: By role, the plugin that filled it, with its version.
        history: One event for each round; `history.rows()` is a tidy table.
        weights: The final global weights by name.
        folder: Where the record lies, or None.
    """

    scores: Scores | None = attrs.field(repr=False)
    guarantee: Guarantee | None
    secrecy: Secrecy | None = attrs.field(repr=False)
    rounds: int
    sites: int
    dropouts: int
    upload_bytes_per_site_per_round: int
    seconds: Seconds
    weights_sha256: str
    versions: Mapping[str, str] = attrs.field(repr=False)
    plugins: Mapping[str, str] = attrs.field(repr=False)
    history: History = attrs.field(repr=False)
    weights: Mapping[str, Tensor] = attrs.field(repr=False, eq=False)
    folder: Path | None = None

    @property
    def accuracy(self) -> float | None:
        """Share of test images called rightly, or None without test images."""
        return None if self.scores is None else self.scores.accuracy

    def as_json(self) -> dict[str, Any]:
        """The content of `result.json`."""
        scores, guarantee = self.scores, self.guarantee
        bins = () if scores is None else scores.calibration
        return {
            "accuracy": self.accuracy,
            "balanced_accuracy": None if scores is None else scores.balanced_accuracy,
            "auc": None if scores is None else scores.auc,
            "loss": None if scores is None else scores.loss,
            "per_class": None if scores is None else [attrs.asdict(c) for c in scores.per_class],
            "confusion": None if scores is None else scores.confusion,
            "validation": self._validation(),
            "calibration": [attrs.asdict(part) for part in bins],
            "calibration_error": None if scores is None else scores.calibration_error,
            "guarantee": None if guarantee is None else attrs.asdict(guarantee),
            "secrecy": None if self.secrecy is None else attrs.asdict(self.secrecy),
            "rounds": self.rounds,
            "sites": self.sites,
            "dropouts": self.dropouts,
            "upload_bytes_per_site_per_round": self.upload_bytes_per_site_per_round,
            "seconds": attrs.asdict(self.seconds),
            "weights_sha256": self.weights_sha256,
            "versions": dict(self.versions),
            "plugins": dict(self.plugins),
            "history": self.history.rows(),
        }

    def _repr_html_(self) -> str:
        """For a notebook: the figures that matter, one a row."""
        accuracy = "no test images" if self.accuracy is None else f"{self.accuracy:.2%}"
        rows = {
            "test accuracy": accuracy,
            "guarantee": str(self.guarantee or "none: nothing here is private"),
            "sites": self.sites,
            "rounds": self.rounds,
            "contributions lost": self.dropouts,
            "upload, bytes per site and round": self.upload_bytes_per_site_per_round,
            "seconds": self.seconds.total,
            "weights": self.weights_sha256[:16],
            "record": "not kept" if self.folder is None else str(self.folder),
        }
        return html_table([{"result": key, "": value} for key, value in rows.items()])

    def _validation(self) -> dict[str, float | None] | None:
        """How the final weights do on the validation images, by which a study may be chosen."""
        scores = self.history[-1].scores if self.history else None
        if scores is None:
            return None
        return {
            "accuracy": scores.accuracy,
            "balanced_accuracy": scores.balanced_accuracy,
            "auc": scores.auc,
        }


_PREDICTIONS = "simulation/predictions.npz"


def predictions_of(folder: Path) -> Predictions:
    """What the run in `folder` said of each test image.

    Raises:
        StudyError: The file is not there, or damaged.
    """
    import numpy as np

    path = folder / _PREDICTIONS
    try:
        with np.load(path, allow_pickle=False) as data:
            return Predictions(
                data["probabilities"], data["labels"], tuple(map(str, data["classes"]))
            )
    except FileNotFoundError as error:
        raise StudyError(
            f"{folder} has no predictions for test images; name a finished run on a data set that "
            "has some."
        ) from error
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StudyError(f"{path} is damaged; run that study again.") from error


@frozen
class RunFolder:
    """Where a run's record goes.

    Guarantees:
        Every file is written beside its place, made durable, and then moved there: a reader, or
        a crash, sees the old file or the new one and nothing between.
    """

    path: Path

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A folder for a new run.

        Raises:
            StudyError: It cannot be made, or holds a run already.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise StudyError(f"{path} is not empty; give another folder with --out.")
        except OSError as error:
            raise StudyError(f"cannot write to {path}: {error.strerror}.") from error
        return cls(path)

    def create_ledger(self) -> Ledger:
        """A ledger of what the simulated sites spend.

        Nobody's privacy hangs on it, so that it need not outlive a power cut, only the process:
        waiting for the disk 600 times would take longer than the sums.
        """
        ledger = Ledger(self.path / "ledger.sqlite", is_synced=False)
        ledger.create()
        return ledger

    def write_study(self, text: str) -> None:
        """Keep the study as it was resolved."""
        self._write("study.toml", text.encode())

    def write_result(self, result: Result) -> None:
        """Keep the result; its file's presence says that the run is complete."""
        text = json.dumps(result.as_json(), indent=2, ensure_ascii=False, allow_nan=False)
        self._write("result.json", text.encode() + b"\n")

    def write_facts(self, facts: DataFacts) -> None:
        """Keep what a user of the weights needs to know of the data."""
        text = json.dumps(attrs.asdict(facts), indent=2, ensure_ascii=False)
        self._write(FACTS, text.encode() + b"\n")

    def write_predictions(self, predictions: Predictions) -> None:
        """Keep what was said of each test image, so that runs can be compared image by image.

        It goes into `simulation/`, as all does that only a simulator knows; see `predictions_of`.
        """
        import numpy as np

        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            probabilities=predictions.probabilities.astype(np.float32),
            labels=predictions.labels,
            classes=np.array(predictions.classes),
        )
        self._write(_PREDICTIONS, buffer.getvalue())

    def write_checkpoint(self, weights: Mapping[str, Tensor], *, rounds: int) -> None:
        """Keep the global weights after `rounds` rounds."""
        self._write_weights(LAST, weights, {"rounds": str(rounds)})

    def write_best(self, weights: Mapping[str, Tensor], *, rounds: int, accuracy: float) -> None:
        """Keep, beside the last weights, those that have done best so far.

        Args:
            weights: By name.
            rounds: After how many rounds.
            accuracy: On the public validation images.
        """
        self._write_weights(BEST, weights, {"rounds": str(rounds), "accuracy": repr(accuracy)})

    def _write_weights(
        self, name: str, weights: Mapping[str, Tensor], notes: dict[str, str]
    ) -> None:
        from safetensors.torch import save

        tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
        self._write(name, save(tensors, metadata=notes))

    def _write(self, name: str, data: bytes) -> None:
        target = self.path / name
        try:
            target.parent.mkdir(exist_ok=True)
            write_whole(target, data)
        except OSError as error:
            raise RunError(f"cannot write {target}: {error.strerror}.") from error
