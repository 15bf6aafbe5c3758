"""A run from its beginning, or from where it was broken off, to its result."""

from __future__ import annotations

import contextlib
import hashlib
import time
from typing import TYPE_CHECKING

import attrs
import msgspec
import numpy as np
from attrs import define, field

from cohortium import vector
from cohortium.checkpoint import Checkpoint, Origin
from cohortium.coordinator import Coordinator
from cohortium.errors import RunError, StoppedError
from cohortium.evaluation import Evaluation
from cohortium.events import RoundFinished, RunFailed, RunFinished, RunStarted
from cohortium.folder import RunFolder
from cohortium.history import History
from cohortium.personal import score_sites
from cohortium.record import Result, Seconds, versions
from cohortium.rounds import Rounds
from cohortium.spending import Price

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from cohortium.data import Examples
    from cohortium.events import Event
    from cohortium.metrics import Predictions, Scores
    from cohortium.preparation import Ready
    from cohortium.protocols import Observer
    from cohortium.rounds import Played
    from cohortium.sessions import Exchange


def begin(
    ready: Ready, *, out: Path | None, observers: Sequence[Observer], stop: Callable[[], bool]
) -> Result:
    """Run a study that is ready; see `Federation.run`."""
    run = Run(ready, Coordinator(ready.setting), [o.watch() for o in observers], stop)
    if out is None:
        return run.carry_out()
    study = ready.federation.as_toml()
    with RunFolder.create(out, study) as folder:
        run.keep_in(folder, study)
        return run.carry_out()


def resume(
    ready: Ready,
    folder: RunFolder,
    *,
    observers: Sequence[Observer],
    stop: Callable[[], bool],
) -> Result:
    """Go on with the run in `folder`; see `Federation.resume`."""
    checkpoint = folder.read_checkpoint()
    if checkpoint is not None:
        setting = attrs.evolve(ready.setting, session=checkpoint.session)
        ready = attrs.evolve(ready, setting=setting)
    run = Run(ready, Coordinator(ready.setting), [o.watch() for o in observers], stop)
    run.keep_in(folder, ready.federation.as_toml())
    if checkpoint is not None:
        run.restore(checkpoint)
    return run.carry_out()


