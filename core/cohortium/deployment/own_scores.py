"""A site's own exact scores of an evaluated model, for its own staff.

Nothing of them leaves the site: no noise covers them, and no ε counts them.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
from attrs import frozen

from cohortium.data.scores import DECIMALS, metric_name
from cohortium.errors import RunError
from cohortium.storage.atomic import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from cohortium.data.scores import Scores

MAX_STORED_SCORES = 1000
"""Most files of scores. The site removes none, and writes no further ones."""


@frozen(kw_only=True)
class SiteScore:
    """Exact scores of one model on a site's own images.

    Attributes:
        session: Session of the evaluation.
        site: Number of the site.
        dataset_id: The site's name for the images.
        weights_sha256: SHA-256 of the evaluated weights.
        scores: The scores.
    """

    session: bytes
    site: int
    dataset_id: str
    weights_sha256: str
    scores: Scores

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
        }

    def write(self, folder: Path) -> Path:
        """Write the scores to a file in `folder`, and return its path.

        Guarantees:
            Only the site's user can read the folder and the file.
            A later evaluation in the same session replaces the file. No other file changes.

        Raises:
            RunError: The file cannot be written, or the folder is full.
        """
        path = folder / f"{self.session.hex()}.json"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists() and sum(1 for _ in folder.glob("*.json")) >= MAX_STORED_SCORES:
                raise RunError(
                    f"{folder} holds {MAX_STORED_SCORES:,} files of scores; move some elsewhere."
                )
            atomic_write(path, msgspec.json.format(msgspec.json.encode(self.as_json())))
        except OSError as error:
            raise RunError(f"cannot write to {folder}: {error.strerror}.") from error
        return path


def _listed(metrics: Mapping[str, float | None]) -> str:
    return ", ".join(f"{metric_name(name)} {_value(name, v)}" for name, v in metrics.items())


def _value(metric: str, value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.3f}" if metric in DECIMALS else f"{value:.2%}"
