"""What happens in a run, as values that observers are told of and the run record keeps.

Where a field is the simulator's knowledge (a real coordinator would not have it), it says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from attrs import frozen

from cohortium.guarantee import Guarantee
from cohortium.metrics import Scores


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
        sizes: Training examples at each site; the simulator's knowledge, else None.
        histograms: Examples of each class at each site; the simulator's knowledge, else None.
    """

    folder: Path | None
    rounds: int
    sites: int
    parameters: int
    guarantee: Guarantee | None
    warnings: tuple[str, ...] = ()
    history: tuple[RoundFinished, ...] = ()
    sizes: tuple[int, ...] | None = None
    histograms: tuple[tuple[int, ...], ...] | None = None


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
class RoundFailed:
    """Too few sites answered; nothing was released, and a retry is a new attempt."""

    round: int
    attempt: int
    reason: str


@frozen(kw_only=True)
class RoundFinished:
    """The global weights have moved.

    Attributes:
        round: From 0.
        attempt: From 0, over the run.
        contributors: Sites in the sum.
        dropped: Sites that were asked and are not in it.
        spent: What the attempts so far promise, or None without privacy.
        scores: On the public validation images, where there are any and it was due.
        upload_bytes_per_site: The largest number of bytes that one site sent.
        seconds_train: Time inside the exchanges, where sites train.
        seconds_aggregate: Time of the coordinator's own work.
    """

    round: int
    attempt: int
    contributors: tuple[int, ...]
    dropped: tuple[int, ...]
    spent: Guarantee | None
    scores: Scores | None
    upload_bytes_per_site: int
    seconds_train: float
    seconds_aggregate: float


@frozen(kw_only=True)
class RunFinished:
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
    """The run had started and ended without a result."""

    reason: str


Event: TypeAlias = RunStarted | SiteFailed | RoundFailed | RoundFinished | RunFinished | RunFailed
