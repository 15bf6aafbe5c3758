"""Start and resumption of a run, alone or with the evaluations of its model."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import attrs
import tomli_w

from cohortium.errors import IdentityError, RunError
from cohortium.rounds.coordinator import Coordinator
from cohortium.rounds.joined_site import JoinedSiteFactory
from cohortium.runs.driver import RunDriver
from cohortium.runs.guarded_listener import GuardedListener
from cohortium.runs.invite import invite_sites
from cohortium.runs.result import EVALUATION
from cohortium.runs.run_directory import STATES, RunDirectory, has_run, run_ledger
from cohortium.runs.run_folder import STUDY
from cohortium.runs.run_state import RunState, run_fingerprint
from cohortium.runs.site_evaluations import EvaluatedWeights, SiteEvaluations
from cohortium.storage.atomic import atomic_write
from cohortium.study import toml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from cohortium.crypto.signing import SigningKey
    from cohortium.roles.events import Event
    from cohortium.roles.protocols import Engine, Observer
    from cohortium.roles.sessions import EngineSession, SiteFactory
    from cohortium.roles.values import SiteId
    from cohortium.runs.prepare import PreparedStudy
    from cohortium.runs.result import Result
    from cohortium.runs.site_evaluations import DueEvaluations


def start(
    prepared: PreparedStudy,
    *,
    out: Path | None,
    observers: Sequence[Observer],
    stop: Callable[[], bool],
    engine: Engine | None = None,
    evaluated: EvaluatedWeights | None = None,
    due: DueEvaluations | None = None,
    signing_key: SigningKey | None = None,
) -> Result:
    """Run a prepared study (see `Federation.run`).

    Args:
        prepared: The study.
        out: Folder of the run's record, or None.
        observers: Observers of every event.
        stop: Whether the user has asked to stop.
        engine: A running engine to use in place of the study's.
        evaluated: Weights that an evaluation evaluates, or None where the sites train.
        due: Evaluations that the same connection serves, or None.
        signing_key: Key that signs the results, or None.
    """
    run_state = _new_state(prepared, evaluated)
    _require_own_key(signing_key, (prepared,) if due is None else (prepared, due.prepared))
    both = (prepared,) if due is None else (prepared, due.prepared)
    run = _Run.of(observers, stop, due)
    # The folder last: until then, each party may refuse, and nothing has to be removed.
    with (
        _engine_session(both, _folders(out), engine) as (exchange, site_warnings),
        contextlib.ExitStack() as stack,
    ):
        run = attrs.evolve(run, exchange=exchange)
        evaluation = None
        if out is not None:
            _create(run_state, out, stack, signing_key)
        if due is not None:
            evaluation_state = _new_state(due.prepared)
            if out is not None:
                _create(evaluation_state, out / EVALUATION, stack, signing_key)
            evaluation = run.evaluations(evaluation_state, run_state, due)
        return run.execute(run_state, site_warnings, evaluated, evaluation)


def resume(
    prepared: PreparedStudy,
    folder: RunDirectory,
    *,
    observers: Sequence[Observer],
    stop: Callable[[], bool],
    engine: Engine | None = None,
    evaluated: EvaluatedWeights | None = None,
    due: DueEvaluations | None = None,
) -> Result:
    """Continue the run in `folder` (see `Federation.resume`).

    Args:
        prepared: The study.
        folder: Folder of the run.
        observers: Observers of every event.
        stop: Whether the user has asked to stop.
        engine: A running engine to use in place of the study's.
        evaluated: Weights that an evaluation evaluates, or None where the sites train.
        due: Evaluations that the same connection serves, or None.
    """
    _require_own_key(folder.signing_key, (prepared,))
    run_state = _restored_state(prepared, folder, evaluated)
    _remember_observers(prepared, folder)
    run = _Run.of(observers, stop, due)
    states = [run_state]
    with contextlib.ExitStack() as stack:
        if due is not None:
            states.append(_reopened(due, run_state, folder, stack))
        both = tuple(state.prepared for state in states)
        with _engine_session(both, _folders(folder.path), engine) as (exchange, site_warnings):
            run = attrs.evolve(run, exchange=exchange)
            evaluation = None if due is None else run.evaluations(states[1], run_state, due)
            return run.execute(run_state, site_warnings, evaluated, evaluation)


@attrs.frozen(eq=False, kw_only=True)
class _Run:
    """A run, before and after its sites are connected.

    Attributes:
        listeners: Listeners of the run, which are made before anything is written.
        evaluation_listeners: Listeners of its evaluations.
        stop: Whether the user has asked to stop.
        exchange: Session of the engine, or None before it is open.
    """

    listeners: Sequence[Callable[[Event], None]]
    evaluation_listeners: Sequence[Callable[[Event], None]]
    stop: Callable[[], bool]
    exchange: EngineSession | None = None

    @classmethod
    def of(
        cls, observers: Sequence[Observer], stop: Callable[[], bool], due: DueEvaluations | None
    ) -> _Run:
        """Return the run of these observers."""
        others = () if due is None else due.observers
        return cls(
            listeners=[GuardedListener.of(observer) for observer in observers],
            evaluation_listeners=[GuardedListener.of(observer) for observer in others],
            stop=stop,
        )

    def execute(
        self,
        run_state: RunState,
        site_warnings: tuple[str, ...],
        evaluated: EvaluatedWeights | None,
        evaluation: SiteEvaluations | None,
    ) -> Result:
        """Run the study, and evaluate its model where it is due."""
        driver = self._driver(run_state, self.listeners)
        if evaluated is not None:
            own = SiteEvaluations(driver)
            own.begin(site_warnings)
            return own.finish(evaluated)
        if evaluation is None:
            return driver.execute(site_warnings)
        if evaluation.every:
            evaluation.begin()
        result = driver.execute(site_warnings, evaluation.bring_up_to_date)
        if not evaluation.every:
            evaluation.begin()
        final = EvaluatedWeights(result.weights, result.rounds)
        return attrs.evolve(result, evaluation=evaluation.finish(final))

    def evaluations(
        self, run_state: RunState, trained: RunState, due: DueEvaluations
    ) -> SiteEvaluations:
        """Return the evaluations of a training, which `resume` continues with it."""
        folder = trained.folder
        command = None if folder is None else folder.resume_command
        driver = attrs.evolve(
            self._driver(run_state, self.evaluation_listeners), resume_command=command
        )
        return SiteEvaluations(driver, due.every)

    def _driver(
        self, run_state: RunState, listeners: Sequence[Callable[[Event], None]]
    ) -> RunDriver:
        assert self.exchange is not None, "the sites are connected"
        folder = run_state.folder
        return RunDriver(
            run_state,
            self.exchange,
            listeners,
            self.stop,
            None if folder is None else folder.resume_command,
            run_one_site,
        )


def run_one_site(prepared: PreparedStudy, out: Path, observers: Sequence[Observer] = ()) -> Result:
    """Run the study of one site alone, which stores its trainer state in `out`, and no record."""
    run = _Run.of(observers, lambda: False, None)
    with _engine_session((prepared,), _folders(out)) as (exchange, site_warnings):
        run = attrs.evolve(run, exchange=exchange)
        return run.execute(_new_state(prepared), site_warnings, None, None)


def _new_state(prepared: PreparedStudy, evaluated: EvaluatedWeights | None = None) -> RunState:
    coordinator = Coordinator(prepared.run_config)
    if evaluated is not None:
        coordinator.load_weights(evaluated.weights)
    return RunState(prepared=prepared, coordinator=coordinator)


def _create(
    run_state: RunState,
    out: Path,
    stack: contextlib.ExitStack,
    signing_key: SigningKey | None,
) -> None:
    """Store a new run in `out`."""
    study = run_state.prepared.federation.as_toml()
    run_state.folder = stack.enter_context(RunDirectory.create(out, study, signing_key=signing_key))
    run_state.fingerprint = run_fingerprint(run_state.prepared)


def _restored_state(
    prepared: PreparedStudy, folder: RunDirectory, evaluated: EvaluatedWeights | None = None
) -> RunState:
    """Return the state of the run in `folder`."""
    checkpoint = folder.read_checkpoint()
    if checkpoint is not None:
        run_config = attrs.evolve(prepared.run_config, session=checkpoint.session)
        prepared = attrs.evolve(prepared, run_config=run_config)
    run_state = RunState(
        prepared=prepared,
        coordinator=Coordinator(prepared.run_config),
        folder=folder,
        fingerprint=run_fingerprint(prepared),
    )
    if checkpoint is not None:
        run_state.restore(checkpoint)
    elif evaluated is not None:
        run_state.coordinator.load_weights(evaluated.weights)
    return run_state


def _reopened(
    due: DueEvaluations, trained: RunState, folder: RunDirectory, stack: contextlib.ExitStack
) -> RunState:
    """Return the state of the evaluation of an interrupted training.

    Raises:
        RunError: The evaluation is missing, though rounds of training are completed.
    """
    place, signing_key = folder.path / EVALUATION, folder.signing_key
    if has_run(place):
        reopened = stack.enter_context(RunDirectory.reopen(place, signing_key=signing_key))
        return _restored_state(due.prepared, reopened)
    if trained.history and due.every:
        raise RunError(
            f"{place} is gone, though evaluations are charged there; put the whole folder back as "
            "it was, or start another run."
        )
    run_state = _new_state(due.prepared)
    _create(run_state, place, stack, signing_key)
    return run_state


def _require_own_key(key: SigningKey | None, runs: tuple[PreparedStudy, ...]) -> None:
    """Refuse a site's key as the coordinator's.

    Raises:
        IdentityError: The key is in a run's directory of keys.
    """
    directories = [prepared.run_config.directory for prepared in runs]
    if key is not None and any(
        each is not None and key.public in each.keys for each in directories
    ):
        raise IdentityError(
            "the key that is to sign the result is a site's in the key directory; the coordinator "
            "needs a key of its own, which `cohortium keygen` makes."
        )


def _remember_observers(prepared: PreparedStudy, folder: RunDirectory) -> None:
    """Store the names of observers with the run, for each resumption.

    Raises:
        RunError: The names cannot be written.
    """
    path = folder.path / STUDY
    study = toml.read(path, what="the study")
    known = study["federation"].get("observers", [])
    names = [*dict.fromkeys([*known, *prepared.federation.observers])]
    if names != known:
        study["federation"]["observers"] = names
        try:
            atomic_write(path, tomli_w.dumps(study).encode())
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}.") from error


def _folders(out: Path | None) -> tuple[Path | None, Path | None]:
    """Return the folders of a run and of its evaluation."""
    return (None, None) if out is None else (out, out / EVALUATION)


@contextlib.contextmanager
def _engine_session(
    runs: tuple[PreparedStudy, ...],
    folders: tuple[Path | None, ...],
    engine: Engine | None = None,
) -> Iterator[tuple[EngineSession, tuple[str, ...]]]:
    """Open the engine and, in a deployment, invite the sites.

    Yields the engine session and the sites' warnings. Writes nothing to disk.

    Args:
        runs: The study, and its evaluation if the session is for both.
        folders: Folders of the simulated sites' ledger and trainer state, for each run.
        engine: A running engine to use in place of the study's.
    """
    prepared = runs[0]
    exchange = (engine or prepared.federation.engine).connect(_site_factories(runs, folders))
    try:
        found: list[str] = []
        if prepared.is_deployment:
            # The evaluation first: who refuses it has not accepted the training.
            found = [warning for each in reversed(runs) for warning in invite_sites(exchange, each)]
        yield exchange, tuple(dict.fromkeys(found))
    finally:
        exchange.close()


def _site_factories(
    runs: tuple[PreparedStudy, ...], folders: tuple[Path | None, ...]
) -> Mapping[SiteId, SiteFactory] | None:
    """Return the factory of each simulated site in all of `runs`, or None in a deployment."""
    found = []
    for prepared, out in zip(runs, folders, strict=False):
        ledger = run_ledger(out) if out is not None and prepared.uses_run_ledger else None
        found.append(prepared.site_factories(ledger, None if out is None else out / STATES))
    first, *others = found
    if first is None or not others:
        return first
    return {
        site: JoinedSiteFactory((factory, *(each[site] for each in others if each is not None)))
        for site, factory in first.items()
    }
