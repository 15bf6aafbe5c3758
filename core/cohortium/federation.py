"""A federation: a study that can run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from attrs import frozen

from cohortium.catalog.discovery import discover
from cohortium.errors import StudyError
from cohortium.study.study import Study, resolved
from cohortium.study.study_file import read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cohortium.roles.protocols import Engine, Observer
    from cohortium.runs.prepare import PreparedStudy
    from cohortium.runs.result import Result

EVENT_LOG_OBSERVER = "events"
"""The observer that keeps a record's events."""


def _never_stop() -> bool:
    """No, whenever it is asked."""
    return False


@frozen(kw_only=True)
class Federation(Study):
    """A study that can run; its attributes are those of `Study`.

    Examples:
        >>> from cohortium import Federation
        >>> Federation(
        ...     dataset="phantom", model="cnn", trainer="fedavg", privatizer="none",
        ...     aggregator="secagg", sites=10, rounds=3,
        ... ).partitioner
        IID()

    Raises:
        PluginError: A name that no usable plugin offers.
        StudyError: A part that does not fill its role, or numbers that contradict one another.
    """

    @classmethod
    def read(cls, path: Path | None, settings: Sequence[str] = ()) -> Federation:
        """The federation that a study file describes.

        Args:
            path: The file; None for the quick start.
            settings: Changes as `table.key=value`, the value in TOML, or else taken as a string.

        Raises:
            StudyError: The file cannot be read, or asks for something that cannot be.
            PluginError: It names a plugin that cannot be used.
        """
        return read(path, settings, into=cls)

    def run(
        self,
        out: str | Path | None = None,
        *,
        observers: Sequence[Observer] = (),
        stop: Callable[[], bool] = _never_stop,
        engine: Engine | None = None,
    ) -> Result:
        """Run the study to its end.

        Args:
            out: A new or empty folder for the run's record; None keeps nothing on disk.  The
                observer `events`, where it is installed, keeps the events there.
            observers: Told of every event, beside those that the study names.
            stop: Asked before every attempt; once it says yes, the run stops there.
            engine: One that is at work already, in place of the study's.

        Raises:
            StoppedError: `stop` said so; `resume` goes on.
            CohortiumError: The request was wrong (nothing has started then) or the run failed.
        """
        from cohortium.runs.run_directory import require_empty

        if out is not None:
            require_empty(Path(out))
        from cohortium.learning.evaluation import torch_threads
        from cohortium.runs.driver import start

        with torch_threads(self.threads):
            return start(
                self.prepare(),
                out=None if out is None else Path(out),
                observers=self._observers(observers, is_kept=out is not None),
                stop=stop,
                engine=engine,
            )

    def resume(
        self,
        out: str | Path,
        *,
        observers: Sequence[Observer] = (),
        stop: Callable[[], bool] = _never_stop,
    ) -> Result:
        """Go on with a run of this study that was stopped, killed or failed.

        Args:
            out: The run's folder.
            observers: As for `run`; they are told of the rounds before in `RunStarted.history`.
            stop: As for `run`.

        Guarantees:
            It goes on from the last round that was finished, with the same weights, optimizer and
            sites' state.  Without privacy, or with seeded noise, the result has the very weights
            of a run that was never broken off.  Otherwise an attempt that was broken off counts as
            spent and a new one takes its place; where no retry is left for it, the run ends with
            as many rounds fewer, and never with more attempts than the guarantee covers.

        Raises:
            StudyError: There is no such run, it is finished, another process is at it, or it was
                begun with another study, other data or another plan.
            RunError: Its folder is damaged, or the run failed again.
            StoppedError: `stop` said so.
        """
        from cohortium.learning.evaluation import torch_threads
        from cohortium.runs.driver import resume
        from cohortium.runs.run_directory import RunDirectory

        with RunDirectory.reopen(Path(out)) as folder, torch_threads(self.threads):
            told = self._observers(observers, is_kept=True)
            return resume(self.prepare(), folder, observers=told, stop=stop)

    def _observers(self, others: Sequence[Observer], *, is_kept: bool) -> list[Observer]:
        """Those that the study names, `others`, and the one that keeps a record."""
        told = [cast("Observer", resolved("observer", name)) for name in self.observers]
        told += others
        if is_kept and EVENT_LOG_OBSERVER in discover().names("observer"):
            recorder = cast("Observer", resolved("observer", EVENT_LOG_OBSERVER))
            told += [] if recorder in told else [recorder]
        return told

    def check_sites(self, engine: Engine | None = None) -> tuple[str, ...]:
        """Ask every hospital of a deployment whether it would take part, and train nothing.

        Args:
            engine: One that is at work already, in place of the study's.

        Returns:
            Warnings.

        Raises:
            StudyError: One does not; the sentence says which, and why, for each.
        """
        from cohortium.runs.invite import invite_sites

        prepared = self.prepare()
        if not prepared.is_deployment:
            raise StudyError("a simulation has no hospitals to ask; declare [data] for some.")
        exchange = (engine or self.engine).connect(None)
        try:
            return invite_sites(exchange, prepared)
        finally:
            exchange.close()

    def prepare(self) -> PreparedStudy:
        """Load, deal and plan, so that all that can be refused is refused; train nothing.

        Raises:
            CohortiumError: The study cannot be run as it stands.
        """
        from cohortium.runs.prepare import prepare

        return prepare(self)
