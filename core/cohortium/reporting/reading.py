"""Strict reading of a run's folder, whose author is not trusted."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec
from attrs import evolve, field, frozen

from cohortium.errors import RecordError, RequestError, StudyError
from cohortium.reporting.terms import Terms
from cohortium.roles import events
from cohortium.roles.events import (
    PLAN_STATE,
    AttemptFailed,
    RoundCompleted,
    RunCompleted,
    RunFailed,
    RunStarted,
)
from cohortium.runs.history import Cell, History
from cohortium.runs.holdout_scores import SiteScores
from cohortium.runs.result import EVALUATION, RESULT, SITE_SCORES
from cohortium.runs.run_folder import require_run_folder
from cohortium.runs.signatures import SeenSignature, seen_signatures
from cohortium.runs.stored_result import (
    MAX_BYTES,
    ResultFile,
    convert,
    decode,
    read_result,
    require_consistent,
)
from cohortium.storage.bounded_read import read_bounded, read_if_present
from cohortium.study import toml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from cohortium.data.scores import Scores
    from cohortium.privacy.guarantee import Guarantee
    from cohortium.privacy.membership import MembershipBound
    from cohortium.roles.values import AggregationGuarantee

MAX_STATE_COLUMNS = 4
"""Most numbers of a privacy plan's state that a page shows of a round."""

KINDS = (RunStarted, events.SiteFailed, AttemptFailed, RoundCompleted, RunCompleted, RunFailed)
"""The events that a record keeps. Others are ignored."""


State: TypeAlias = Literal["finished", "failed", "unfinished"]
"""Whether a run is complete or failed. An unfinished one is neither and can still continue."""


@frozen(kw_only=True)
class Record:
    """One run's folder.

    Attributes:
        folder: Its path.
        study: The tables of `study.toml`.
        study_sha256: Of that file.
        terms: Its `[federation]`.
        state: Whether the run is complete, failed or unfinished.
        reason: Reason of its failure.
        began: Start of the run in seconds since the epoch, if `events.jsonl` has it.
        started: Its first event, or None without `events.jsonl`.
        rounds: The completed rounds, in order.
        failures: Failures that sites reported.
        failed_attempts: Attempts at a round that failed.
        result: `result.json`, or None in a run that is not finished.
        evaluation: Record of the evaluation at the sites, or None without one.
        signatures: Signatures under the result.
        site_scores: Scores of simulated sites on their held-out images, if any.
    """

    folder: Path
    study: Mapping[str, Mapping[str, Any]] = field(repr=False)
    study_sha256: str
    terms: Terms
    state: State
    reason: str = ""
    began: float | None = None
    started: RunStarted | None = field(default=None, repr=False)
    rounds: History = field(default=History(), repr=False)
    failures: tuple[events.SiteFailed, ...] = field(default=(), repr=False)
    failed_attempts: tuple[AttemptFailed, ...] = field(default=(), repr=False)
    result: ResultFile | None = field(default=None, repr=False)
    evaluation: Record | None = field(default=None, repr=False)
    signatures: tuple[SeenSignature, ...] = field(default=(), repr=False)
    site_scores: tuple[SiteScores, ...] = field(default=(), repr=False)

    @property
    def guarantee(self) -> Guarantee | None:
        """Guarantee of the whole run, as planned if it is unfinished."""
        if self.result is not None:
            return self.result.guarantee
        return None if self.started is None else self.started.guarantee

    @property
    def aggregation(self) -> AggregationGuarantee | None:
        """The aggregator's guarantee."""
        if self.result is not None and self.result.aggregation is not None:
            return self.result.aggregation
        return None if self.started is None else self.started.aggregation

    @property
    def membership(self) -> tuple[MembershipBound, ...]:
        """Bounds on membership attacks.  Empty before the end of the run."""
        return () if self.result is None else self.result.membership

    @property
    def is_simulation(self) -> bool:
        """Whether one party distributed the data, and so could see all."""
        return self.started is not None and self.started.site_sizes is not None

    @property
    def scores(self) -> Scores | None:
        """Scores on the test images, or None."""
        return None if self.result is None else self.result.scores

    @property
    def data(self) -> str:
        """Name of the data set, from the study if nowhere else."""
        named = "" if self.started is None else self.started.dataset
        named = named or ("" if self.result is None else self.result.data)
        return named or str(self.study.get("dataset", {}).get("name", "?"))

    @property
    def is_personal(self) -> bool:
        """Whether sites use their own networks, as the result says."""
        return self.result is not None and self.result.is_personal

    @property
    def majority_share(self) -> float | None:
        """Validation accuracy of always predicting the most frequent class."""
        known = [row.get("majority_share") for row in self.rows]
        return next((float(share) for share in known if share is not None), None)

    @property
    def provenance(self) -> Mapping[str, Mapping[str, str]]:
        """By part, the origin of code that belongs to no plugin."""
        if self.result is not None and self.result.provenance:
            return self.result.provenance
        return {} if self.started is None else self.started.provenance

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics of the rounds, the main one first."""
        scored = [event.scores for event in self.rounds if event.scores is not None]
        scored += [] if self.scores is None else [self.scores]
        return tuple(dict.fromkeys(name for scores in scored for name in scores.metrics))

    @property
    def state_columns(self) -> tuple[str, ...]:
        """Columns of the rows with the privacy plan's state, at most `MAX_STATE_COLUMNS`."""
        names = dict.fromkeys(name for row in self.rows[:1] for name in row)
        return tuple(n for n in names if n.startswith(PLAN_STATE))[:MAX_STATE_COLUMNS]

    @property
    def main_metric(self) -> str:
        """Name of the main metric, or "accuracy" without scores."""
        return next(iter(self.metrics), "accuracy")

    @property
    def rows(self) -> list[dict[str, Cell]]:
        """A row for each round."""
        if self.rounds or self.result is None:
            return self.rounds.rows()
        return list(self.result.history)


