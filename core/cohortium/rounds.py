"""Where a round happens: an attempt is opened, its messages are carried, and it is closed."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
from attrs import define, field

from cohortium import vector
from cohortium.coordinator import Coordinator, Outcome
from cohortium.errors import RunError, TooFewSitesError
from cohortium.evaluation import Evaluation
from cohortium.events import (
    Phase,
    RoundFailed,
    RoundFinished,
    RunFailed,
    RunFinished,
    RunStarted,
    SiteAnswered,
)
from cohortium.facts import DataFacts
from cohortium.history import History
from cohortium.record import Result, RunFolder, Seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cohortium.events import Event
    from cohortium.metrics import Scores
    from cohortium.preparation import Ready
    from cohortium.protocols import Observer
    from cohortium.sessions import Exchange
    from cohortium.setting import Setting
    from cohortium.vocabulary import SiteId

PACKAGES = ("cohortium", "torch", "numpy", "opacus", "cryptography")
"""Whose versions a result names, beside Python's."""


def drive(ready: Ready, *, out: Path | None, observers: Sequence[Observer]) -> Result:
    """Run the rounds of a study that is ready; see `Federation.run`."""
    coordinator = Coordinator(ready.setting)
    folder = None if out is None else RunFolder.create(out)
    if folder is not None:
        folder.write_study(ready.federation.as_toml())
        folder.write_facts(DataFacts.of(ready.splits))
    is_private = ready.setting.plan.mechanism is not None
    ledger = folder.create_ledger() if folder is not None and is_private else None
    run = Run(ready, coordinator, folder, [observer.watch() for observer in observers])
    exchange = ready.federation.engine.open(
        {site: ready.recipe(site, ledger) for site in range(len(ready.hands))}
    )
    try:
        return run.to_end(exchange)
    except BaseException as error:
        run.tell(RunFailed(reason=str(error) or type(error).__name__))
        raise
    finally:
        exchange.close()


