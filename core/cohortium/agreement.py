"""What every party makes of a study alike: a plan, a network tried out, and the setting of the run.

In a simulation it is made once; in a deployment the coordinator and every hospital make it, each
for itself, so that nobody has to believe another's figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np
from attrs import frozen

from cohortium import networks, vector
from cohortium.clipping import require_per_example, require_separable
from cohortium.errors import NetworkError, PrivacyError
from cohortium.evaluation import resolve_device
from cohortium.randomness import Randomness, Seeds
from cohortium.setting import Setting
from cohortium.vocabulary import Cohort, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from cohortium.data import DataSpec
    from cohortium.federation import Federation
    from cohortium.identity import Directory
    from cohortium.ring import RingVector
    from cohortium.vocabulary import Index, Work


TRIED = 4
"""Made-up images on which a network's gradients are tried."""


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
    federation: Federation, spec: DataSpec, *, session: bytes, directory: Directory | None
) -> Setting:
    """The setting of a run, from its study and what is public about the data.

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
    net = networks.build_network(federation.model, spec, seeds.integer("weights"))
    shape = (TRIED, *spec.shape)
    made_up = torch.from_numpy(seeds.generator("trial").random(shape, dtype=np.float32))
    made_up = federation.model.prepare(made_up)
    networks.try_out(federation.model, net, made_up, spec.classes)
    work = federation.trainer.work(cohort)
    if not networks.takes_one(net, made_up, len(spec.classes)):
        work = _with_fewest(federation, net, made_up, work)
    plan = federation.privatizer.plan(work, cohort, vector.length(net))
    if plan.guarantee is not None and plan.guarantee.unit != "site":
        _require_apart(federation, net, made_up, work)
    _rehearse(federation, net, made_up, work)
    setting = Setting(
        session=session,
        spec=spec,
        cohort=cohort,
        model=federation.model,
        trainer=federation.trainer,
        work=work,
        plan=plan,
        aggregator=federation.aggregator,
        seeds=seeds,
        directory=directory,
        device=device,
    )
    # Refuses a cohort that the aggregator cannot serve, before anything is started.
    setting.aggregator.coordinator(setting.sum, secrets_of(federation))
    return setting


def _require_apart(federation: Federation, net: nn.Module, images: Tensor, work: Work) -> None:
    """Refuse a network whose examples' gradients cannot be told apart, by its name."""
    name = networks.name_of(federation.model)
    try:
        require_per_example(net)
        if work.fewest == 1:
            require_separable(net, images)
            return
    except PrivacyError as error:
        raise PrivacyError(f"{name}: {error}") from error
    raise PrivacyError(
        f"{name} cannot be trained on a batch of one image, and example-level privacy takes "
        "examples one by one; keep the batch as the first dimension, with flatten(1) in place of "
        "squeeze()."
    )


def _with_fewest(federation: Federation, net: nn.Module, images: Tensor, work: Work) -> Work:
    """`work` for a network that cannot be trained on one image, unless its trainer copies that.

    Raises:
        NetworkError: The work asks for batches of one.
    """
    try:
        with networks.as_it_was(net):
            _rehearse(federation, net, images[:1], work)
    except Exception:  # noqa: BLE001 - copies of the one do not help
        if work.batch_size == 1:
            raise NetworkError(
                f"{networks.name_of(federation.model)} cannot be trained on a batch of one image, "
                "as batch normalisation cannot, and the trainer's batch_size is 1; raise it."
            ) from None
        return attrs.evolve(work, fewest=2)
    return work


@frozen
class Rehearsal:
    """Stands in for a site's privacy: one batch of made-up examples, and no gradient."""

    def batches(self, examples: int) -> Iterator[Index]:
        """Everyone, once."""
        yield np.arange(examples)

    def gradient(self, net: nn.Module, losses: Callable[[Index], Tensor], batch: Index) -> None:
        """Ask for the losses, and set zeros."""
        import torch

        losses(batch)
        for parameter in vector.trainable(net):
            parameter.grad = torch.zeros_like(parameter)

    def release(self, vector: Tensor, weight: float) -> RingVector:
        """Nothing is released in a rehearsal."""
        raise NotImplementedError


def _rehearse(federation: Federation, net: nn.Module, images: Tensor, work: Work) -> None:
    """Let the trainer go through a round with made-up images, so that it can refuse them now."""
    import torch

    classes = net.eval()(images).shape[1]
    task = Task(
        net=net.train(),
        images=images,
        labels=torch.zeros(len(images), dtype=torch.int64),
        classes=classes,
        round=0,
        rounds=federation.rounds,
        work=work,
        generator=torch.Generator().manual_seed(0),
        state={},
    )
    with torch.random.fork_rng(devices=[]):
        federation.trainer.train(task, Rehearsal())
    federation.trainer.server(vector.trainable(net), federation.rounds)
