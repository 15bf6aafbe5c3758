"""The run configuration: a function of the study and public data facts.

In a simulation, one machine builds it once. In a deployment, the coordinator and every hospital
each build it, so no party has to trust another party's figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from cohortium import parameters
from cohortium.catalog import networks
from cohortium.catalog.part_results import require_protocol, require_result
from cohortium.clipping.batch_mixing import require_no_batch_mixing, require_per_example_gradients
from cohortium.crypto.randomness import Randomness, Seeds
from cohortium.errors import PrivacyError
from cohortium.learning.evaluation import resolve_device
from cohortium.learning.noise_response import ServerTrial
from cohortium.roles.sessions import CoordinatorSession, PrivacyPlan
from cohortium.roles.values import FederationSpec, Workload
from cohortium.rounds.build_measuring_config import build_measuring_config
from cohortium.rounds.dry_run import dry_run, require_transmittable
from cohortium.rounds.min_batch import with_min_batch_size
from cohortium.rounds.network_size import PROBE_IMAGES, count_parameters, estimate_memory
from cohortium.rounds.plan_with_prior import with_prior
from cohortium.rounds.run_config import AdmissionPolicy, RunConfig
from cohortium.rounds.server_state import extra_length

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from cohortium.crypto.signing import KeyDirectory
    from cohortium.data.examples import DataSpec
    from cohortium.study.study import Study


def to_federation_spec(
    federation: Study, *, examples: int, patients: int | None = None
) -> FederationSpec:
    """Return a study's declared numbers for so many examples and patients."""
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
    """Return the source of a run's own secrets.

    The source is the operating system, or the public seed if the study asks for seeded noise.
    """
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
    """Build a run's configuration from its study and public data facts.

    Args:
        federation: The study.
        spec: Public facts about the data.
        session: Name of the run.
        directory: The sites' public keys.
        policy: Limits of a site. They are checked before a network is built or tried, as far as its
            size is known before.

    Guarantees:
        The result is a function of the arguments: parties with equal arguments build equal
        configurations.
        The function reads no data.

    Raises:
        CohortiumError: The study cannot be run in its present form.
    """
    import torch

    device = resolve_device(federation.device)
    seeds = Seeds(federation.seed)
    federation_spec = to_federation_spec(federation, examples=spec.examples, patients=spec.patients)
    # The cheapest refusal first: the search for the noise takes seconds.
    federation.aggregator.confidentiality(federation_spec)
    if federation.measurement is not None:
        return build_measuring_config(
            federation,
            spec,
            federation_spec,
            seeds=seeds,
            secret=run_randomness(federation),
            session=session,
            directory=directory,
            policy=policy,
        )
    declared: object = federation.trainer.workload(federation_spec)
    require_result(
        federation.trainer, "workload", declared, isinstance(declared, Workload), "a Workload"
    )
    assert isinstance(declared, Workload)
    workload = attrs.evolve(
        declared,
        find_noise_response=ServerTrial(federation.trainer, federation_spec.rounds),
    )

    def planned(parameters: int) -> RunConfig:
        length = parameters + extra_length(federation.trainer, workload, parameters)
        plan = federation.privatizer.plan(workload, federation_spec, length)
        require_protocol(federation.privatizer, "plan", plan, PrivacyPlan)
        return RunConfig(
            session=session,
            spec=spec,
            federation_spec=federation_spec,
            model=federation.model,
            trainer=federation.trainer,
            workload=workload,
            plan=with_prior(plan, federation, federation_spec),
            aggregator=federation.aggregator,
            seeds=seeds,
            directory=directory,
            device=device,
        )

    expected = None if policy is None else count_parameters(federation.model, spec)
    run_config = (
        None if expected is None else _admitted_config(federation, spec, planned, expected, policy)
    )
    net = networks.build_network(federation.model, spec, seeds.integer("weights"))
    require_transmittable(net)
    shape = (PROBE_IMAGES, *spec.shape)
    made_up = torch.from_numpy(seeds.generator("trial").random(shape, dtype=np.float32))
    made_up = networks.preprocess_probe(federation.model, made_up)
    networks.check_output_shape(federation.model, net, made_up, spec)
    if not networks.accepts_single_image(net, made_up, spec.output_shape):
        workload, run_config = with_min_batch_size(federation, net, made_up, workload, spec), None
    if run_config is None or parameters.length(net) != expected:
        run_config = _admitted_config(federation, spec, planned, parameters.length(net), policy)
    guarantee = run_config.plan.guarantee
    if guarantee is not None and guarantee.unit != "site":
        _require_private_network(federation, net, made_up, workload)
    # Refuse a cohort that the aggregator cannot serve, before anything is started.
    session_of_sums = run_config.aggregator.coordinator_session(
        run_config.sum, run_randomness(federation)
    )
    require_protocol(
        run_config.aggregator, "coordinator_session", session_of_sums, CoordinatorSession
    )
    return attrs.evolve(run_config, sizes=dry_run(run_config, net))


def _admitted_config(
    federation: Study,
    spec: DataSpec,
    planned: Callable[[int], RunConfig],
    parameters: int,
    policy: AdmissionPolicy | None,
) -> RunConfig:
    """Return the configuration for so many parameters, if the policy admits it."""
    if policy is None:
        return planned(parameters)
    policy.admit_parameters(parameters)
    run_config = planned(parameters)
    policy.admit(run_config)
    copies = getattr(federation.trainer, "augmentation_multiplicity", 1)
    policy.admit_memory(estimate_memory(federation.model, spec, copies=copies))
    return run_config


def _require_private_network(
    federation: Study, net: nn.Module, images: Tensor, workload: Workload
) -> None:
    """Refuse a network that mixes examples' gradients, and name the network."""
    try:
        require_no_batch_mixing(net)
        if workload.fewest == 1:
            require_per_example_gradients(net, images)
            return
    except PrivacyError as error:
        raise PrivacyError(f"{networks.name_of(federation.model)}: {error}") from error
    raise PrivacyError(
        f"{networks.name_of(federation.model)} cannot be trained on a batch of one image, and "
        "example-level privacy takes examples one by one; keep the batch as the first "
        "dimension, with flatten(1) in place of squeeze()."
    )
