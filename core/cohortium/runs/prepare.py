"""Preparation of a study: load, partition, plan and try out, or refuse."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from attrs import field, frozen

from cohortium import parameters
from cohortium.catalog.part_results import load_splits, raise_as_sentence, require_result
from cohortium.crypto.randomness import Seeds
from cohortium.crypto.signing import KeyDirectory, SigningKey
from cohortium.data.examples import Examples
from cohortium.data.overlap import overlap
from cohortium.errors import StudyError
from cohortium.learning.kept_features import FeatureFolder
from cohortium.learning.statistics_rounds import unused_statistics
from cohortium.ledger.account import Account
from cohortium.rounds.build_run_config import build_run_config, run_randomness, to_federation_spec
from cohortium.rounds.site import SimulatedSiteFactory
from cohortium.runs.dataset_info import DatasetInfo
from cohortium.runs.holdout import hold_out
from cohortium.runs.site_test_images import test_images
from cohortium.storage.trainer_state import TrainerStateFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from cohortium.crypto.randomness import Randomness
    from cohortium.data.examples import DataSpec
    from cohortium.data.splits import Splits
    from cohortium.learning.preprocessing import Features
    from cohortium.ledger.ledger import Ledger
    from cohortium.roles.values import ExampleIndices, SiteId
    from cohortium.rounds.run_config import RunConfig
    from cohortium.study.study import Study


@frozen(eq=False, kw_only=True)
class PreparedStudy:
    """A study that can be run.

    It is loaded, planned and, in a simulation, partitioned.

    Attributes:
        federation: The study.
        run_config: The run configuration.
        parameters: Length of the update, P.
        loaded_splits: The coordinator's data: all data of a simulation, the public images of a
            deployment, or None.
        partition: Positions of each simulated site's training examples.
        holdout: Positions of each simulated site's held-out examples, for scores.
        identities: Signing key of each simulated site, if the study assumes an active coordinator.
        features: Folder that keeps features between runs, by default the one that
            `COHORTIUM_FEATURES` names.
        shared: What the sites' test images have in common with their training images, in the
            evaluation of a simulation. Empty if they are disjoint.
        warnings: Warnings for a careful reader about the parts of the study.
    """

    federation: Study
    run_config: RunConfig
    parameters: int
    loaded_splits: Splits | None
    partition: tuple[ExampleIndices, ...] = field(default=(), repr=False)
    holdout: tuple[ExampleIndices, ...] = field(default=(), repr=False)
    identities: tuple[SigningKey, ...] | None = field(default=None, repr=False)
    features: Features | None = field(factory=FeatureFolder.from_environment)
    shared: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def is_deployment(self) -> bool:
        """Whether the sites are hospitals, which create themselves."""
        return self.federation.data is not None

    @property
    def splits(self) -> Splits:
        """The data that a simulation partitions.

        Raises:
            StudyError: The study is a deployment, whose data are in the hospitals.
        """
        self.require_simulated()
        assert self.loaded_splits is not None
        return self.loaded_splits

    @property
    def uses_run_ledger(self) -> bool:
        """Whether the run's own ledger records attempts.

        Hospitals keep their own ledgers.
        """
        return self.run_config.plan.guarantee is not None and not self.is_deployment

    def require_simulated(self) -> None:
        """Refuse a deployment.

        Raises:
            StudyError: The study is a deployment.
        """
        if self.is_deployment:
            raise StudyError(
                "the study is of a deployment, whose data lie in the hospitals; to try it out, "
                "give it a [dataset] and a [partitioner] in place of [data]."
            )

    @property
    def validation(self) -> Examples | None:
        """Public images for scores during the run."""
        return None if self.loaded_splits is None else self.loaded_splits.validation

    @property
    def test(self) -> Examples | None:
        """Public images for the scores of the result."""
        return None if self.loaded_splits is None else self.loaded_splits.test

    @property
    def dataset_info(self) -> DatasetInfo:
        """Public facts about the data, which a deployment's study declares."""
        declared = self.federation.data
        if declared is None:
            # Without the images that the sites hold out of the training.
            found, trained = DatasetInfo.of(self.splits), self.run_config.spec
            spec = attrs.evolve(found.spec, examples=trained.examples, patients=trained.patients)
            return attrs.evolve(found, spec=spec)
        validation, test = (0 if p is None else len(p) for p in (self.validation, self.test))
        return DatasetInfo(
            name="the hospitals' own" if self.loaded_splits is None else self.loaded_splits.name,
            source="" if self.loaded_splits is None else self.loaded_splits.source,
            spec=declared,
            validation=validation,
            test=test,
        )

    def site_factory(
        self, site: SiteId, ledger: Ledger | None = None, states: Path | None = None
    ) -> SimulatedSiteFactory:
        """Return the factory of a simulated site.

        The factory has only this site's data and key.

        Args:
            site: Number of the site.
            ledger: Ledger that records the site's spending, under a name of its own.
            states: Folder in which the trainer state survives this process.
        """
        session = self.run_config.session
        state = None if states is None else self.trainer_state_path(site, states)
        return SimulatedSiteFactory(
            self.run_config,
            site,
            self.splits.train.select(self.partition[site]),
            identity=None if self.identities is None else self.identities[site],
            account=None if ledger is None else Account(ledger, self._account_name(site)),
            store=None if state is None else TrainerStateFile(state, session),
            features=self.features,
        )

    def _account_name(self, site: SiteId) -> str:
        measurement = self.federation.measurement
        is_test = measurement is not None and measurement.data == "test"
        return f"site {site}, test images" if is_test else f"site {site}"

    def trainer_state_path(self, site: SiteId, states: Path) -> Path:
        """Return the file in `states` of a simulated site's trainer state."""
        return states / f"site-{site}.safetensors"

    def site_factories(
        self, ledger: Ledger | None = None, states: Path | None = None
    ) -> dict[SiteId, SimulatedSiteFactory] | None:
        """Return a factory for each simulated site, or None in a deployment.

        In a deployment, sites create themselves.
        """
        if self.is_deployment:
            return None
        return {
            site: self.site_factory(site, ledger, states) for site in range(len(self.partition))
        }


