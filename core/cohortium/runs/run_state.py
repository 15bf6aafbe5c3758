"""How a run stands between two rounds, and how it comes to stand there again."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

import attrs
import msgspec
import numpy as np
from attrs import define, field

from cohortium import parameters
from cohortium.catalog.provenance import as_versions, collect_provenance
from cohortium.ledger.cost import AttemptCost
from cohortium.runs.checkpoint import Checkpoint, RunFingerprint
from cohortium.runs.result import versions

if TYPE_CHECKING:
    from cohortium.roles.events import RoundCompleted
    from cohortium.rounds.coordinator import Coordinator
    from cohortium.runs.prepare import PreparedStudy
    from cohortium.runs.run_directory import RunDirectory


@define(eq=False, kw_only=True)
class RunState:
    """How far a run is.

    Guarantees:
        That an attempt begins is durable before anyone is asked for it, and a round's checkpoint
        before the next begins.  An attempt that was begun and broken off is made again only where
        that repeats it to the last bit: by simulated sites, whose releases promise nothing or
        draw their noise from the seed.  Otherwise its number is spent, as it may have been charged.
        So there are never more attempts than the guarantee covers, however often a run goes on.

    Attributes:
        prepared: The study.
        coordinator: Holds the weights.
        folder: Where it is kept, or None.
        fingerprint: What it was begun with; None where nothing is kept.
        target_rounds: Rounds that can be completed with the attempts that are left: all, if none
            was lost.
        history: Rounds that are finished.
        attempt: Number of the next attempt.
        lost_attempts: Attempts that were begun before this process, and cannot be made again.
        version_changes: What is of another version than when it was begun.
        previous_seconds: Seconds that it has taken before this process.
    """

    prepared: PreparedStudy
    coordinator: Coordinator
    folder: RunDirectory | None = None
    fingerprint: RunFingerprint | None = None
    target_rounds: int = field(init=False)
    history: list[RoundCompleted] = field(factory=list, init=False)
    attempt: int = field(default=0, init=False)
    lost_attempts: int = field(default=0, init=False)
    version_changes: tuple[str, ...] = field(default=(), init=False)
    previous_seconds: float = field(default=0.0, init=False)
    _started: float = field(init=False, repr=False, factory=time.perf_counter)

    @target_rounds.default
    def _all(self) -> int:
        return self.prepared.setting.cohort.rounds

    @property
    def seconds(self) -> float:
        """That it has taken so far, over all processes."""
        return self.previous_seconds + time.perf_counter() - self._started

    @property
    def is_deterministic(self) -> bool:
        """Whether an attempt that is made again is the same to the last bit."""
        setting = self.prepared.setting
        is_seeded = setting.plan.guarantee is None or setting.cohort.insecure_seeded_secrets
        return bool(self.prepared.partition) and is_seeded

    def restore(self, checkpoint: Checkpoint) -> None:
        """Stand where the run stood.

        Raises:
            StudyError: The study, the data or the plan are not what it was begun with.
            RunError: Its folder is damaged.
        """
        folder, origin = self.folder, self.fingerprint
        assert folder is not None, "only what is kept is restored"
        assert origin is not None, "only what is kept is restored"
        checkpoint.fingerprint.require(origin)
        self.version_changes = checkpoint.fingerprint.changes(origin)
        folder.require_state_files(checkpoint.states)
        self.coordinator.restore(checkpoint.server)
        self.history = folder.log.history(checkpoint.rounds)
        self.previous_seconds = checkpoint.seconds
        self.attempt = checkpoint.attempt
        if not self.is_deterministic:
            self.attempt = max(self.attempt, folder.log.last_attempt + 1)
            self.lost_attempts = self.attempt - checkpoint.attempt
        cohort = self.prepared.setting.cohort
        self.target_rounds = min(cohort.rounds, checkpoint.rounds + cohort.attempts - self.attempt)
        self._keep_best()

    def start_attempt(self, attempt: int) -> None:
        """Note that `attempt` begins.

        Raises:
            RunError: That, or what the round will come to, cannot be made durable; it must not
                begin.
        """
        if self.folder is not None:
            # The checkpoint, and beside it the weights: the latest and the best.
            weights = 2 * 4 * self.prepared.parameters
            self.folder.require_room(self.prepared.setting.sizes.server + weights)
            self.folder.log.log_attempt(attempt)
        self.attempt = attempt + 1

    def complete_round(self, event: RoundCompleted) -> None:
        """Take in what a round has come to.

        Raises:
            RunError: It cannot be made durable.
        """
        self.history.append(event)
        if self.folder is not None:
            self.folder.log.log_round(event)
        self.checkpoint()
        self._keep_best()

    def checkpoint(self) -> None:
        """Make it durable how things stand.

        Raises:
            RunError: It cannot be made so; how they stood before is.
        """
        if self.folder is None or self.fingerprint is None:
            return
        self.folder.write_checkpoint(
            Checkpoint(
                session=self.prepared.setting.session,
                rounds=len(self.history),
                attempt=self.attempt,
                seconds=self.seconds,
                fingerprint=self.fingerprint,
                states=self.folder.state_files(),
                server=self.coordinator.state(),
            )
        )

    def _keep_best(self) -> None:
        """Keep the weights as they are, if no round did as well on the validation images."""
        scored = [event.scores.accuracy for event in self.history if event.scores is not None]
        if self.folder is None or not self.history or self.history[-1].scores is None:
            return
        if scored[-1] > max(scored[:-1], default=-1.0):
            weights = parameters.state_dict(self.coordinator.net)
            self.folder.write_best(weights, rounds=len(self.history), accuracy=scored[-1])

    def warnings(self) -> tuple[str, ...]:
        """What a careful reader should be told before it begins, or goes on."""
        cohort, guarantee = self.prepared.setting.cohort, self.prepared.setting.plan.guarantee
        found = [] if guarantee is None else [*guarantee.warnings(cohort.num_units(guarantee.unit))]
        if self.lost_attempts:
            found.append(
                f"{_attempts(self.lost_attempts)} begun and not finished; that counts as spent, "
                "and a new "
                "one takes the place of each."
            )
        if self.target_rounds < cohort.rounds:
            found.append(
                f"{cohort.attempts - self.attempt} of the {cohort.attempts} attempts that the "
                f"study plans for are left: the run ends after {self.target_rounds} of its "
                f"{cohort.rounds} rounds. More retries would have allowed for that."
            )
        if self.version_changes:
            found.append(
                f"the run was begun with other versions ({', '.join(self.version_changes)}); it "
                "may come "
                "to other bits than it would have."
            )
        return tuple(found)


def run_fingerprint(prepared: PreparedStudy) -> RunFingerprint:
    """What a run of `prepared` begins with, or goes on with."""
    import torch

    plan, federation = prepared.setting.plan, prepared.federation
    dealt = [np.ascontiguousarray(indices, dtype="<i8").tobytes() for indices in prepared.partition]
    terms = (
        AttemptCost.from_plan(plan),
        prepared.setting.cohort.attempts,
        plan.ring.bits,
        plan.length,
    )
    return RunFingerprint(
        study=_digest(attrs.evolve(federation, observers=()).as_toml().encode()),
        data=_digest(_dataset_fingerprint(prepared), *dealt),
        plan=_digest(msgspec.msgpack.encode(terms)),
        versions={
            **versions(),
            "threads of torch": str(torch.get_num_threads()),
            **federation.plugins(),
            **as_versions(collect_provenance(federation)),
        },
    )


def _dataset_fingerprint(prepared: PreparedStudy) -> bytes:
    """Of a simulation's data; of a deployment's, what its study declares."""
    if prepared.is_deployment:
        return repr(prepared.dataset_info.spec).encode()
    return prepared.splits.train.fingerprint


def _attempts(number: int) -> str:
    return "1 attempt was" if number == 1 else f"{number} attempts were"


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()