def read(folder: Path) -> Record:
    """Read the record in `folder`, with that of its evaluation.

    Raises:
        RecordError: It is missing or damaged, or contains no information about a run.
    """
    record, inner = _read(folder), folder / EVALUATION
    if not (inner / "study.toml").is_file():
        return record
    return evolve(record, evaluation=_read(inner))


def _read(folder: Path) -> Record:
    path = folder / "study.toml"
    try:
        require_run_folder(folder)
        study = toml.read(path, what="the study")
    except (RequestError, StudyError) as error:
        raise RecordError(str(error)) from error
    if not all(isinstance(table, dict) for table in study.values()):
        raise RecordError(f"{path} is damaged: a study consists of tables.")
    result = read_result(folder / RESULT, ResultFile)
    log = _EventLog.read(folder / "events.jsonl")
    if result is None and log.started is None:
        raise RecordError(f"{folder} holds no run: it has neither a result nor a first event.")
    if result is not None and log.ended not in (None, result.weights_sha256):
        raise RecordError(f"{folder} holds the events of one run and the result of another.")
    return Record(
        folder=folder,
        study=study,
        study_sha256=hashlib.sha256(read_bounded(path, MAX_BYTES, RecordError)).hexdigest(),
        terms=convert(study.get("federation", {}), Terms, where=f"{path} [federation]"),
        state=_state(result, log),
        reason=log.reason if result is None else "",
        began=log.began,
        started=log.started,
        rounds=History(log.rounds[number] for number in sorted(log.rounds)),
        failures=tuple(log.failures),
        failed_attempts=tuple(log.failed_attempts),
        result=result,
        signatures=seen_signatures(folder),
        site_scores=read_site_scores(folder / SITE_SCORES) if result is not None else (),
    )


def read_site_scores(path: Path) -> tuple[SiteScores, ...]:
    """Return the scores of simulated sites, none if there is no such file.

    Raises:
        RecordError: The file is damaged, or cannot be read.
    """
    data = read_if_present(path, MAX_BYTES, RecordError)
    return () if data is None else decode(data, tuple[SiteScores, ...], where=str(path))


def _state(result: ResultFile | None, log: _EventLog) -> State:
    if result is not None:
        return "finished"
    return "failed" if log.reason else "unfinished"


class _EventLog:
    """Content of `events.jsonl`, collected line by line."""

    def __init__(self) -> None:
        self.started: RunStarted | None = None
        self.began: float | None = None
        self.rounds: dict[int, RoundCompleted] = {}
        self.failures: list[events.SiteFailed] = []
        self.failed_attempts: list[AttemptFailed] = []
        self.reason = ""
        self.ended: str | None = None

    @classmethod
    def read(cls, path: Path) -> _EventLog:
        """Read all events, or none if there is no such file."""
        log = cls()
        for moment, event in _events(path):
            log.take(moment, event)
        return log

    def take(self, moment: float, event: object) -> None:
        """Add one event.

        After a resumption, the later event of a round counts.
        """
        match event:
            case RunStarted():
                self.began = moment if self.began is None else self.began
                self.started, self.reason = event, ""
            case RoundCompleted():
                self.rounds[event.round] = event
            case events.SiteFailed():
                self.failures.append(event)
            case AttemptFailed():
                self.failed_attempts.append(event)
            case RunCompleted():
                self.ended = event.weights_sha256
            case RunFailed():
                self.reason = event.reason or "it does not say why"


class _Line(msgspec.Struct):
    """Fields of every line of `events.jsonl`."""

    event: str
    time: float


def _events(path: Path) -> Iterator[tuple[float, object]]:
    """Yield the events of a record with their times.

    A last line that was only partly written is left out.
    """
    kinds = {events.EVENT_NAMES[kind]: kind for kind in KINDS}
    data = read_if_present(path, MAX_BYTES, RecordError) or b""
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return
        where = f"{path} line {number}"
        head = decode(line, _Line, where=where)
        if head.event in kinds:
            event = decode(line, kinds[head.event], where=where)
            if isinstance(event, RoundCompleted):
                require_consistent(event.scores, where=where)
            yield head.time, _fitting(event, where) if isinstance(event, RunStarted) else event


def _fitting(started: RunStarted, where: str) -> RunStarted:
    """Return `started`, if its numbers of sites and classes agree."""
    histograms = started.label_histograms or ()
    if (
        any(len(row) != len(started.classes) for row in histograms if started.classes)
        or len({len(row) for row in histograms}) > 1
        or (
            started.label_histograms is not None
            and len(histograms) != len(started.site_sizes or ())
        )
    ):
        raise RecordError(f"{where} is damaged: its label histograms do not fit one another.")
    return started
