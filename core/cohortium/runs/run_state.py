"""State of a run between rounds, saved to and restored from checkpoints."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from typing import TYPE_CHECKING

import attrs
import msgspec
import numpy as np
from attrs import define, field

from cohortium import parameters
from cohortium.catalog.provenance import as_versions, collect_provenance
from cohortium.runs.checkpoint import Checkpoint, RunFingerprint
from cohortium.runs.guarantee_warnings import guarantee_warnings
from cohortium.runs.history import History
from cohortium.runs.result import versions

if TYPE_CHECKING:
    from cohortium.roles.events import RoundCompleted
    from cohortium.rounds.coordinator import Coordinator
    from cohortium.runs.prepare import PreparedStudy
    from cohortium.runs.run_directory import RunDirectory


@define(eq=False, kw_only=True)
class RunState:
    """State of a run.

    Guarantees:
        The record of an attempt is durable before any site receives its request.
        A round's checkpoint is durable before the next round begins.
        An interrupted attempt is repeated only where the repetition equals it to the last bit.
        This holds for simulated sites whose releases have no guarantee or draw their noise from the
        seed.
        Otherwise the attempt's number is spent, as the attempt may have been charged.
        So there are never other attempts than the guarantee covers, however often a run is resumed.

    Attributes:
        prepared: The study.
        coordinator: The coordinator, which has the weights.
        folder: Directory of the run, or None.
        fingerprint: Fingerprint of the run at its start, or None if the run is not stored.
        target_rounds: Rounds that can be completed with the remaining attempts: all, if no attempt
            was lost.
        history: Completed rounds.
        attempt: Number of the next attempt.
        lost_attempts: Attempts that began before this process, and cannot be repeated.
        version_changes: Versions that differ from those at the run's start.
        previous_seconds: Seconds that the run took before this process.
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
        return self.prepared.run_config.federation_spec.rounds

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken so far, over all processes."""
        return self.previous_seconds + time.perf_counter() - self._started

    @property
    def is_deterministic(self) -> bool:
        """Whether a repeated attempt is equal to the last bit."""
        run_config = self.prepared.run_config
        is_seeded = (
            run_config.plan.guarantee is None or run_config.federation_spec.insecure_seeded_secrets
        )
        return bool(self.prepared.partition) and is_seeded

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state from a checkpoint.

        Raises:
            StudyError: The study, the data or the plan differ from those at the run's start.
            RunError: The run's directory is damaged.
        """
        folder, origin = self.folder, self.fingerprint
        assert folder is not None, "only stored state is restored"
        assert origin is not None, "only stored state is restored"
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
        planned = self.prepared.run_config.planned_attempts()
        self.target_rounds = planned.reachable_rounds(self.attempt_rounds(), checkpoint.rounds)
        self._keep_best()

    def attempt_rounds(self) -> list[int]:
        """Return the round of each attempt so far."""
        return History(self.history).attempt_rounds(self.attempt)

    def start_attempt(self, attempt: int) -> None:
        """Record that `attempt` begins.

        Raises:
            RunError: The record, or the round's result, cannot be made durable. The attempt must
                not begin.
        """
        if self.folder is not None:
            # The checkpoint, and the weights next to it: the latest and the best.
            weights = 2 * 4 * self.prepared.parameters
            self.folder.require_room(self.prepared.run_config.sizes.server + weights)
            self.folder.log.log_attempt(attempt)
        self.attempt = attempt + 1

    def complete_round(self, event: RoundCompleted) -> None:
        """Add a completed round.

        Raises:
            RunError: The round cannot be made durable.
        """
        self.history.append(event)
        if self.folder is not None:
            self.folder.log.log_round(event)
        self.checkpoint()
        self._keep_best()

    def checkpoint(self) -> None:
        """Write the state to a checkpoint.

        Raises:
            RunError: The checkpoint cannot be written. The previous one is unchanged.
        """
        if self.folder is None or self.fingerprint is None:
            return
        self.folder.write_checkpoint(
            Checkpoint(
                session=self.prepared.run_config.session,
                rounds=len(self.history),
                attempt=self.attempt,
                seconds=self.seconds,
                fingerprint=self.fingerprint,
                states=self.folder.state_files(),
                server=self.coordinator.state(),
            )
        )

    def _keep_best(self) -> None:
        """Write the weights if they have the best validation score so far."""
        scored = [event.scores.main for event in self.history if event.scores is not None]
        if self.folder is None or not self.history or self.history[-1].scores is None:
            return
        # A score that the images do not determine is no number, and never the best.
        if scored[-1] > max((each for each in scored[:-1] if not math.isnan(each)), default=-1.0):
            weights = parameters.state_dict(self.coordinator.net)
            self.folder.write_best(weights, rounds=len(self.history), score=scored[-1])

    def warnings(self) -> tuple[str, ...]:
        """Return warnings for a careful reader, before the run begins or continues."""
        federation_spec = self.prepared.run_config.federation_spec
        found = [*guarantee_warnings(self.prepared.run_config.plan, federation_spec)]
        found += self.prepared.warnings
        if self.prepared.shared:
            found.append(
                f"{self.prepared.shared} too; for these, the guarantees of the training and of the "
                "evaluation hold together only, and the scores are too good."
            )
        if self.lost_attempts:
            found.append(
                f"{_attempts(self.lost_attempts)} started and not finished; that counts as spent, "
                "and a new one takes the place of each."
            )
        if self.target_rounds < federation_spec.rounds:
            differs = len(self.prepared.run_config.costs()) > 1
            found.append(
                f"{federation_spec.attempts - self.attempt} of the {federation_spec.attempts} "
                f"attempts that the study plans for are left{', and their noise differs' * differs}"
                ": the run ends after "
                f"{self.target_rounds} of its {federation_spec.rounds} rounds. More retries would "
                "have allowed for that."
            )
        if self.version_changes:
            found.append(
                f"the run started with other versions ({', '.join(self.version_changes)}); it may "
                "come to other bits than it would have."
            )
        return tuple(found)


def run_fingerprint(prepared: PreparedStudy) -> RunFingerprint:
    """Return the fingerprint of a run of `prepared`."""
    import torch

    plan, federation = prepared.run_config.plan, prepared.federation
    dealt = [np.ascontiguousarray(indices, dtype="<i8").tobytes() for indices in prepared.partition]
    terms = (
        *itertools.chain.from_iterable(prepared.run_config.costs().items()),
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
    """Return the data's fingerprint, or a deployment's declarations."""
    if prepared.is_deployment:
        return repr(prepared.dataset_info.spec).encode()
    return prepared.splits.train.fingerprint


def _attempts(number: int) -> str:
    return "1 attempt was" if number == 1 else f"{number} attempts were"


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()