def prepare(
    federation: Study, *, loaded: Splits | None = None, may_lack_classes: bool = False
) -> PreparedStudy:
    """Load, partition and plan a study (see `Federation.prepare`).

    Args:
        federation: The study.
        loaded: Its data, if they are loaded already.
        may_lack_classes: Whether the data are those of one site, which may lack classes.

    Raises:
        CohortiumError: The study cannot be run in its present form, or a foreign plugin has failed.
    """
    try:
        return _prepare(federation, loaded, may_lack_classes=may_lack_classes)
    except Exception as error:
        raise_as_sentence(error)
        raise


def _prepare(federation: Study, loaded: Splits | None, *, may_lack_classes: bool) -> PreparedStudy:
    # The study alone decides this, so a refusal needs neither torch nor the data.
    federation.aggregator.confidentiality(to_federation_spec(federation, examples=federation.sites))
    if federation.data is not None:
        return _prepare_deployment(federation, loaded)
    assert federation.dataset is not None
    splits = load_splits(federation.dataset) if loaded is None else loaded
    if not may_lack_classes:
        splits.require_learnable()
    spec = splits.spec
    partition, held = partition_study(federation, splits)
    shared = ""
    if federation.measurement is not None and federation.measurement.data == "test":
        trained = splits.train.select(np.concatenate(partition))
        splits, partition = test_images(federation, splits, partition, held)
        tested = splits.train.select(np.concatenate(partition))
        shared, held = overlap(trained, tested), ()
    if federation.measurement is not None:
        columns = tuple(c for c in splits.groups if c.name in federation.measurement.by)
        spec = attrs.evolve(spec, groups=columns)
        train = spec.group_codes(splits.train, splits.groups)
        splits = attrs.evolve(splits, train=train, groups=columns, validation=None, test=None)
    if federation.measurement is not None or federation.holdout_fraction:
        spec = _declared_sizes(splits.train, partition, spec)
    secret = run_randomness(federation)
    identities = _signing_keys(federation, secret)
    run_config = build_run_config(
        federation,
        spec,
        session=_session(federation, secret),
        directory=None if identities is None else KeyDirectory(tuple(i.public for i in identities)),
    )
    if federation.measurement is None:
        _require_enough(partition, run_config.workload.fewest)
    return PreparedStudy(
        federation=federation,
        run_config=run_config,
        **_network_facts(run_config),
        loaded_splits=splits,
        partition=partition,
        holdout=held,
        identities=identities,
        shared=shared,
    )


