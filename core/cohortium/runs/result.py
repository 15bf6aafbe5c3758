"""Result of a run."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import attrs
import msgspec
import numpy as np
from attrs import frozen

from cohortium.catalog import construction
from cohortium.catalog.discovery import discover
from cohortium.data.estimates import Estimate
from cohortium.data.groups import Grouping
from cohortium.data.npz_archive import read_arrays
from cohortium.data.predictions import Predictions
from cohortium.data.scores import DECIMALS, Scores, metric_name
from cohortium.errors import DataError, RequestError, StudyError
from cohortium.privacy.guarantee import Guarantee
from cohortium.privacy.membership import MembershipBound
from cohortium.roles.values import AggregationGuarantee
from cohortium.runs.history import html_table
from cohortium.runs.holdout_scores import OwnScores

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from cohortium.runs.history import History


RESULT = "result.json"

OLDER = "checkpoint/journal"
"""A file that only run directories of an older format have."""

EVALUATION = "evaluation"
"""Folder of the evaluation at the sites, in the folder of the run whose model it evaluates."""

LAST = "weights/last.safetensors"
"""The weights after the last completed round."""

BEST = "weights/best.safetensors"
"""The weights with the best accuracy on public validation images, if any."""

PACKAGES = ("cohortium", "torch", "numpy", "opacus", "cryptography")
"""Packages, in addition to Python, whose versions affect a run's figures."""


def versions() -> dict[str, str]:
    """Return the versions of Python and of `PACKAGES`."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


@frozen(kw_only=True)
class Timings:
    """Seconds of a run: in exchanges, coordinator's work and total."""

    train: float
    aggregate: float
    total: float


@frozen(kw_only=True)
class Measured:
    """A statistic that the sites released, with estimates from it.

    Attributes:
        contributors: Number of sites in the sum.
        examples: Declared examples over all sites.
        noise: Standard deviation of the noise on each value of the sum.
        cells: Names of the values of the sum.
        sums: The noised sum of the rows.
        estimates: Estimates with intervals.
    """

    contributors: int
    examples: int
    noise: float
    cells: tuple[str, ...] = attrs.field(repr=False)
    sums: tuple[float, ...] = attrs.field(repr=False)
    estimates: tuple[Estimate, ...]

    @property
    def inconsistency(self) -> str:
        """The first impossible relation among the values, or "" without one."""
        if len(self.cells) != len(self.sums):
            return "its sums and their names differ in number"
        if self.contributors < 1 or self.examples < 1 or self.noise < 0:
            return "its numbers of sites, examples or its noise are too small"
        if any(each.inconsistency for each in self.estimates):
            return "an interval is outside its range"
        return ""


@frozen(kw_only=True)
class MeasuredRound:
    """Estimates of one of several evaluations.

    Attributes:
        trained_rounds: Rounds of training that the evaluated weights had, or None if unknown.
        contributors: Number of sites in the sum.
        noise: Standard deviation of the noise on each value of the sum.
        estimates: Estimates with intervals, the main score first.
    """

    trained_rounds: int | None
    contributors: int
    noise: float
    estimates: tuple[Estimate, ...]

    @property
    def inconsistency(self) -> str:
        """The first impossible value, or "" without one."""
        if self.contributors < 1 or self.noise < 0 or (self.trained_rounds or 0) < 0:
            return "its numbers of sites, rounds or its noise are too small"
        if any(each.inconsistency for each in self.estimates):
            return "an interval is outside its range"
        return ""


