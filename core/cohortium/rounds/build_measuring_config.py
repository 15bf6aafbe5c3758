"""The run configuration of a study whose sites release a statistic in place of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from cohortium.catalog import networks
from cohortium.errors import StudyError
from cohortium.learning.evaluation import resolve_device
from cohortium.rounds.dry_run import dry_run, require_transmittable
from cohortium.rounds.network_size import count_parameters, estimate_memory
from cohortium.rounds.plan_with_prior import with_prior
from cohortium.rounds.run_config import RunConfig
from cohortium.statistics.measuring import MeasuringTrainer
from cohortium.statistics.raw_images import RawImages
from cohortium.statistics.statistic import images_statistic, scores_statistic
from cohortium.study.measurement import SITE
from cohortium.text import did_you_mean

if TYPE_CHECKING:
    from cohortium.crypto.randomness import Randomness, Seeds
    from cohortium.crypto.signing import KeyDirectory
    from cohortium.data.examples import DataSpec
    from cohortium.roles.protocols import Model
    from cohortium.roles.values import FederationSpec
    from cohortium.rounds.run_config import AdmissionPolicy
    from cohortium.statistics.statistic import Statistic
    from cohortium.study.measurement import Measurement
    from cohortium.study.study import Study

MAX_CELLS = 1 << 16
"""Most values of a statistic."""


def build_measuring_config(
    study: Study,
    spec: DataSpec,
    federation_spec: FederationSpec,
    *,
    seeds: Seeds,
    secret: Randomness,
    session: bytes,
    directory: KeyDirectory | None,
    policy: AdmissionPolicy | None = None,
) -> RunConfig:
    """Build the configuration of a study with a measurement (see `build_run_config`).

    Args:
        study: The study.
        spec: Public facts about the measured data.
        federation_spec: The study's declared numbers.
        seeds: The run's public seeds.
        secret: Source of the secrets with which the aggregator is tried.
        session: Name of the run.
        directory: The sites' public keys.
        policy: Limits of a site.

    Raises:
        CohortiumError: The study cannot be run in its present form.
    """
    measurement = study.measurement
    assert measurement is not None
    model: Model = RawImages() if measurement.of == "images" else study.model
    if policy is not None and (size := count_parameters(model, spec)) is not None:
        policy.admit_parameters(size)
    trainer = MeasuringTrainer(
        model=model,
        statistic=_statistic(measurement, spec, federation_spec),
        examples_per_site=federation_spec.examples_per_site,
        is_private=True,
    )
    workload = trainer.workload(federation_spec)
    plan = with_prior(
        study.privatizer.plan(workload, federation_spec, len(trainer.statistic.cells)),
        study,
        federation_spec,
    )
    run_config = RunConfig(
        session=session,
        spec=spec,
        federation_spec=federation_spec,
        model=model,
        trainer=attrs.evolve(trainer, is_private=plan.guarantee is not None),
        workload=workload,
        plan=plan,
        aggregator=study.aggregator,
        seeds=seeds,
        directory=directory,
        device=resolve_device(study.device),
    )
    if policy is not None:
        policy.admit(run_config)
        policy.admit_memory(estimate_memory(model, spec, copies=1))
    net = networks.build_network(model, spec, seeds.integer("weights"))
    require_transmittable(net)
    run_config.aggregator.coordinator_session(run_config.sum, secret)
    return attrs.evolve(run_config, sizes=dry_run(run_config, net))


def _statistic(
    measurement: Measurement, spec: DataSpec, federation_spec: FederationSpec
) -> Statistic:
    """Return the statistic that a measurement asks for.

    Raises:
        StudyError: The task has no such part, the data have no such column of groups, or a column
            has the name of the hospitals.
    """
    if measurement.of == "images":
        return images_statistic(spec)
    known = spec.task.score_parts
    for part in measurement.parts:
        if part not in known:
            raise StudyError(
                f"the task has no part '{part}' among its scores; {did_you_mean(part, known)}"
            )
    columns = {column.name: column.values for column in spec.groups}
    if SITE in columns and SITE in measurement.by:
        raise StudyError(
            f"the data have a column of groups '{SITE}', and the same word in 'by' stands for the "
            "hospitals; rename the column, or leave it out of the data's groups."
        )
    columns[SITE] = tuple(map(str, range(federation_spec.sites)))
    for column in measurement.by:
        if column not in columns:
            raise StudyError(
                f"the data have no column of groups '{column}'; {did_you_mean(column, columns)}"
            )
    statistic = scores_statistic(
        spec, measurement.parts, {column: columns[column] for column in measurement.by}
    )
    if len(statistic.cells) > MAX_CELLS:
        raise StudyError(
            f"the scores take {len(statistic.cells):,} values, and {MAX_CELLS:,} are the most; "
            "choose fewer parts, or fewer columns of groups."
        )
    return statistic