def partition_study(
    federation: Study, splits: Splits
) -> tuple[tuple[ExampleIndices, ...], tuple[ExampleIndices, ...]]:
    """Return the training examples and the held-out examples of each simulated site.

    Args:
        federation: The study, which is a simulation.
        splits: Its data.

    Returns:
        Positions in `splits.train` for each site, for training and held out.

    Raises:
        StudyError: A site has no data, or the partitioner breaks its contract.
    """
    seeds = Seeds(federation.seed)
    partition = _partition(federation, splits, seeds)
    return hold_out(splits.train, partition, federation.holdout_fraction, seeds)


def _session(study: Study, secret: Randomness) -> bytes:
    """Return the name of a run of `study`.

    With a public seed, a study and its evaluation must have two names. So must two evaluations that
    differ, and the runs of a search, because a site takes part in one run of a name.
    """
    purpose = "session"
    if study.measurement is not None or study.search is not None:
        purpose += f" {hashlib.sha256(study.as_toml().encode()).hexdigest()}"
    return secret.secret_bytes(16, purpose)


def _declared_sizes(
    train: Examples, partition: tuple[ExampleIndices, ...], spec: DataSpec
) -> DataSpec:
    """Return `spec` with the sizes of the remaining training data."""
    kept = np.concatenate(partition)
    patients = None if train.patients is None else len(np.unique(train.patients[kept]))
    return attrs.evolve(spec, examples=len(kept), patients=patients)


def _require_enough(partition: tuple[ExampleIndices, ...], fewest: int) -> None:
    """Refuse a site that has too few images to train the network."""
    for site, indices in enumerate(partition):
        if len(indices) < fewest:
            raise StudyError(
                f"site {site} has {len(indices)} image{'s' * (len(indices) != 1)}, and the "
                f"network can "
                f"be trained on no fewer than {fewest} at a time, as it has batch normalisation or "
                "its like; ask for fewer sites, or a partitioner with a min_size."
            )


def _described(spec: DataSpec) -> str:
    low, high = spec.intensity_range
    return (
        f"{spec.pixel_type} {spec.shape} from {low:g} to {high:g} of classes "
        f"{', '.join(spec.classes)} ({type(spec.task).__name__})"
    )


def _prepare_deployment(federation: Study, loaded: Splits | None) -> PreparedStudy:
    """Plan a deployment from the study's declarations, without hospitals' data."""
    spec = federation.data
    assert spec is not None
    public = loaded
    if public is None and federation.dataset is not None:
        public = load_splits(federation.dataset)
    if public is not None and not spec.describes(public.spec):
        raise StudyError(
            f"the public images of [dataset] are {_described(public.spec)}; [data] declares "
            f"{_described(spec)}."
        )
    if federation.holdout_fraction:
        raise StudyError(
            "holdout_fraction is for simulated sites: examples that hospitals hold out are not "
            "scored; leave it 0."
        )
    is_active = federation.adversary == "active"
    if is_active != bool(federation.key_directory):
        raise StudyError(
            "a deployment names a directory of the sites' keys if, and only if, its adversary is "
            "'active'; set both federation.adversary and federation.key_directory, or neither."
        )
    run_config = build_run_config(
        federation,
        spec,
        session=_session(federation, run_randomness(federation)),
        directory=KeyDirectory.read(Path(federation.key_directory)) if is_active else None,
    )
    return PreparedStudy(
        federation=federation,
        run_config=run_config,
        **_network_facts(run_config),
        loaded_splits=public,
    )