@frozen(kw_only=True)
class StoredResult:
    """Part of a result that `result.json` holds, except for the history.

    Attributes:
        scores: Scores on the test images, or None if there are none.
        guarantee: Guarantee of the whole run, or None without privacy.
        aggregation: Confidentiality that the aggregator provides against the coordinator, or None.
        membership: Bounds on attacks that decide whether one unit took part.
        rounds: Number of completed rounds.
        sites: Number of sites in the federation.
        dropouts: Number of contributions, over the run, that were requested and are in no sum.
        max_upload_bytes: Largest number of bytes that one site sent in a round.
        seconds: Timings of the run.
        weights_sha256: SHA-256 of the final weights (see `parameters.sha256`).
        session: Session that names the run, as hexadecimal digits. "" in a result of an older
            version.
        versions: Versions of Python and of the packages that affect the figures.
        plugins: By role, the plugin that filled it, with its version.
        data: Name of the data that the figures describe.
        is_personal: Whether sites use networks of their own. Then `scores` belong to a network that
            no site uses.
        own: Scores on the images that simulated sites held out. None if they held out none, or if
            the run is not stored on disk.
        measured: Statistic that the sites released, or None where they trained.  The last one of
            several.
        measured_by_round: Estimates of every statistic that they released, in order.
        provenance: By part, the origin of its code in addition to the plugins (see `provenance`).
    """

    scores: Scores | None = attrs.field(default=None, repr=False)
    guarantee: Guarantee | None
    aggregation: AggregationGuarantee | None = attrs.field(default=None, repr=False)
    membership: tuple[MembershipBound, ...] = attrs.field(default=(), repr=False)
    rounds: int
    sites: int
    dropouts: int
    max_upload_bytes: int
    seconds: Timings
    weights_sha256: str
    session: str = ""
    versions: Mapping[str, str] = attrs.field(repr=False)
    plugins: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    data: str = ""
    is_personal: bool = False
    own: OwnScores | None = None
    measured: Measured | None = None
    measured_by_round: tuple[MeasuredRound, ...] = attrs.field(default=(), repr=False)
    provenance: Mapping[str, Mapping[str, str]] = attrs.field(factory=dict, repr=False)


