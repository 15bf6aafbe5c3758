"""A federation: the parts and their terms, composed; `run` sets it going."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs
import tomli_w
from attrs import field, frozen
from attrs.validators import ge, in_, lt

from cohortium import composition
from cohortium.catalog import discover
from cohortium.errors import StudyError
from cohortium.hooks import ROLES, Role
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
    from collections.abc import Sequence

    from cohortium.preparation import Ready
    from cohortium.record import Result


PARTS: tuple[Role, ...] = tuple(role for role in ROLES if role != "observer")
"""The roles that a federation fills, in the order in which a study file names them."""


RECORDER = "events"
"""The observer that keeps a record's events."""

LONGEST = 1e7
"""Seconds that a deadline stays below: what every clock and lock can wait."""


def _resolved(role: Role, value: object) -> object:
    if isinstance(value, str):
        return composition.make(discover(), role, {"name": value}, where="Federation")
    return composition.require(role, value)


def _dataset(value: Dataset | str) -> Dataset:
    return cast("Dataset", _resolved("dataset", value))


def _partitioner(value: Partitioner | str) -> Partitioner:
    return cast("Partitioner", _resolved("partitioner", value))


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
        dataset: Where the images come from.
        partitioner: How a simulation deals them to sites.
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
        evaluate_every: Score on the validation images every so many rounds; 0 never does.
        observers: Names of observers that are told of every run's events.

    Raises:
        PluginError: A name that no usable plugin offers.
        StudyError: A part that does not fill its role, or numbers that contradict one another.
    """

    dataset: Dataset = field(converter=_dataset)
    partitioner: Partitioner = field(factory=lambda: _partitioner("iid"), converter=_partitioner)
    model: Model = field(converter=_model)
    trainer: Trainer = field(converter=_trainer)
    privatizer: Privatizer = field(converter=_privatizer)
    aggregator: Aggregator = field(converter=_aggregator)
    engine: Engine = field(factory=lambda: _engine("inline"), converter=_engine)

    sites: int = field(default=10, validator=ge(1))
    rounds: int = field(default=60, validator=ge(1))
    seed: int = field(default=1, validator=ge(0))
    cohort: int = field(default=0, validator=ge(0))
    min_sites: int = field(default=1, validator=ge(1))
    retries: int = field(default=0, validator=ge(0))
    deadline: float = field(default=0.0, validator=[ge(0), lt(LONGEST)])
    device: str = "cpu"
    threads: int = field(default=0, validator=ge(0))
    adversary: Adversary = field(
        default="honest-but-curious", validator=in_(("honest-but-curious", "active"))
    )
    colluding: int = field(default=0, validator=ge(0))
    seeded_noise: bool = False
    evaluate_every: int = field(default=1, validator=ge(0))
    observers: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        """Refuse numbers that contradict one another."""
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
        for role in PARTS:
            tables[role] = composition.describe(catalog, role, getattr(self, role))
        return tomli_w.dumps(tables)

    def plugins(self) -> dict[str, str]:
        """By role, the plugin that its part is of, or the part's class where it is of none."""
        catalog = discover()
        parts = {role: getattr(self, role) for role in PARTS}
        return {
            role: " or ".join(record.label for record in catalog.makers_of(part))
            or f"{type(part).__module__}:{type(part).__qualname__}"
            for role, part in parts.items()
        }

    def run(self, out: str | Path | None = None, *, observers: Sequence[Observer] = ()) -> Result:
        """Run the study to its end.

        Args:
            out: A new or empty folder for the run's record; None keeps nothing on disk.  The
                observer `events`, where it is installed, keeps the events there.
            observers: Told of every event, beside those that the study names.

        Raises:
            CohortiumError: The request was wrong (nothing has started then) or the run failed.
        """
        from cohortium.evaluation import torch_threads
        from cohortium.rounds import drive

        told = [cast("Observer", _resolved("observer", name)) for name in self.observers]
        told += observers
        if out is not None and RECORDER in discover().names("observer"):
            recorder = cast("Observer", _resolved("observer", RECORDER))
            told += [] if recorder in told else [recorder]
        with torch_threads(self.threads):
            return drive(self.prepare(), out=None if out is None else Path(out), observers=told)

    def prepare(self) -> Ready:
        """Load, deal and plan, so that all that can be refused is refused; train nothing.

        Raises:
            CohortiumError: The study cannot be run as it stands.
        """
        from cohortium.preparation import prepare

        return prepare(self)


TERMS = tuple(f.name for f in attrs.fields(Federation) if f.name not in PARTS)
"""The keys of a study file's `[federation]` table."""
