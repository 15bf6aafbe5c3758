"""What happens in a run, as values that observers are told of and the run record keeps.

Where a field is the simulator's knowledge (a real coordinator would not have it), it says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from attrs import field, frozen

from cohortium.data.metrics import Scores
from cohortium.privacy.guarantee import Guarantee
from cohortium.roles.values import AggregationGuarantee


@frozen(kw_only=True)
class RunStarted:
    """A run begins, or goes on after it was broken off.

    Attributes:
        folder: Where its record goes, or None.
        rounds: Of the whole run.
        sites: In the federation.
        parameters: P, the length of the update.
        guarantee: What the whole run promises, or None.
        warnings: What a careful reader should be told before it starts.
        history: Rounds that were finished before, in order, where the run goes on.
        dataset: What the data set is called.
        citation: Whom to cite for it.
        classes: Names of the classes.
        aggregation: What the aggregator hides from the coordinator, or None.
        site_sizes: Training examples at each site; the simulator's knowledge, else None.
        label_histograms: Examples of each class at each site; the simulator's knowledge, else None.
        data_sha256: Of all training data; the simulator's knowledge, else None.
        provenance: By part, whose code it is where no plugin answers for it: `class`, and where
            there are such `file`, `sha256` and `package`.
    """

    folder: Path | None
    rounds: int
    sites: int
    parameters: int
    guarantee: Guarantee | None
    warnings: tuple[str, ...] = ()
    history: tuple[RoundCompleted, ...] = ()
    dataset: str = ""
    citation: str = ""
    classes: tuple[str, ...] = ()
    aggregation: AggregationGuarantee | None = None
    site_sizes: tuple[int, ...] | None = None
    label_histograms: tuple[tuple[int, ...], ...] | None = None
    data_sha256: str | None = None
    provenance: dict[str, dict[str, str]] = field(factory=dict)


@frozen(kw_only=True)
class StageStats:
    """One exchange of an attempt: all that were asked, answered or did not.

    Attributes:
        name: What the aggregator calls it; empty if it says nothing.
        num_asked: Sites that were asked.
        dropped: Those whose answer did not come, or was of no use.
        upload_bytes: That all sites sent together.
        download_bytes: That all sites were sent together.
        seconds: Until the last answer had come; sites train in the exchange that brings vectors.
    """

    name: str
    num_asked: int
    dropped: tuple[int, ...]
    upload_bytes: int
    download_bytes: int
    seconds: float


@frozen(kw_only=True)
class SiteReplied:
    """A sign of life within a round: one site's answer to one exchange has come and was of use.

    It comes for every site and every exchange of an attempt, and says nothing that the round's own
    event does not: show it or pass over it, and keep it in no record.

    Attributes:
        round: From 0.
        attempt: From 0, over the run.
        stage: Of the attempt, from 0; an aggregator may need several.
        site: Which.
        num_replied: Sites that have answered this exchange so far.
        num_asked: Sites that were asked in it.
    """

    round: int
    attempt: int
    stage: int
    site: int
    num_replied: int
    num_asked: int


@frozen(kw_only=True)
class SiteFailed:
    """A site refused, or sent something that is not an answer, and counts as dropped.

    Attributes:
        round: From 0.
        attempt: From 0, over the run.
        site: Which.
        code: For programs: "non-finite", "malformed", …
        reason: For people.
    """

    round: int
    attempt: int
    site: int
    code: str
    reason: str


@frozen(kw_only=True)
class AttemptFailed:
    """Too few sites answered; nothing was released, and a retry is a new attempt.

    Attributes:
        round: From 0.
        attempt: From 0, over the run.
        reason: For people.
        stages: The attempt's exchanges, in order.
    """

    round: int
    attempt: int
    reason: str
    stages: tuple[StageStats, ...] = ()


@frozen(kw_only=True)
class RoundCompleted:
    """The global weights have moved.

    Attributes:
        round: From 0.
        attempt: From 0, over the run.
        contributors: Sites in the sum.
        dropped: Sites that were asked and are not in it.
        guarantee_so_far: What the attempts so far promise, or None without privacy.
        scores: On the public validation images, where there are any and it was due.
        upload_bytes_per_site: The largest number of bytes that one site sent.
        seconds_train: Time inside the exchanges, where sites train.
        seconds_aggregate: Time of the coordinator's own work.
        stages: The exchanges of the attempt that succeeded, in order.
    """

    round: int
    attempt: int
    contributors: tuple[int, ...]
    dropped: tuple[int, ...]
    guarantee_so_far: Guarantee | None
    scores: Scores | None
    upload_bytes_per_site: int
    seconds_train: float
    seconds_aggregate: float
    stages: tuple[StageStats, ...] = ()

    def row(self) -> dict[str, float | int | None]:
        """The numbers of it, always by the same names; see `History.rows`."""
        scores = self.scores
        return {
            "round": self.round + 1,
            "attempt": self.attempt,
            "accuracy": None if scores is None else scores.accuracy,
            "balanced_accuracy": None if scores is None else scores.balanced_accuracy,
            "auc": None if scores is None else scores.auc,
            "loss": None if scores is None else scores.loss,
            "majority_share": None if scores is None else scores.majority_share,
            "epsilon": None if self.guarantee_so_far is None else self.guarantee_so_far.epsilon,
            "contributors": len(self.contributors),
            "dropped": len(self.dropped),
            "upload_bytes": self.upload_bytes_per_site,
            "seconds_train": self.seconds_train,
            "seconds_aggregate": self.seconds_aggregate,
        }

    def metrics(self) -> dict[str, float]:
        """Those numbers that are known, beside the round itself: what a tracker draws."""
        known = {name: value for name, value in self.row().items() if value is not None}
        return {name: float(value) for name, value in known.items() if name != "round"}


@frozen(kw_only=True)
class RunCompleted:
    """The run is complete.

    Attributes:
        scores: On the test images, or None where there are none.
        guarantee: What the whole run promises, or None.
        weights_sha256: Of the final weights.
        seconds: From start to end.
    """

    scores: Scores | None
    guarantee: Guarantee | None
    weights_sha256: str
    seconds: float


@frozen(kw_only=True)
class RunFailed:
    """The run had started and ended without a result.

    Attributes:
        reason: For people.
    """

    reason: str


Event: TypeAlias = (
    RunStarted
    | SiteReplied
    | SiteFailed
    | AttemptFailed
    | RoundCompleted
    | RunCompleted
    | RunFailed
)
"""What an observer is told: any of these."""

EVENT_NAMES: dict[type[Event], str] = {
    RunStarted: "RunStarted",
    SiteReplied: "SiteReplied",
    SiteFailed: "SiteFailed",
    AttemptFailed: "AttemptFailed",
    RoundCompleted: "RoundCompleted",
    RunCompleted: "RunCompleted",
    RunFailed: "RunFailed",
}
"""The name of each event in `events.jsonl`; it stays when a class is renamed."""