@define(eq=False)
class Run:
    """One run under way.

    Guarantees:
        That an attempt begins is durable before anyone is asked for it, and a round's checkpoint
        before the next begins.  An attempt that was begun and broken off is made again only where
        that repeats it to the last bit: by simulated sites, whose releases promise nothing or
        draw their noise from the seed.  Otherwise its number is spent, as it may have been charged.
        So there are never more attempts than the guarantee covers, however often a run goes on.

    Attributes:
        ready: The study.
        coordinator: Holds the weights.
        listeners: Observers, of this run.
        stop: Whether somebody has asked for its end; looked at before each attempt.
        record: Where it is kept, and what it was begun with; None where nothing is kept.
        goal: Rounds that can be completed with the attempts that are left: all, if none was lost.
        history: Rounds that are finished.
        attempt: Number of the next attempt.
        lost: Attempts that were begun, and cannot be made again.
        changes: What is of another version than when it was begun.
        seconds: That it has taken before this process.
        plugins: By role, the plugin that its part is of.
    """

    ready: Ready
    coordinator: Coordinator
    listeners: Sequence[Callable[[Event], None]]
    stop: Callable[[], bool]
    record: tuple[RunFolder, Origin] | None = field(default=None, init=False)
    goal: int = field(init=False)
    history: list[RoundFinished] = field(factory=list, init=False)
    attempt: int = field(default=0, init=False)
    lost: int = field(default=0, init=False)
    changes: tuple[str, ...] = field(default=(), init=False)
    seconds: float = field(default=0.0, init=False)
    plugins: Mapping[str, str] = field(init=False)
    _started: float = field(init=False, repr=False, factory=time.perf_counter)

    @goal.default
    def _all(self) -> int:
        return self.ready.setting.cohort.rounds

    @plugins.default
    def _plugins_of(self) -> Mapping[str, str]:
        return self.ready.federation.plugins()

    @property
    def folder(self) -> RunFolder | None:
        """Where it is kept, or None."""
        return None if self.record is None else self.record[0]

    def keep_in(self, folder: RunFolder, study: str) -> None:
        """Keep it in `folder`, with `study` as it was resolved."""
        self.record = folder, _origin(self.ready, study, self.plugins)

    @property
    def can_repeat(self) -> bool:
        """Whether an attempt that is made again is the same to the last bit."""
        setting = self.ready.setting
        is_seeded = setting.plan.guarantee is None or setting.cohort.seeded_noise
        return bool(self.ready.hands) and is_seeded

    def restore(self, checkpoint: Checkpoint) -> None:
        """Stand where the run stood.

        Raises:
            StudyError: The study, the data or the plan are not what it was begun with.
            RunError: Its folder is damaged.
        """
        assert self.record is not None, "what is restored is kept"
        folder, origin = self.record
        checkpoint.origin.require(origin)
        self.changes = checkpoint.origin.changes(origin)
        self.coordinator.restore(checkpoint.server)
        self.history = folder.log.history(checkpoint.rounds)
        self.seconds = checkpoint.seconds
        self.attempt = checkpoint.attempt
        if not self.can_repeat:
            self.attempt = max(self.attempt, folder.log.begun + 1)
            self.lost = self.attempt - checkpoint.attempt
        cohort = self.ready.setting.cohort
        self.goal = min(cohort.rounds, checkpoint.rounds + cohort.attempts - self.attempt)

    def carry_out(self) -> Result:
        """Drive every round that is left, and score what comes out."""
        ready, folder = self.ready, self.folder
        is_private = ready.setting.plan.mechanism is not None
        ledger = folder.ledger() if folder is not None and is_private else None
        states = None if folder is None else folder.states
        exchange = ready.federation.engine.open(
            {site: ready.recipe(site, ledger, states) for site in range(len(ready.hands))}
        )
        try:
            return self._to_end(exchange)
        except BaseException as error:
            # What an observer makes of it must not hide what it was.
            with contextlib.suppress(Exception):
                self.tell(RunFailed(reason=str(error) or type(error).__name__))
            raise
        finally:
            exchange.close()

    def _to_end(self, exchange: Exchange) -> Result:
        setting = self.ready.setting
        self._checkpoint()
        self.tell(self._start())
        watch = self._evaluation(self.ready.splits.validation)
        rounds = Rounds(
            setting=setting,
            coordinator=self.coordinator,
            exchange=exchange,
            deadline=self.ready.federation.deadline or None,
            goal=self.goal,
            attempt=self.attempt,
            begin=self._begin,
            tell=self.tell,
        )
        for number in range(len(self.history), self.goal):
            began = time.perf_counter()
            played = rounds.play(number)
            self.attempt = rounds.attempt
            self._finish(number, played, watch, began)
        test = self._evaluation(self.ready.splits.test)
        return self._end(None if test is None else test.predict(self.coordinator.net))

    def _evaluation(self, examples: Examples | None) -> Evaluation | None:
        setting = self.ready.setting
        return Evaluation.of(examples, setting.spec.classes, setting.model, setting.device)

    def _begin(self, number: int, attempt: int) -> None:
        """Before an attempt: note it, unless the run is to stop."""
        if self.stop():
            how = "nothing of it is kept" if self.folder is None else _how(self.folder.path)
            raise StoppedError(f"stopped after {number} of {self.goal} rounds; {how}.")
        if self.folder is not None:
            self.folder.log.begin(attempt)

    def _finish(self, number: int, played: Played, watch: Evaluation | None, began: float) -> None:
        """After a round: keep what it came to, and tell."""
        setting, outcome = self.ready.setting, played.outcome
        every = self.ready.federation.evaluate_every
        due = every and ((number + 1) % every == 0 or number + 1 == self.goal)
        event = RoundFinished(
            round=number,
            attempt=self.attempt - 1,
            contributors=outcome.contributors,
            dropped=outcome.dropped,
            spent=setting.plan.spent(self.attempt),
            scores=watch.score(self.coordinator.net) if watch is not None and due else None,
            upload_bytes_per_site=outcome.upload_bytes,
            seconds_train=played.seconds,
            seconds_aggregate=time.perf_counter() - began - played.seconds,
            phases=played.phases,
        )
        self.history.append(event)
        if self.folder is not None:
            self.folder.log.finish(event)
        self._checkpoint()
        self.tell(event)

    def _checkpoint(self) -> None:
        """Make it durable how things stand between two rounds."""
        if self.record is None:
            return
        folder, origin = self.record
        folder.write_checkpoint(
            Checkpoint(
                session=self.ready.setting.session,
                rounds=len(self.history),
                attempt=self.attempt,
                seconds=self._seconds,
                origin=origin,
                server=self.coordinator.state(),
            )
        )

    @property
    def _seconds(self) -> float:
        return self.seconds + time.perf_counter() - self._started

    def _start(self) -> RunStarted:
        ready, setting = self.ready, self.ready.setting
        labels, classes = ready.splits.train.labels, len(setting.spec.classes)
        return RunStarted(
            folder=None if self.folder is None else self.folder.path,
            rounds=self.goal,
            sites=setting.cohort.sites,
            parameters=ready.parameters,
            guarantee=setting.plan.guarantee,
            warnings=self._warnings(),
            history=tuple(self.history),
            classes=setting.spec.classes,
            secrecy=setting.aggregator.secrecy(setting.cohort),
            sizes=tuple(len(hand) for hand in ready.hands),
            histograms=tuple(
                tuple(np.bincount(labels[hand], minlength=classes).tolist()) for hand in ready.hands
            ),
            data_sha256=ready.splits.train.fingerprint.hex(),
        )

    def _warnings(self) -> tuple[str, ...]:
        cohort, guarantee = self.ready.setting.cohort, self.ready.setting.plan.guarantee
        found = [] if guarantee is None else [*guarantee.warnings(cohort.units(guarantee.unit))]
        if self.lost:
            found.append(
                f"{self.lost} attempts were begun and not finished; they count as spent, and new "
                "ones take their place."
            )
        if self.goal < cohort.rounds:
            found.append(
                f"{cohort.attempts - self.attempt} of the {cohort.attempts} attempts that the "
                f"guarantee covers are left: the run ends after {self.goal} of its "
                f"{cohort.rounds} rounds. More retries would have allowed for that."
            )
        if self.changes:
            found.append(
                f"the run was begun with other versions ({', '.join(self.changes)}); it may come "
                "to other bits than it would have."
            )
        return tuple(found)

    def _end(self, predictions: Predictions | None) -> Result:
        """After the last round: keep the result, and tell."""
        if not self.history:
            raise RunError(
                "no round was finished, and all attempts that the study plans for are spent; begin "
                "another run, with more retries."
            )
        scores = None if predictions is None else predictions.scores
        result = self._result(scores)
        if self.folder is not None:
            if predictions is not None:
                self.folder.write_predictions(predictions)
            if self.ready.federation.holdout:
                net, states = self.coordinator.net, self.folder.states
                self.folder.write_site_scores(score_sites(self.ready, net, states))
            self.folder.write_result(result)
        self.tell(
            RunFinished(
                scores=scores,
                guarantee=result.guarantee,
                weights_sha256=result.weights_sha256,
                seconds=result.seconds.total,
            )
        )
        if self.folder is not None:
            self.folder.log.complete()
        return result

    def _result(self, scores: Scores | None) -> Result:
        setting, history = self.ready.setting, History(self.history)
        return Result(
            scores=scores,
            guarantee=setting.plan.guarantee,
            secrecy=setting.aggregator.secrecy(setting.cohort),
            rounds=len(history),
            sites=setting.cohort.sites,
            dropouts=sum(len(event.dropped) for event in history),
            upload_bytes_per_site_per_round=max(e.upload_bytes_per_site for e in history),
            seconds=Seconds(
                train=sum(event.seconds_train for event in history),
                aggregate=sum(event.seconds_aggregate for event in history),
                total=self._seconds,
            ),
            weights_sha256=vector.fingerprint(self.coordinator.net),
            versions=versions(),
            plugins=self.plugins,
            history=history,
            weights=vector.named(self.coordinator.net),
            folder=None if self.folder is None else self.folder.path,
        )

    def tell(self, event: Event) -> None:
        """Tell every observer."""
        for listener in self.listeners:
            listener(event)


def _origin(ready: Ready, study: str, plugins: Mapping[str, str]) -> Origin:
    """What a run of `ready` begins with, or goes on with."""
    plan = ready.setting.plan
    dealt = [np.ascontiguousarray(hand, dtype="<i8").tobytes() for hand in ready.hands]
    terms = (Price.of(plan), ready.setting.cohort.attempts, plan.ring.bits, plan.length)
    return Origin(
        study=_digest(study.encode()),
        data=_digest(ready.splits.train.fingerprint, *dealt),
        plan=_digest(msgspec.msgpack.encode(terms)),
        versions={**versions(), **plugins},
    )


def _how(folder: Path) -> str:
    return f"go on with `cohortium resume {folder}`"


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()
