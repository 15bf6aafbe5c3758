"""A study as a frozen value: parts of its roles, and settings."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import attrs
import tomli_w
from attrs import Factory, field, frozen
from attrs.validators import ge, in_, le, lt

from cohortium.catalog import construction, toml_tables
from cohortium.catalog.discovery import discover
from cohortium.data.examples import DataSpec
from cohortium.errors import StudyError
from cohortium.roles import ROLES, Role
from cohortium.roles.protocols import (
    Aggregator,
    Dataset,
    Engine,
    Model,
    Partitioner,
    Privatizer,
    Trainer,
)
from cohortium.roles.values import Adversary
from cohortium.study.measurement import EvaluationPlan, Measurement, PriorRelease
from cohortium.study.search import Search

if TYPE_CHECKING:
    from attrs import Attribute

Part = TypeVar("Part")

MAX_SITES = 1 << 16
"""Largest number of sites of a key directory and a masking graph."""

MAX_ROUNDS = 1_000_000
"""Largest number of rounds and of retries.

A larger number is surely a mistake, and no accountant composes so many rounds.
"""

MAX_THREADS = 4096
"""Largest number of threads, which is more than any machine has.

With more threads, OpenMP ends the process without an error message.
"""

STUDY_ROLES: tuple[Role, ...] = tuple(role for role in ROLES if role not in ("observer", "task"))
"""Roles that a federation fills, in the order of a study file."""


VALUES = ("data", "evaluation", "measurement", "prior", "search")
"""Tables of a study file that describe a value of the core, and no role."""


MAX_TIMEOUT = 1e7
"""Upper limit of a timeout in seconds.

A timeout must stay below it. Every clock and lock can wait so long.
"""


def resolved(role: Role, value: Part | str) -> Part:
    """Return the part `value`, or the plugin part of that name."""
    part: Part
    if isinstance(value, str):
        part = construction.build_part(discover(), role, {"name": value}, where="Federation")
    else:
        part = construction.require_role(role, value)
    return part


# Type checkers read the types of the constructor from converters with a name and a signature, so
# each role has its own.


def _dataset(value: Dataset | str | None) -> Dataset | None:
    return None if value is None else resolved("dataset", value)


def _partitioner(value: Partitioner | str | None) -> Partitioner | None:
    return None if value is None else resolved("partitioner", value)


def _model(value: Model | str) -> Model:
    return resolved("model", value)


def _trainer(value: Trainer | str) -> Trainer:
    return resolved("trainer", value)


def _privatizer(value: Privatizer | str) -> Privatizer:
    return resolved("privatizer", value)


def _aggregator(value: Aggregator | str) -> Aggregator:
    return resolved("aggregator", value)


def _engine(value: Engine | str) -> Engine:
    return resolved("engine", value)


Baseline = Literal["alone", "adapted"]
"""A network of a simulated site to compare the federation's with."""