def _network_facts(run_config: RunConfig) -> dict[str, Any]:
    """Return the fields of a prepared study that need its network."""
    net = run_config.network()
    return {
        "parameters": parameters.length(net),
        "warnings": unused_statistics(run_config.trainer, net),
    }


def _signing_keys(federation: Study, secret: Randomness) -> tuple[SigningKey, ...] | None:
    """Return the simulated sites' signing keys, if the study needs them.

    Hospitals generate and pin their own keys.
    """
    if federation.adversary != "active":
        return None
    return tuple(
        SigningKey.generate(secret.derive("identity", site)) for site in range(federation.sites)
    )


def _partition(federation: Study, splits: Splits, seeds: Seeds) -> tuple[ExampleIndices, ...]:
    assert federation.partitioner is not None
    rng = seeds.generator("partition")
    # A partitioner sees one number for each example, whatever the task's labels are.
    strata = splits.task.strata(splits.train.labels)
    examples, whole = _partition_units(attrs.evolve(splits.train, labels=strata))
    parts: Any = federation.partitioner.partition(_read_only(examples), federation.sites, rng)
    require_result(
        federation.partitioner,
        "partition",
        parts,
        isinstance(parts, (list, tuple)) and all(np.ndim(part) == 1 for part in parts),
        "a list with one array of positions for each site",
    )
    partition = tuple(parts)
    name = type(federation.partitioner).__qualname__
    if len(partition) != federation.sites:
        raise StudyError(
            f"the partitioner {name} made {len(partition)} parts for {federation.sites} sites; let "
            "its partition return one for each."
        )
    empty = [site for site, indices in enumerate(partition) if len(indices) == 0]
    if empty:
        raise StudyError(
            f"site {empty[0]} has no data; ask for fewer sites, or a partitioner with a min_size."
        )
    dealt = np.concatenate([np.asarray(indices) for indices in partition])
    if dealt.dtype.kind not in "iu" or dealt.min() < 0 or dealt.max() >= len(examples):
        raise StudyError(
            f"the partitioner {name} gave positions that are no whole numbers from 0 to "
            f"{len(examples) - 1}; let its partition return positions of the examples."
        )
    if len(np.unique(dealt)) != len(dealt):
        raise StudyError(
            f"the partitioner {name} gave one example to two sites, or twice to one; let its "
            "partition return each position once."
        )
    return tuple(whole(indices) for indices in partition)


def _read_only(examples: Examples) -> Examples:
    """Return the same examples in arrays that a partitioner cannot change."""
    arrays = {
        each.name: value.view()
        for each in attrs.fields(Examples)
        if isinstance(value := getattr(examples, each.name), np.ndarray)
    }
    for array in arrays.values():
        array.flags.writeable = False
    return attrs.evolve(examples, **arrays)


def _partition_units(
    train: Examples,
) -> tuple[Examples, Callable[[ExampleIndices], ExampleIndices]]:
    """Return the examples to partition, and the map from them to indices.

    If the data name patients, the result has one example of each patient. All images of a patient
    go to one site, because the guarantee hides a patient's part at one site.
    """
    if train.patients is None:
        return train, lambda indices: indices
    _, first, owner = np.unique(train.patients, return_index=True, return_inverse=True)
    return train.select(first), lambda indices: np.flatnonzero(np.isin(owner, indices))
