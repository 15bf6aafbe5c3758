"""What every party makes of a study alike: a plan, a network tried out, and the setting of the run.

In a simulation it is made once; in a deployment the coordinator and every hospital make it, each
for itself, so that nobody has to believe another's figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from cohortium import parameters
from cohortium.catalog import networks
from cohortium.clipping.batch_mixing import require_no_batch_mixing, require_per_example_gradients
from cohortium.crypto.randomness import Randomness, Seeds
from cohortium.errors import PrivacyError
from cohortium.learning.evaluation import resolve_device
from cohortium.roles.values import FederationSpec
from cohortium.rounds.dry_run import dry_run, require_transmittable
from cohortium.rounds.min_batch import with_min_batch_size
from cohortium.rounds.network_size import PROBE_IMAGES, count_parameters, estimate_memory
from cohortium.rounds.run_config import AdmissionPolicy, RunConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from cohortium.crypto.signing import KeyDirectory
    from cohortium.data.examples import DataSpec
    from cohortium.roles.values import Workload
    from cohortium.study.study import Study


def federation_spec(
    federation: Study, *, examples: int, patients: int | None = None
) -> FederationSpec:
    """Who takes part in a study on so many examples, of so many patients."""
    return FederationSpec(
        sites=federation.sites,
        cohort_size=federation.cohort_size or federation.sites,
        min_contributors=federation.min_contributors,
        examples=examples,
        patients=patients,
        rounds=federation.rounds,
        retries=federation.retries,
        adversary=federation.adversary,
        max_colluding=federation.max_colluding,
        insecure_seeded_secrets=federation.insecure_seeded_secrets,
    )


def run_randomness(federation: Study) -> Randomness:
    """Where a run's own secrets come from: the operating system, but for seeded noise."""
    seeds = Seeds(federation.seed)
    return (
        Randomness.insecure_from_seed(seeds.root)
        if federation.insecure_seeded_secrets
        else Randomness.system()
    )


def build_run_config(
    federation: Study,
    spec: DataSpec,
    *,
    session: bytes,
    directory: KeyDirectory | None,
    policy: AdmissionPolicy | None = None,
) -> RunConfig:
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
    seeds = Seeds(federation.seed)
    cohort = federation_spec(federation, examples=spec.examples, patients=spec.patients)
    # The cheapest refusal first: noise is sought for seconds.
    federation.aggregator.confidentiality(cohort)
    workload = federation.trainer.workload(cohort)

    def planned(parameters: int) -> RunConfig:
        return RunConfig(
            session=session,
            spec=spec,
            cohort=cohort,
            model=federation.model,
            trainer=federation.trainer,
            workload=workload,
            plan=federation.privatizer.plan(workload, cohort, parameters),
            aggregator=federation.aggregator,
            seeds=seeds,
            directory=directory,
            device=device,
        )

    expected = None if policy is None else count_parameters(federation.model, spec)
    setting = (
        None if expected is None else _admitted_config(federation, spec, planned, expected, policy)
    )
    net = networks.build_network(federation.model, spec, seeds.integer("weights"))
    require_transmittable(net)
    shape = (PROBE_IMAGES, *spec.shape)
    made_up = torch.from_numpy(seeds.generator("trial").random(shape, dtype=np.float32))
    made_up = federation.model.preprocess(made_up)
    networks.check_output_shape(federation.model, net, made_up, spec.classes)
    if not networks.accepts_single_image(net, made_up, len(spec.classes)):
        workload, setting = with_min_batch_size(federation, net, made_up, workload), None
    if setting is None or parameters.length(net) != expected:
        setting = _admitted_config(federation, spec, planned, parameters.length(net), policy)
    guarantee = setting.plan.guarantee
    if guarantee is not None and guarantee.unit != "site":
        _require_private_network(federation, net, made_up, workload)
    # Refuses a cohort that the aggregator cannot serve, before anything is started.
    setting.aggregator.coordinator_session(setting.sum, run_randomness(federation))
    return attrs.evolve(setting, sizes=dry_run(setting, net))


def _admitted_config(
    federation: Study,
    spec: DataSpec,
    planned: Callable[[int], RunConfig],
    parameters: int,
    policy: AdmissionPolicy | None,
) -> RunConfig:
    """The setting for a network of so many values, if the policy lets it pass."""
    if policy is None:
        return planned(parameters)
    policy.admit_parameters(parameters)
    setting = planned(parameters)
    policy.admit(setting)
    copies = getattr(federation.trainer, "augmentation_multiplicity", 1)
    policy.admit_memory(estimate_memory(federation.model, spec, copies=copies))
    return setting


def _require_private_network(
    federation: Study, net: nn.Module, images: Tensor, workload: Workload
) -> None:
    """Refuse a network whose examples' gradients cannot be told apart, by its name."""
    name = networks.name_of(federation.model)
    try:
        require_no_batch_mixing(net)
        if workload.fewest == 1:
            require_per_example_gradients(net, images)
            return
    except PrivacyError as error:
        raise PrivacyError(f"{name}: {error}") from error
    raise PrivacyError(
        f"{name} cannot be trained on a batch of one image, and example-level privacy takes "
        "examples one by one; keep the batch as the first dimension, with flatten(1) in place of "
        "squeeze()."
    )