def _known_baselines(_: object, attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    """Refuse names that are no baselines, or that come twice."""
    known = get_args(Baseline)
    if len(set(value)) != len(value) or not set(value) <= set(known):
        raise ValueError(f"'{attribute.name}' takes each of {', '.join(known)} at most once")


def _whole(_: object, attribute: Attribute[Any], value: object) -> None:
    """Refuse a value that is no whole number, before its bounds are compared."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"'{attribute.name}' must be a whole number, not {value!r}")


def _number(_: object, attribute: Attribute[Any], value: object) -> None:
    """Refuse a value that is no number, before its bounds are compared."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"'{attribute.name}' must be a number, not {value!r}")


@frozen(kw_only=True)
class Study:
    """A study as a value: seven roles and their settings.

    A role is an instance, or the name under which an installed plugin offers one with its defaults.
    The constructor loads and trains nothing. `Federation` is a study that can run.

    Attributes:
        data: Public facts about the data of a *deployment*, whose hospitals have their own data.
            None in a simulation.
        dataset: Source of the images. In a deployment, it has public images for the coordinator's
            scores, or is None. Their training images are not used.
        partitioner: Partition of a simulation's images among the sites. None in a deployment.
        model: The model that is trained.
        trainer: The training at each site.
        privatizer: The rules for the values that may leave a site. There is no default: "none" must
            be written out.
        aggregator: The method that sums releases.
        engine: The transport of messages.
        evaluation: Evaluation of the trained model at the sites, or None.
        measurement: A statistic that the sites release in place of training, or None.
        prior: Releases of the same data before the run, which the guarantee covers, or None.
        search: A search for the settings before the run, which the guarantee covers, or None.
        sites: Number of hospitals in the federation.
        rounds: Number of times that the global weights move.
        seed: Seed of all public randomness: initial weights, partition, augmentation.
        cohort_size: Number of sites asked each round, drawn from the seed. 0 asks all.
        min_contributors: Smallest number of contributions of which a sum may be released.
        retries: Further attempts, over the whole run, at rounds in which too few sites replied. The
            privacy budget covers them all.
        reply_timeout: Seconds that a site has for each of its replies. 0 waits forever. A later
            reply is not read: the site has dropped out of the attempt.
        device: Device on which torch computes: "auto", "cpu", "cuda", …
        threads: Number of torch's threads. 0 leaves torch's own choice. Equal bits need equal
            threads.
        adversary: Behaviour of the coordinator that the study assumes: "honest-but-curious" or
            "active".
        max_colluding: Number of sites that may pool their knowledge with the adversary.
        insecure_seeded_secrets: Draw every secret from the seed. The run is repeatable and protects
            nothing.
        key_directory: File of the sites' public keys, in a deployment against an active adversary.
        evaluate_every: Number of rounds between scores on the validation images. 0 never scores.
        holdout_fraction: Share of each simulated site's images that it does not train on. After the
            run, `simulation/holdout_scores.json` has the scores of the global model and the site's
            own on them.
        holdout_baselines: Further networks of each simulated site that are scored on its held-out
            images. "alone" is one that the site trains by itself with the study's model and
            trainer, without noise. "adapted" is the one that `cohortium adapt` chooses: each site
            then trains alone and fine-tunes for each fold, and once more.
        observers: Names of the observers that receive every run's events.

    Raises:
        PluginError: No usable plugin offers a given name.
        StudyError: A part does not fill its role, or numbers contradict one another.
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
    evaluation: EvaluationPlan | None = None
    measurement: Measurement | None = None
    prior: PriorRelease | None = None
    search: Search | None = None

    sites: int = field(default=10, validator=[_whole, ge(1), le(MAX_SITES)])
    rounds: int = field(default=60, validator=[_whole, ge(1), le(MAX_ROUNDS)])
    seed: int = field(default=1, validator=[_whole, ge(0), lt(1 << 63)])
    cohort_size: int = field(default=0, validator=[_whole, ge(0), le(MAX_SITES)])
    min_contributors: int = field(default=1, validator=[_whole, ge(1), le(MAX_SITES)])
    retries: int = field(default=0, validator=[_whole, ge(0), le(MAX_ROUNDS)])
    reply_timeout: float = field(default=0.0, validator=[_number, ge(0), lt(MAX_TIMEOUT)])
    device: str = "cpu"
    threads: int = field(default=0, validator=[_whole, ge(0), le(MAX_THREADS)])
    adversary: Adversary = field(
        default="honest-but-curious", validator=in_(("honest-but-curious", "active"))
    )
    max_colluding: int = field(default=0, validator=[_whole, ge(0), le(MAX_SITES)])
    insecure_seeded_secrets: bool = False
    key_directory: str = ""
    evaluate_every: int = field(default=1, validator=[_whole, ge(0), le(MAX_ROUNDS)])
    holdout_fraction: float = field(default=0.0, validator=[_number, ge(0), lt(1)])
    holdout_baselines: tuple[Baseline, ...] = field(default=(), validator=_known_baselines)
    observers: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        """Refuse numbers and parts that contradict one another."""
        if self.data is None and self.dataset is None:
            raise StudyError(
                "a simulation needs a dataset; a deployment declares its data instead."
            )
        if self.data is not None and self.partitioner is not None:
            raise StudyError(
                "a deployment splits no data, so it has no partitioner: each hospital's site file "
                "names its own data."
            )
        if self.data is None and self.key_directory:
            raise StudyError("a simulation makes its own keys; key_directory is for a deployment.")
        if self.cohort_size > self.sites:
            raise StudyError(
                f"cohort_size = {self.cohort_size} is more than the {self.sites} sites."
            )
        if self.holdout_baselines and not self.holdout_fraction:
            raise StudyError(
                "holdout_baselines are scored on held-out images; set holdout_fraction, too."
            )
        asked = self.cohort_size or self.sites
        if self.min_contributors > asked:
            raise StudyError(
                f"min_contributors = {self.min_contributors} is more than the {asked} sites asked "
                "each round."
            )

    def as_toml(self) -> str:
        """Return the study file of this federation, with every parameter."""
        catalog = discover()
        tables: dict[str, Any] = {
            "federation": {
                term: toml_tables.to_toml_value(getattr(self, term)) for term in FEDERATION_KEYS
            }
        }
        for name in VALUES:
            if getattr(self, name) is not None:
                tables[name] = toml_tables.to_values(catalog, getattr(self, name))
        for role in STUDY_ROLES:
            if getattr(self, role) is not None:
                tables[role] = toml_tables.to_table(catalog, role, getattr(self, role))
        return tomli_w.dumps(tables)

    def plugins(self) -> dict[str, str]:
        """Return the plugin of each role.

        For a part that is of no plugin, the result has the part's class.
        """
        catalog = discover()
        parts = {role: part for role in STUDY_ROLES if (part := getattr(self, role)) is not None}
        return {
            role: " or ".join(record.label for record in catalog.plugins_defining(part))
            or f"{type(part).__module__}:{type(part).__qualname__}"
            for role, part in parts.items()
        }


FEDERATION_KEYS = tuple(
    f.name for f in attrs.fields(Study) if f.name not in (*VALUES, *STUDY_ROLES)
)
"""The keys of a study file's `[federation]` table."""
