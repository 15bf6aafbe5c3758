"""A federation: the parts and their terms, composed; `run` sets it going."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs
import tomli_w
from attrs import Factory, field, frozen
from attrs.validators import ge, in_, le, lt

from cohortium import composition
from cohortium.catalog import discover
from cohortium.data import DataSpec
from cohortium.errors import StudyError
from cohortium.hooks import ROLES, Role
from cohortium.policy import MOST_ROUNDS, MOST_SITES
from cohortium.protocols import (
    Aggregator,
    Dataset,
    Engine,
    Model,
    Observer,
    Partitioner,
    Privatizer,
    Trainer,
)
from cohortium.vocabulary import Adversary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cohortium.preparation import Ready
    from cohortium.record import Result


MOST_THREADS = 4096
"""Beyond any machine; more would have OpenMP end the process rather than say so."""

PARTS: tuple[Role, ...] = tuple(role for role in ROLES if role != "observer")
"""The roles that a federation fills, in the order in which a study file names them."""


RECORDER = "events"
"""The observer that keeps a record's events."""


def never() -> bool:
    """No, whenever it is asked."""
    return False


LONGEST = 1e7
"""Seconds that a deadline stays below: what every clock and lock can wait."""


def _resolved(role: Role, value: object) -> object:
    if isinstance(value, str):
        return composition.make(discover(), role, {"name": value}, where="Federation")
    return composition.require(role, value)


def _dataset(value: Dataset | str | None) -> Dataset | None:
    return None if value is None else cast("Dataset", _resolved("dataset", value))


def _partitioner(value: Partitioner | str | None) -> Partitioner | None:
    return None if value is None else cast("Partitioner", _resolved("partitioner", value))


def _model(value: Model | str) -> Model:
    return cast("Model", _resolved("model", value))


def _trainer(value: Trainer | str) -> Trainer:
    return cast("Trainer", _resolved("trainer", value))


def _privatizer(value: Privatizer | str) -> Privatizer:
    return cast("Privatizer", _resolved("privatizer", value))


def _aggregator(value: Aggregator | str) -> Aggregator:
    return cast("Aggregator", _resolved("aggregator", value))


def _engine(value: Engine | str) -> Engine:
    return cast("Engine", _resolved("engine", value))


