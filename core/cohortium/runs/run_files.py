"""The weights, facts and results in a run's directory, each written whole."""

from __future__ import annotations

import contextlib
import io
import json
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from cohortium.catalog import toml_tables
from cohortium.catalog.discovery import discover
from cohortium.errors import RunError
from cohortium.runs.dataset_info import DATASET_INFO
from cohortium.runs.mask_examples import MASK_EXAMPLES
from cohortium.runs.result import BEST, PREDICTIONS, RESULT, SITE_SCORES
from cohortium.storage.atomic import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from cohortium.data.predictions import Predictions
    from cohortium.runs.dataset_info import DatasetInfo
    from cohortium.runs.holdout_scores import SiteScores
    from cohortium.runs.result import Result


@frozen(eq=False)
class RunFiles:
    """Writer of a run's files.

    Attributes:
        path: The run's directory.
    """

    path: Path

    def write_best(self, weights: Mapping[str, Tensor], *, rounds: int, score: float) -> None:
        """Write the best weights so far, next to the last weights.

        Args:
            weights: The weights by name.
            rounds: Number of rounds after which they were reached.
            score: Main metric on the public validation images.

        Raises:
            RunError: The weights cannot be written.
        """
        self._write_weights(BEST, weights, {"rounds": str(rounds), "score": repr(score)})

    def write_dataset_info(self, facts: DatasetInfo) -> None:
        """Write the facts about the data that the weights' users need.

        Raises:
            RunError: The facts cannot be written.
        """
        text = json.dumps(facts.as_json(), indent=2, ensure_ascii=False)
        self._write(DATASET_INFO, text.encode() + b"\n")

    def write_predictions(self, predictions: Predictions) -> None:
        """Write the predictions for each test image, to compare runs by image.

        The file is in `simulation/`, as all facts that only a simulator knows (see
        `predictions_of`).

        Raises:
            RunError: The predictions cannot be written.
        """
        import numpy as np

        values = predictions.values
        table = toml_tables.to_table(discover(), "task", predictions.task)
        buffer = io.BytesIO()
        groupings = predictions.groupings
        names = [
            {"name": each.name, "is_centre": each.is_centre, "values": list(each.values)}
            for each in groupings
        ]
        grouped: dict[str, Any] = (
            {}
            if not groupings
            else {
                "groups": np.stack([each.codes for each in groupings], 1).astype(np.int16),
                "groupings": np.array(json.dumps(names)),
            }
        )
        np.savez_compressed(
            buffer,
            predictions=values.astype(np.float32) if values.dtype.kind == "f" else values,
            labels=predictions.labels,
            task=np.array(json.dumps(table)),
            **grouped,
        )
        self._write(PREDICTIONS, buffer.getvalue())

    def write_mask_examples(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write a few test images with masks, for the report.

        Raises:
            RunError: They cannot be written.
        """
        import numpy as np

        buffer = io.BytesIO()
        contents: dict[str, Any] = dict(arrays)
        np.savez_compressed(buffer, **contents)
        self._write(MASK_EXAMPLES, buffer.getvalue())

    def write_site_scores(self, scores: Sequence[SiteScores]) -> None:
        """Write the scores of each site's own model and the global one.

        The scores are on the site's held-out images.

        Raises:
            RunError: The scores cannot be written.
        """
        text = json.dumps([attrs.asdict(each) for each in scores], indent=2)
        self._write(SITE_SCORES, text.encode() + b"\n")

    def write_result(self, result: Result) -> None:
        """Write the result."""
        self._write(RESULT, result_bytes(result))

    def _write_weights(
        self, name: str, weights: Mapping[str, Tensor], notes: dict[str, str]
    ) -> None:
        from safetensors.torch import save

        tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
        self._write(name, save(tensors, metadata=notes))

    def _write(self, name: str, data: bytes) -> None:
        with self._writing(name) as target:
            atomic_write(target, data)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        target = self.path / name
        try:
            target.parent.mkdir(exist_ok=True)
            yield target
        except OSError as error:
            raise RunError(f"cannot write {target}: {error.strerror}.") from error


def result_bytes(result: Result) -> bytes:
    """Return the bytes of `result.json`."""
    text = json.dumps(result.as_json(), indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"