@define(eq=False)
class Run:
    """One run under way."""

    ready: Ready
    coordinator: Coordinator
    folder: RunFolder | None
    listeners: Sequence[Callable[[Event], None]]
    history: list[RoundFinished] = field(factory=list)
    attempt: int = 0

    def to_end(self, exchange: Exchange) -> Result:
        """Drive every round, and score what comes out."""
        started = time.perf_counter()
        ready, setting = self.ready, self.ready.setting
        self.tell(self._start())
        watch = Evaluation.of(
            ready.splits.validation, setting.spec.classes, setting.model, setting.device
        )
        for number in range(setting.cohort.rounds):
            self._round(number, exchange, watch)
        test = Evaluation.of(ready.splits.test, setting.spec.classes, setting.model, setting.device)
        predictions = None if test is None else test.predict(self.coordinator.net)
        scores = None if predictions is None else predictions.scores
        result = self._result(scores, seconds=time.perf_counter() - started)
        if self.folder is not None:
            if predictions is not None:
                self.folder.write_predictions(predictions)
            self.folder.write_result(result)
        self.tell(
            RunFinished(
                scores=scores,
                guarantee=result.guarantee,
                weights_sha256=result.weights_sha256,
                seconds=result.seconds.total,
            )
        )
        return result

    def _round(self, number: int, exchange: Exchange, watch: Evaluation | None) -> None:
        """Move the weights once, with as many attempts as the study has left."""
        setting = self.ready.setting
        began = time.perf_counter()
        outcome, phases, training = self._attempts(number, exchange)
        weights = vector.named(self.coordinator.net)
        if self.folder is not None:
            self.folder.write_checkpoint(weights, rounds=number + 1)
        every = self.ready.federation.evaluate_every
        due = every and ((number + 1) % every == 0 or number + 1 == setting.cohort.rounds)
        scores = watch.score(self.coordinator.net) if watch is not None and due else None
        if self.folder is not None and scores is not None and self._is_best(scores):
            self.folder.write_best(weights, rounds=number + 1, accuracy=scores.accuracy)
        self.history.append(
            RoundFinished(
                round=number,
                attempt=self.attempt - 1,
                contributors=outcome.contributors,
                dropped=outcome.dropped,
                spent=setting.plan.spent(self.attempt),
                scores=scores,
                upload_bytes_per_site=outcome.upload_bytes,
                seconds_train=training,
                seconds_aggregate=time.perf_counter() - began - training,
                phases=phases,
            )
        )
        self.tell(self.history[-1])

    def _is_best(self, scores: Scores) -> bool:
        """Whether no round before did as well on the public validation images."""
        before = [event.scores.accuracy for event in self.history if event.scores is not None]
        return scores.accuracy > max(before, default=-1.0)

    def _attempts(
        self, number: int, exchange: Exchange
    ) -> tuple[Outcome, tuple[Phase, ...], float]:
        cohort = self.ready.setting.cohort
        training = 0.0
        while True:
            sites = asked(self.ready.setting, number, self.attempt)
            self.coordinator.open(number, self.attempt, sites)
            self.attempt += 1
            phases = self._carry(number, exchange)
            training += sum(phase.seconds for phase in phases)
            try:
                outcome = self.coordinator.close()
            except TooFewSitesError as error:
                self._tell_failures(number, str(error), phases)
                if self.attempt - number > cohort.retries:
                    raise RunError(f"round {number + 1} failed: {error}") from error
                continue
            for failure in outcome.failures:
                self.tell(failure)
            return outcome, phases, training

    def _carry(self, number: int, exchange: Exchange) -> tuple[Phase, ...]:
        """Carry an attempt's messages until nothing is left to ask; what each exchange took."""
        phases: list[Phase] = []
        deadline = self.ready.federation.deadline or None
        while requests := self.coordinator.requests():
            spent, uploaded = 0.0, 0
            answered: set[SiteId] = set()
            began = time.perf_counter()
            for site, reply in exchange.exchange(requests.common, requests.each, deadline):
                spent += time.perf_counter() - began
                uploaded += len(reply)
                if self.coordinator.receive(site, reply):
                    answered.add(site)
                    self.tell(
                        SiteAnswered(
                            round=number,
                            attempt=self.attempt - 1,
                            exchange=len(phases),
                            site=site,
                            answered=len(answered),
                            asked=len(requests.each),
                        )
                    )
                began = time.perf_counter()
            spent += time.perf_counter() - began
            phases.append(
                Phase(
                    name=requests.phase,
                    asked=len(requests.each),
                    lost=tuple(sorted(set(requests.each) - answered)),
                    upload_bytes=uploaded,
                    download_bytes=sum(
                        len(requests.common) + len(own) for own in requests.each.values()
                    ),
                    seconds=spent,
                )
            )
        return tuple(phases)

    def _start(self) -> RunStarted:
        ready, setting = self.ready, self.ready.setting
        labels, classes = ready.splits.train.labels, len(setting.spec.classes)
        return RunStarted(
            folder=None if self.folder is None else self.folder.path,
            rounds=setting.cohort.rounds,
            sites=setting.cohort.sites,
            parameters=ready.parameters,
            guarantee=setting.plan.guarantee,
            warnings=self._warnings(),
            data=ready.splits.name,
            source=ready.splits.source,
            classes=setting.spec.classes,
            secrecy=setting.aggregator.secrecy(setting.cohort),
            sizes=tuple(len(hand) for hand in ready.hands),
            histograms=tuple(
                tuple(np.bincount(labels[hand], minlength=classes).tolist()) for hand in ready.hands
            ),
            data_sha256=ready.splits.train.fingerprint.hex(),
        )

    def _warnings(self) -> tuple[str, ...]:
        setting = self.ready.setting
        guarantee, cohort = setting.plan.guarantee, setting.cohort
        if guarantee is None:
            return ()
        return guarantee.warnings(cohort.units(guarantee.unit))

    def _result(self, scores: Scores | None, *, seconds: float) -> Result:
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
                total=seconds,
            ),
            weights_sha256=vector.fingerprint(self.coordinator.net),
            versions={
                "python": platform.python_version(),
                **{package: version(package) for package in PACKAGES},
            },
            plugins=self.ready.federation.plugins(),
            history=history,
            weights=vector.named(self.coordinator.net),
            folder=None if self.folder is None else self.folder.path,
        )

    def _tell_failures(self, number: int, reason: str, phases: tuple[Phase, ...]) -> None:
        for failure in self.coordinator.failures:
            self.tell(failure)
        self.tell(RoundFailed(round=number, attempt=self.attempt - 1, reason=reason, phases=phases))

    def tell(self, event: Event) -> None:
        """Tell every observer."""
        for listener in self.listeners:
            listener(event)


def asked(setting: Setting, number: int, attempt: int) -> tuple[SiteId, ...]:
    """The sites that an attempt at round `number` asks: a public choice, and no amplification."""
    cohort = setting.cohort
    if cohort.size == cohort.sites:
        return tuple(range(cohort.sites))
    rng = setting.seeds.generator("cohort", number, attempt)
    return tuple(sorted(rng.choice(cohort.sites, cohort.size, replace=False).tolist()))