@frozen(kw_only=True)
class Federation:
    """A study as a value: seven roles, and the terms on which they meet.

    A role is an instance, or the name under which an installed plugin offers one with its
    defaults.  Nothing is loaded or trained before `run`.

    Examples:
        >>> from cohortium import Federation
        >>> Federation(
        ...     dataset="phantom", model="cnn", trainer="fedavg", privatizer="none",
        ...     aggregator="secagg", sites=10, rounds=3,
        ... ).partitioner
        IID()

    Attributes:
        data: What is public about the data of a *deployment*, whose hospitals have their own;
            None in a simulation.
        dataset: Where the images come from.  In a deployment: public ones for the coordinator to
            score with (their training images go unused), or None.
        partitioner: How a simulation deals them to sites; None in a deployment.
        model: What is trained.
        trainer: How.
        privatizer: What may leave a site.  There is no default: "none" is to be written out.
        aggregator: How releases are summed.
        engine: What carries the messages.
        sites: Hospitals in the federation.
        rounds: Times that the global weights move.
        seed: Of everything public: initial weights, partition, augmentation.
        cohort: Sites asked each round, drawn from the seed; 0 asks all.
        min_sites: Fewest contributions of which a sum may be released.
        retries: Further attempts, over the whole run, at rounds in which too few answered.  The
            privacy budget covers them all.
        deadline: Seconds that a site has for each of its answers; 0 waits for ever.  What comes
            later is not looked at: the site has dropped out of the attempt.
        device: Where torch computes: "auto", "cpu", "cuda", …
        threads: Of torch; 0 leaves torch's own choice.  Equal bits need equal threads.
        adversary: What the coordinator may do: "honest-but-curious" or "active".
        colluding: How many sites may pool what they know with it.
        seeded_noise: Draw every secret from the seed: repeatable, and protecting nothing.
        directory: File of the sites' public keys, in a deployment against an active adversary.
        evaluate_every: Score on the validation images every so many rounds; 0 never does.
        holdout: Share of each simulated site's images that it does not train on: in the end the
            global model and the site's own are scored on them, into `simulation/sites.json`.
        observers: Names of observers that are told of every run's events.

    Raises:
        PluginError: A name that no usable plugin offers.
        StudyError: A part that does not fill its role, or numbers that contradict one another.
    """

    data: DataSpec | None = None
    dataset: Dataset | None = field(default=None, converter=_dataset)
    partitioner: Partitioner | None = field(
        default=Factory(lambda self: None if self.data else _partitioner("iid"), takes_self=True),
        converter=_partitioner,
    )
    model: Model = field(converter=_model)
    trainer: Trainer = field(converter=_trainer)
    privatizer: Privatizer = field(converter=_privatizer)
    aggregator: Aggregator = field(converter=_aggregator)
    engine: Engine = field(factory=lambda: _engine("inline"), converter=_engine)

    sites: int = field(default=10, validator=[ge(1), le(MOST_SITES)])
    rounds: int = field(default=60, validator=[ge(1), le(MOST_ROUNDS)])
    seed: int = field(default=1, validator=[ge(0), lt(1 << 63)])
    cohort: int = field(default=0, validator=[ge(0), le(MOST_SITES)])
    min_sites: int = field(default=1, validator=[ge(1), le(MOST_SITES)])
    retries: int = field(default=0, validator=[ge(0), le(MOST_ROUNDS)])
    deadline: float = field(default=0.0, validator=[ge(0), lt(LONGEST)])
    device: str = "cpu"
    threads: int = field(default=0, validator=[ge(0), le(MOST_THREADS)])
    adversary: Adversary = field(
        default="honest-but-curious", validator=in_(("honest-but-curious", "active"))
    )
    colluding: int = field(default=0, validator=[ge(0), le(MOST_SITES)])
    seeded_noise: bool = False
    directory: str = ""
    evaluate_every: int = field(default=1, validator=[ge(0), le(MOST_ROUNDS)])
    holdout: float = field(default=0.0, validator=[ge(0), lt(1)])
    observers: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        """Refuse numbers, and parts, that contradict one another."""
        if self.data is None and self.dataset is None:
            raise StudyError(
                "a simulation needs a dataset; a deployment declares its data instead."
            )
        if self.data is not None and self.partitioner is not None:
            raise StudyError(
                "a deployment deals nothing, so it has no partitioner: each hospital's site file "
                "names its own data."
            )
        if self.data is None and self.directory:
            raise StudyError("a simulation makes its own keys; directory is for a deployment.")
        if self.cohort > self.sites:
            raise StudyError(f"cohort = {self.cohort} is more than the {self.sites} sites.")
        asked = self.cohort or self.sites
        if self.min_sites > asked:
            raise StudyError(
                f"min_sites = {self.min_sites} is more than the {asked} sites asked each round."
            )

    def as_toml(self) -> str:
        """The study file that describes this federation, every parameter spelled out."""
        catalog = discover()
        tables: dict[str, Any] = {
            "federation": {term: composition.plain(getattr(self, term)) for term in TERMS}
        }
        if self.data is not None:
            declared = attrs.asdict(self.data, filter=lambda _, value: value is not None)
            tables["data"] = {key: composition.plain(value) for key, value in declared.items()}
        for role in PARTS:
            if getattr(self, role) is not None:
                tables[role] = composition.describe(catalog, role, getattr(self, role))
        return tomli_w.dumps(tables)

    def plugins(self) -> dict[str, str]:
        """By role, the plugin that its part is of, or the part's class where it is of none."""
        catalog = discover()
        parts = {role: part for role in PARTS if (part := getattr(self, role)) is not None}
        return {
            role: " or ".join(record.label for record in catalog.makers_of(part))
            or f"{type(part).__module__}:{type(part).__qualname__}"
            for role, part in parts.items()
        }

    def run(
        self,
        out: str | Path | None = None,
        *,
        observers: Sequence[Observer] = (),
        stop: Callable[[], bool] = never,
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
        from cohortium.folder import require_new

        if out is not None:
            require_new(Path(out))
        from cohortium.evaluation import torch_threads
        from cohortium.running import begin

        with torch_threads(self.threads):
            return begin(
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
        stop: Callable[[], bool] = never,
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
        from cohortium.evaluation import torch_threads
        from cohortium.folder import RunFolder
        from cohortium.running import resume

        with RunFolder.reopen(Path(out)) as folder, torch_threads(self.threads):
            told = self._observers(observers, is_kept=True)
            return resume(self.prepare(), folder, observers=told, stop=stop)

    def _observers(self, others: Sequence[Observer], *, is_kept: bool) -> list[Observer]:
        """Those that the study names, `others`, and the one that keeps a record."""
        told = [cast("Observer", _resolved("observer", name)) for name in self.observers]
        told += others
        if is_kept and RECORDER in discover().names("observer"):
            recorder = cast("Observer", _resolved("observer", RECORDER))
            told += [] if recorder in told else [recorder]
        return told

    def muster(self, engine: Engine | None = None) -> tuple[str, ...]:
        """Ask every hospital of a deployment whether it would take part, and train nothing.

        Args:
            engine: One that is at work already, in place of the study's.

        Returns:
            Warnings.

        Raises:
            StudyError: One does not; the sentence says which, and why, for each.
        """
        from cohortium.invitations import muster

        ready = self.prepare()
        if not ready.is_deployed:
            raise StudyError("a simulation has no hospitals to ask; declare [data] for some.")
        exchange = (engine or self.engine).open(None)
        try:
            return muster(exchange, ready)
        finally:
            exchange.close()

    def prepare(self) -> Ready:
        """Load, deal and plan, so that all that can be refused is refused; train nothing.

        Raises:
            CohortiumError: The study cannot be run as it stands.
        """
        from cohortium.preparation import prepare

        return prepare(self)


TERMS = tuple(f.name for f in attrs.fields(Federation) if f.name not in ("data", *PARTS))
"""The keys of a study file's `[federation]` table."""
