"""Events of a run, for observers and the run record.

A real coordinator would not have some of these values, only the simulator has them.  The
docstring of such a field says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from attrs import field, frozen

from cohortium.data.estimates import Estimate
from cohortium.data.scores import Scores
from cohortium.privacy.guarantee import Guarantee
from cohortium.roles.values import AggregationGuarantee

PLAN_STATE = "plan_state"
"""Column of a plan's state in a table of rounds, or the start of its columns' names."""


@frozen(kw_only=True)
class RunStarted:
    """Start of a run, or its resumption after an interruption.

    Attributes:
        folder: Folder of the run's record, or None.
        rounds: Rounds of the whole run.
        sites: Sites in the federation.
        parameters: P, the length of the update.
        guarantee: Guarantee of the whole run, or None.
        warnings: Warnings that a careful reader needs before the run starts.
        history: Rounds that were complete before, in order, where the run resumes.
        dataset: Name of the data set.
        citation: Citation for the data set.
        classes: Names of the classes.
        aggregation: What the aggregator hides from the coordinator, or None.
        site_sizes: Training examples at each site.  The simulator's knowledge, else None.
        label_histograms: Examples of each class at each site.  The simulator's knowledge, else
            None.
        data_sha256: Hash of all training data.  The simulator's knowledge, else None.
        provenance: By part, the origin of code that comes from no plugin: `class`, and where they
            exist `file`, `sha256` and `package`.
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
    """Statistics of one stage of an attempt, over all asked sites.

    Attributes:
        name: The aggregator's name for the stage, or empty if it gives none.
        num_asked: Sites that were asked.
        dropped: Sites whose reply did not come or was not usable.
        upload_bytes: Bytes that all sites sent together.
        download_bytes: Bytes that all sites were sent together.
        seconds: Time until the last reply had come.  Sites train in the stage that brings vectors.
    """

    name: str
    num_asked: int
    dropped: tuple[int, ...]
    upload_bytes: int
    download_bytes: int
    seconds: float


@frozen(kw_only=True)
class SiteReplied:
    """Progress within a round: one usable reply has come.

    One site has replied to one stage.  The event comes for every site and every stage of an
    attempt.

    It adds nothing to the round's own event.
    Display or ignore it, and keep it in no record.

    Attributes:
        round: From 0.
        attempt: From 0, over the run.
        stage: Stage of the attempt, from 0.  An aggregator may need several.
        site: The site that replied.
        num_replied: Sites that have replied in this stage so far.
        num_asked: Sites that were asked in this stage.
    """

    round: int
    attempt: int
    stage: int
    site: int
    num_replied: int
    num_asked: int


@frozen(kw_only=True)
class SiteFailed:
    """Failure of one site, which counts as dropped.

    The site refused, or sent something that is not a reply.

    Attributes:
        round: From 0.
        attempt: From 0, over the run.
        site: The site that failed.
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
    """Failure of an attempt, because too few sites replied.

    Nothing was released, and a retry is a new attempt.

    Attributes:
        round: From 0.
        attempt: From 0, over the run.
        reason: For people.
        stages: The attempt's stages, in order.
    """

    round: int
    attempt: int
    reason: str
    stages: tuple[StageStats, ...] = ()


@frozen(kw_only=True)
class RoundCompleted:
    """Completion of a round: the global weights have moved.

    Attributes:
        round: From 0.
        attempt: From 0, over the run.
        contributors: Sites in the sum.
        dropped: Sites that were asked and are not in the sum.
        guarantee_so_far: Guarantee of the attempts so far, or None without privacy.
        scores: Scores on the public validation images, where there are any and they were due.
        upload_bytes_per_site: The largest number of bytes that one site sent.
        seconds_train: Time spent waiting for sites, which train meanwhile.
        seconds_aggregate: Time of the coordinator's own work.
        stages: The stages of the attempt that succeeded, in order.
        measured: The sum of a statistic's rows.  Empty where the sites train.
        plan_state: State of the privacy plan after the round, such as an adaptive clip norm.
        trained_rounds: In an evaluation, the rounds of training that its weights had.  Else None.
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
    measured: tuple[float, ...] = ()
    plan_state: tuple[float, ...] = ()
    trained_rounds: int | None = None

    def row(self, metrics: tuple[str, ...] = ()) -> dict[str, float | int | None]:
        """Return the round's numbers, always by the same names.

        The numbers of a plan's state are there only if it has any.  See `History.rows`.

        Args:
            metrics: Names of the run's metrics, of which each is a number or None.
        """
        scores = self.scores
        known = {} if scores is None else scores.metrics
        return {
            "round": self.round + 1,
            "attempt": self.attempt,
            **{name: known.get(name) for name in metrics or known},
            "majority_share": None if scores is None else scores.majority_share,
            "epsilon": None if self.guarantee_so_far is None else self.guarantee_so_far.epsilon,
            **self._state(),
            "contributors": len(self.contributors),
            "dropped": len(self.dropped),
            "upload_bytes": self.upload_bytes_per_site,
            "seconds_train": self.seconds_train,
            "seconds_aggregate": self.seconds_aggregate,
        }

    def _state(self) -> dict[str, float]:
        if len(self.plan_state) == 1:
            return {PLAN_STATE: self.plan_state[0]}
        return {f"{PLAN_STATE}_{n}": number for n, number in enumerate(self.plan_state, start=1)}

    def metrics(self) -> dict[str, float]:
        """Return the known numbers, without the round itself, for an experiment tracker."""
        known = {name: value for name, value in self.row().items() if value is not None}
        return {name: float(value) for name, value in known.items() if name != "round"}


@frozen(kw_only=True)
class SitesEvaluated:
    """Evaluation of the global weights on the sites' own test images, between two rounds.

    Attributes:
        rounds: Completed rounds of training.
        contributors: Number of sites in the sum.
        main: The main score, with its interval.
        guarantee_so_far: Guarantee of the evaluations so far, or None without privacy.
    """

    rounds: int
    contributors: int
    main: Estimate
    guarantee_so_far: Guarantee | None


@frozen(kw_only=True)
class SiteScored:
    """Progress after the last round of a simulation with `holdout_baselines`.

    A site's networks have been trained and scored.
    Display or ignore it, and keep it in no record.

    Attributes:
        site: The site.
        num_scored: Sites that have been scored so far.
        num_sites: Sites in the federation.
    """

    site: int
    num_scored: int
    num_sites: int


@frozen(kw_only=True)
class RunCompleted:
    """Completion of a run.

    Attributes:
        scores: Scores on the test images, or None where there are none.
        guarantee: Guarantee of the whole run, or None.
        weights_sha256: Hash of the final weights.
        seconds: Time from start to end.
    """

    scores: Scores | None
    guarantee: Guarantee | None
    weights_sha256: str
    seconds: float


@frozen(kw_only=True)
class RunFailed:
    """End without a result of a run that had started.

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
    | SitesEvaluated
    | SiteScored
    | RunCompleted
    | RunFailed
)
"""Any event that an observer receives."""

EVENT_NAMES: dict[type[Event], str] = {
    RunStarted: "RunStarted",
    SiteReplied: "SiteReplied",
    SiteFailed: "SiteFailed",
    AttemptFailed: "AttemptFailed",
    RoundCompleted: "RoundCompleted",
    SitesEvaluated: "SitesEvaluated",
    SiteScored: "SiteScored",
    RunCompleted: "RunCompleted",
    RunFailed: "RunFailed",
}
"""Name of each event in `events.jsonl`.

It stays when a class is renamed.
"""
