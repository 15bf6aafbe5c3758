"""A site's own exact scores of an evaluated model, for its own staff.

Nothing of them leaves the site: no noise covers them, and no ε counts them.
"""

from __future__ import annotations

import datetime as dt
import io
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
import numpy as np
from attrs import frozen

from cohortium.data.npz_archive import read_arrays
from cohortium.data.scores import DECIMALS, Scores, metric_name
from cohortium.errors import DataError, RunError
from cohortium.storage.atomic import atomic_write
from cohortium.storage.bounded_read import read_bounded
from cohortium.storage.plain_json import decode_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

MAX_STORED_SCORES = 1000
"""Most files of scores. The site removes none, and writes no further ones."""

MAX_STORED_PREDICTIONS = 16
"""Most files of predictions. The site removes older ones."""

MAX_PREDICTION_BYTES = 1 << 28
"""Largest size of the predictions that are stored, before compression."""

MAX_SCORES_BYTES = 1 << 26
"""Largest size of a file of scores that is read."""


@frozen(kw_only=True)
class SiteScore:
    """Exact scores of one model on a site's own images.

    Attributes:
        session: Session of the evaluation.
        site: Number of the site.
        dataset_id: The site's name for the images.
        weights_sha256: SHA-256 of the evaluated weights.
        scores: The scores.
        images_sha256: SHA-256 of the images.
        study: The study that trained the model, as the site has accepted it. Empty if unknown.
    """

    session: bytes
    site: int
    dataset_id: str
    weights_sha256: str
    scores: Scores
    images_sha256: str = ""
    study: str = ""

    def lines(self) -> Iterator[str]:
        """Yield the sentences of the log: the scores, then those of each class."""
        scores = self.scores
        yield (
            f"the model of the run {self.session.hex()[:8]} on the {scores.images:,} images of "
            f"'{self.dataset_id}', exactly and only for this site: {_listed(scores.metrics)}"
        )
        for row in scores.per_class:
            if row.metrics:
                yield f"  {row.name}, {row.examples:,} images: {_listed(row.metrics)}"

    def as_json(self) -> dict[str, Any]:
        """Return the content of the site's file."""
        return {
            "note": "Exact figures of this hospital alone. Nothing of this file has left it.",
            "written": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "session": self.session.hex(),
            "site": self.site,
            "dataset_id": self.dataset_id,
            "weights_sha256": self.weights_sha256,
            "calibration_error": self.scores.calibration_error,
            "scores": attrs.asdict(self.scores),
            "images_sha256": self.images_sha256,
            "study": self.study,
        }

    def write(self, folder: Path, predictions: NDArray[Any] | None = None) -> Path:
        """Write the scores to a file in `folder`, and return its path.

        Args:
            folder: Folder of the site's scores.
            predictions: Predictions to store next to the scores, unless they are too large.

        Guarantees:
            Only the site's user can read the folder and the files.
            No file of scores is lost: another model, other images or another study in the same
            session get files of their own, with a number. The same evaluation once more replaces
            its own files. Of the files of predictions, the newest remain.

        Raises:
            RunError: The file cannot be written, or the folder is full.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._file(folder)
            if not path.exists() and sum(1 for _ in folder.glob("*.json")) >= MAX_STORED_SCORES:
                raise RunError(
                    f"{folder} holds {MAX_STORED_SCORES:,} files of scores; move some elsewhere."
                )
            _write_predictions(path.with_suffix(".npz"), predictions)
            atomic_write(path, msgspec.json.format(msgspec.json.encode(self.as_json())))
        except OSError as error:
            raise RunError(f"cannot write to {folder}: {error.strerror}.") from error
        return path

    def _file(self, folder: Path) -> Path:
        """Return the file of this very evaluation, or a new one."""
        path, number = folder / f"{self.session.hex()}.json", 1
        while path.exists() and not self._is_in(path):
            number += 1
            path = folder / f"{self.session.hex()}-{number}.json"
        return path

    def _is_in(self, path: Path) -> bool:
        try:
            stored = _read(path)
        except RunError:  # damaged, and perhaps of another evaluation
            return False
        return (
            stored.weights_sha256 == self.weights_sha256
            and stored.images_sha256 == self.images_sha256
            and stored.dataset_id == self.dataset_id
            and stored.study == self.study
        )


@frozen(kw_only=True)
class StoredScore:
    """Scores that a site has stored (see `SiteScore.as_json`).

    Attributes:
        name: Name of the evaluation: its session, with a number after the first in the session.
    """

    name: str = ""
    written: str
    session: str
    site: int
    dataset_id: str
    weights_sha256: str
    scores: Scores
    images_sha256: str = ""
    study: str = ""


def read_scores(folder: Path) -> tuple[StoredScore, ...]:
    """Return the scores in `folder`, the newest first.

    Raises:
        RunError: A file is damaged, or cannot be read.
    """
    found = [_read(path) for path in sorted(folder.glob("*.json"))]
    return tuple(sorted(found, key=_age, reverse=True))


def _age(stored: StoredScore) -> tuple[str, int, str]:
    """Return a key that sorts evaluations by age, those of one second by their number."""
    return stored.written, len(stored.name), stored.name


def _read(path: Path) -> StoredScore:
    data = read_bounded(path, MAX_SCORES_BYTES, RunError, remedy="move it elsewhere")
    try:
        return attrs.evolve(decode_json(data, StoredScore), name=path.stem)
    except (RecursionError, ValueError) as error:
        raise RunError(f"{path} is damaged; move it elsewhere.") from error


def read_predictions(folder: Path, name: str) -> NDArray[Any] | None:
    """Return the stored predictions of an evaluation, or None if there are none.

    Args:
        folder: Folder of the site's scores.
        name: Name of the evaluation (see `StoredScore.name`).

    Raises:
        RunError: The file is damaged, or cannot be read.
    """
    path = folder / f"{name}.npz"
    if not path.is_file():
        return None
    try:
        return read_arrays(path, ("predictions",))["predictions"]
    except (DataError, KeyError) as error:
        raise RunError(f"{path} is damaged; move it elsewhere.") from error


def _write_predictions(path: Path, predictions: NDArray[Any] | None) -> None:
    path.unlink(missing_ok=True)
    if predictions is None or predictions.nbytes > MAX_PREDICTION_BYTES:
        return
    buffer = io.BytesIO()
    np.savez_compressed(buffer, predictions=predictions)
    atomic_write(path, buffer.getvalue())
    kept = sorted(path.parent.glob("*.npz"), key=lambda each: each.stat().st_mtime)
    for old in kept[:-MAX_STORED_PREDICTIONS]:
        old.unlink()


def _listed(metrics: Mapping[str, float | None]) -> str:
    return ", ".join(f"{metric_name(name)} {_value(name, v)}" for name, v in metrics.items())


def _value(metric: str, value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.3f}" if metric in DECIMALS else f"{value:.2%}"
