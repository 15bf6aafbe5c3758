"""What every party makes of a study alike: a plan, a network tried out, and the setting of the run.

In a simulation it is made once; in a deployment the coordinator and every hospital make it, each
for itself, so that nobody has to believe another's figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from cohortium import vector
from cohortium.errors import StudyError
from cohortium.evaluation import resolve_device
from cohortium.randomness import Randomness, Seeds
from cohortium.rehearsal import rehearse, require_carried
from cohortium.separability import require_per_example, require_separable
from cohortium.setting import Setting
from cohortium.sizing import TRIED, memory_of, parameters_of
from cohortium.vocabulary import Cohort

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from cohortium.data import DataSpec
    from cohortium.federation import Federation
    from cohortium.identity import Directory
    from cohortium.policy import SitePolicy


def cohort_of(federation: Federation, spec: DataSpec) -> Cohort:
    """Who takes part in a study on data as `spec` declares them."""
    return Cohort(
        sites=federation.sites,
        size=federation.cohort or federation.sites,
        min_sites=federation.min_sites,
        examples=spec.examples,
        patients=spec.patients,
        rounds=federation.rounds,
        retries=federation.retries,
        adversary=federation.adversary,
        colluding=federation.colluding,
        seeded_noise=federation.seeded_noise,
    )


def secrets_of(federation: Federation) -> Randomness:
    """Where a run's own secrets come from: the operating system, but for seeded noise."""
    seeds = Seeds(federation.seed)
    return Randomness.simulated(seeds.root) if federation.seeded_noise else Randomness.system()


def agree(
    federation: Federation,
    spec: DataSpec,
    *,
    session: bytes,
    directory: Directory | None,
    policy: SitePolicy | None = None,
) -> Setting:
    """The setting of a run, from its study and what is public about the data.

    Args:
        federation: The study.
        spec: What is public about the data.
        session: Names the run.
        directory: The sites' public keys.
        policy: Asked before a network is built or tried, as far as its size can be told before.

    Guarantees:
        A function of its arguments: parties with equal ones make equal settings.  No data are
        looked at.

    Raises:
        CohortiumError: The study cannot be run as it stands.
    """
    import torch

    device = resolve_device(federation.device)
    seeds, cohort = Seeds(federation.seed), cohort_of(federation, spec)
    # The cheapest refusal first: noise is sought for seconds.
    federation.aggregator.secrecy(cohort)
    work = federation.trainer.work(cohort)

    def planned(parameters: int) -> Setting:
        return Setting(
            session=session,
            spec=spec,
            cohort=cohort,
            model=federation.model,
            trainer=federation.trainer,
            work=work,
            plan=federation.privatizer.plan(work, cohort, parameters),
            aggregator=federation.aggregator,
            seeds=seeds,
            directory=directory,
            device=device,
        )

    expected = None if policy is None else parameters_of(federation.model, spec)
    setting = None if expected is None else _asked(federation, spec, planned, expected, policy)
    net = federation.model.build(spec, seeds.integer("weights"))
    require_carried(net)
    _try_out(federation, spec, net)
    shape = (TRIED, *spec.shape)
    made_up = torch.from_numpy(seeds.generator("trial").random(shape, dtype=np.float32))
    made_up = federation.model.prepare(made_up)
    if setting is None or vector.length(net) != expected:
        setting = _asked(federation, spec, planned, vector.length(net), policy)
    plan = setting.plan
    if plan.guarantee is not None and plan.guarantee.unit != "site":
        require_per_example(net)
        require_separable(net, made_up)
    # Refuses a cohort that the aggregator cannot serve, before anything is started.
    setting.aggregator.coordinator(setting.sum, secrets_of(federation))
    return attrs.evolve(setting, sizes=rehearse(setting, net))


def _asked(
    federation: Federation,
    spec: DataSpec,
    planned: Callable[[int], Setting],
    parameters: int,
    policy: SitePolicy | None,
) -> Setting:
    """The setting for a network of so many values, if the policy lets it pass."""
    if policy is None:
        return planned(parameters)
    policy.admit_parameters(parameters)
    setting = planned(parameters)
    policy.admit(setting)
    copies = getattr(federation.trainer, "copies", 1)
    policy.admit_memory(memory_of(federation.model, spec, copies=copies))
    return setting


def _try_out(federation: Federation, spec: DataSpec, net: nn.Module) -> None:
    """Refuse a model whose network does not fit the images, by showing it blank ones."""
    import torch

    blank = torch.zeros(2, *spec.shape)
    wanted = (2, len(spec.classes))
    try:
        with torch.no_grad():
            found = tuple(net.eval()(federation.model.prepare(blank)).shape)
    except (RuntimeError, ValueError) as error:
        raise StudyError(
            f"the model cannot take images of shape {tuple(blank.shape[1:])}: {error}."
        ) from error
    if found != wanted:
        raise StudyError(f"the model gives outputs of shape {found}, not {wanted}.")