@frozen(kw_only=True)
class Result(StoredResult):
    """Result of a run.

    Attributes:
        history: One event for each round. `history.rows()` is a tidy table.
        weights: The final global weights by name.
        folder: Directory of the run, or None.
        evaluation: Result of the evaluation at the sites, or None without one.
    """

    history: History = attrs.field(repr=False)
    weights: Mapping[str, Tensor] = attrs.field(repr=False, eq=False)
    folder: Path | None = None
    evaluation: Result | None = attrs.field(default=None, repr=False)

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the test images, as the task defines it, or None without one."""
        return None if self.scores is None else self.scores.metrics.get("accuracy")

    def as_json(self) -> dict[str, Any]:
        """Return the content of `result.json`."""
        scores, guarantee = self.scores, self.guarantee
        return {
            "data": self.data,
            "is_personal": self.is_personal,
            "own": None if self.own is None else attrs.asdict(self.own),
            "measured": None if self.measured is None else attrs.asdict(self.measured),
            "measured_by_round": [attrs.asdict(each) for each in self.measured_by_round],
            "accuracy": self.accuracy,
            "scores": None if scores is None else attrs.asdict(scores),
            "calibration_error": None if scores is None else scores.calibration_error,
            "guarantee": None if guarantee is None else attrs.asdict(guarantee),
            "aggregation": None if self.aggregation is None else attrs.asdict(self.aggregation),
            "membership": [attrs.asdict(each) for each in self.membership],
            "rounds": self.rounds,
            "sites": self.sites,
            "dropouts": self.dropouts,
            "max_upload_bytes": self.max_upload_bytes,
            "seconds": attrs.asdict(self.seconds),
            "weights_sha256": self.weights_sha256,
            "session": self.session,
            "versions": dict(self.versions),
            "plugins": dict(self.plugins),
            "provenance": {part: dict(told) for part, told in self.provenance.items()},
            "history": self.history.rows(),
        }

    def __str__(self) -> str:
        """Return the result in one line, for a log."""
        rows = [f"{label} {text}" for label, text in self.headline()] if self.scores else []
        for run in (self, self.evaluation):
            if run is None or run.measured is None:
                continue
            for first in run.measured.estimates[:1]:
                value = "unknown" if first.value is None else f"{first.value:.4g}"
                told = "hidden by the noise" if first.is_hidden else value
                rows.append(f"{metric_name(first.metric)} at the sites {told}")
        left_out = f", {self.dropouts} left out of sums" if self.dropouts else ""
        parts = [
            f"{self.rounds} rounds with {self.sites} sites{left_out}",
            *rows,
            str(self.guarantee or "no privacy guarantee"),
        ]
        if self.folder is not None:
            parts.append(f"the record is {self.folder}")
        return "; ".join(parts)

    def headline(self) -> list[tuple[str, str]]:
        """Return label and text of each accuracy, the most important first."""
        scores, metric = self.scores, "accuracy"
        told = "none (no test images)"
        if scores is not None:
            metric = metric_name(scores.main_metric)
            told = self._shown(scores.metrics[scores.main_metric])
            if scores.majority_share is not None:
                told += f" (the most frequent class alone: {scores.majority_share:.2%})"
        if not self.is_personal:
            return [(f"test {metric}", told), *self._worst()]
        own = "not measured; federation.holdout_fraction holds images out"
        if self.own is not None:
            majority = self.own.majority_share
            alone = (
                ""
                if majority is None
                else f"each site's most frequent class alone: {majority:.2%}; "
            )
            own = self._shown(self.own.personal_score)
            own += f" ({alone}{self.own.images:,} images held out)"
        return [
            (f"sites' own {metric}", own),
            ("global network", f"{told}; no site uses this network"),
            *self._worst(),
        ]

    def _worst(self) -> Iterator[tuple[str, str]]:
        """Yield label and text of the worst centre, and of the worst value of each group."""
        for part in () if self.scores is None else self.scores.groups:
            row = part.worst_row
            if row is None:
                continue
            ends = (
                f"{self._shown(row.low)} to {self._shown(row.high)} at 95 %, {row.images:,} images"
            )
            chance = "" if part.is_below_all else "; not below the score of all images"
            named = row.value or "not stated"
            yield f"worst {part.name}", f"{named}: {self._shown(row.score)} ({ends}{chance})"

    def _shown(self, value: float | None) -> str:
        """Return a value of the main metric for people."""
        if value is None:
            return "none"
        is_decimal = self.scores is not None and self.scores.main_metric in DECIMALS
        return f"{value:.4f}" if is_decimal else f"{value:.2%}"

    def _repr_html_(self) -> str:
        """Return the important figures for a notebook, one per row."""
        rows = {
            **dict(self.headline()),
            "guarantee": str(self.guarantee or "none: nothing here is private"),
            "sites": self.sites,
            "rounds": self.rounds,
            "contributions lost": self.dropouts,
            "upload, bytes per site and round": self.max_upload_bytes,
            "seconds": self.seconds.total,
            "weights": self.weights_sha256[:16],
            "record": "not kept" if self.folder is None else str(self.folder),
        }
        return html_table([{"result": key, "": value} for key, value in rows.items()])


PREDICTIONS = "simulation/predictions.npz"
SITE_SCORES = "simulation/holdout_scores.json"
"""Paths in the folder of facts that only a simulator knows."""


def predictions_of(folder: Path) -> Predictions:
    """Return the predictions of the run in `folder` for each test image.

    They have groupings only if the data have centres or groups, and the run stored them.

    Raises:
        RequestError: The file is missing or damaged.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        raise RequestError(
            f"{folder} has no predictions for test images; name a finished run on a data set that "
            "has some."
        )
    try:
        data = read_arrays(path, ("predictions", "labels", "task", "groups", "groupings"))
        table = msgspec.json.decode(str(data["task"]), type=dict[str, Any])
        task = construction.build_part(discover(), "task", table, where=str(path))
        return Predictions(data["predictions"], data["labels"], task, _groupings(data))
    except (DataError, StudyError, ValueError, KeyError, msgspec.MsgspecError) as error:
        raise RequestError(f"{path} is damaged; run that study again.") from error


class _Named(msgspec.Struct, forbid_unknown_fields=True):
    """A stored grouping, without its codes."""

    name: str
    is_centre: bool
    values: tuple[str, ...]


def _groupings(data: Mapping[str, NDArray[Any]]) -> tuple[Grouping, ...]:
    """Return the stored groupings.

    Raises:
        ValueError: They do not fit the labels.
    """
    if "groups" not in data:
        return ()
    codes = data["groups"]
    named = msgspec.json.decode(str(data["groupings"]), type=list[_Named])
    if codes.shape != (len(data["labels"]), len(named)):
        raise ValueError("the groups do not fit the labels")
    return tuple(
        Grouping(
            name=each.name,
            is_centre=each.is_centre,
            values=each.values,
            codes=codes[:, k].astype(np.int64),
        )
        for k, each in enumerate(named)
    )
