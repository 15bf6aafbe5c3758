"""The three releases of one round that an attack reads.

The model, the trainer, the privatizer and the number of sites are the study's own. The releases
leave out its protection step by step: nothing is protected, then the sites are summed, and then
there is all that the study has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen

from cohortium import parameters
from cohortium.clipping.clipped_sum import mean_gradient
from cohortium.learning.preprocessing import preprocess
from cohortium.ring.ring import RingSum
from cohortium.roles.values import LocalTask
from cohortium.rounds.server_state import extra_length, initial_server_state, whole_release

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from cohortium.crypto.randomness import Randomness
    from cohortium.data.examples import Examples
    from cohortium.ring.ring import RingVector
    from cohortium.roles.sessions import RoundPlan, SitePrivatizer
    from cohortium.roles.values import ExampleIndices, LocalResult, SiteId
    from cohortium.rounds.run_config import RunConfig


def _ignore(_share: float) -> None:
    """Take no notice of the share that is done."""


@frozen(eq=False, kw_only=True)
class Release:
    """The view of the coordinator in one round.

    Attributes:
        gradient: The vector as a mean gradient of the trainable parameters, up to a positive
            factor, shape (P,).
        images: Positions of the images in it, at each of its sites.
    """

    gradient: Tensor = field(repr=False)
    images: dict[SiteId, ExampleIndices] = field(repr=False)


@frozen(eq=False, kw_only=True)
class AttackedRound:
    """One round of a study, as the coordinator of an attack arranges it.

    Attributes:
        run_config: The study's configuration.
        secret: The sites' source of secrets. It is a simulation's, so it may have a seed.
    """

    run_config: RunConfig
    secret: Randomness = field(repr=False)

    @property
    def number(self) -> int:
        """The first round that learns from labels."""
        return int(getattr(self.run_config.trainer, "statistics_rounds", 0))

    @property
    def _plan(self) -> RoundPlan:
        plan = self.run_config.plan
        return plan.at_round(self.number, plan.initial_state)

    def bare(self, examples: Examples) -> Release:
        """Return the exact release of one site that has only these few images."""
        workload, every = self.run_config.workload, np.arange(len(examples))
        watched = _Watched(lambda _: iter([every] * (workload.epochs or workload.steps)))
        trained = self._train(examples, watched, 0)
        return Release(gradient=self._gradient(trained.vector), images={0: every})

    def summed(self, sites: Sequence[Examples], tell: Callable[[float], None] = _ignore) -> Release:
        """Return the weighted mean of the exact releases of all sites.

        Args:
            sites: The sites of the sum.
            tell: Receives the share of the sites that have trained.
        """
        import torch

        weight, images = 0.0, {}
        total = torch.zeros((), dtype=torch.float64)
        for site, examples in enumerate(sites):
            watched = _Watched(self._privatizer(site, examples).batches)
            trained = self._train(examples, watched, site)
            total = total + trained.weight * trained.vector.double().cpu()
            weight += trained.weight
            images[site] = watched.images
            tell((site + 1) / len(sites))
        return Release(gradient=self._gradient((total / max(weight, 1.0)).float()), images=images)

    def seen(self, sites: Sequence[Examples], tell: Callable[[float], None] = _ignore) -> Release:
        """Return the sum of the sites' own releases, clipped and noised as the study says.

        Args:
            sites: The sites of the sum. It is one site if the aggregator hides no release.
            tell: Receives the share of the sites that have trained.
        """
        run_config = self.run_config
        words, images = run_config.plan.ring.zeros(run_config.plan.length), {}
        for site, examples in enumerate(sites):
            privatizer = self._privatizer(site, examples)
            watched = _Watched(privatizer.batches, privatizer)
            trained = self._train(examples, watched, site)
            extra = extra_length(run_config.trainer, run_config.workload, len(trained.vector))
            words += privatizer.release(whole_release(trained, extra), trained.weight).words
            images[site] = watched.images
            tell((site + 1) / len(sites))
        total = RingSum(run_config.plan.ring, words, tuple(range(len(sites))))
        return Release(gradient=self._gradient(self._plan.decode(total)), images=images)

    def _privatizer(self, site: SiteId, examples: Examples) -> SitePrivatizer:
        patients = examples.patients
        if patients is None:
            patients = np.arange(len(examples), dtype=np.int64)
        return self._plan.for_site(self.secret.derive(site), patients)

    def _train(self, examples: Examples, privatizer: _Watched, site: SiteId) -> LocalResult:
        import torch

        run_config, net = self.run_config, self.run_config.network()
        inputs = preprocess(run_config.model, examples.images, run_config.spec)
        seed = int.from_bytes(self.secret.derive(site).secret_bytes(7, "draws"), "big")
        task = LocalTask(
            net=net.train(),
            images=inputs.to(run_config.device),
            labels=torch.from_numpy(examples.labels).to(run_config.device),
            spec=run_config.spec,
            round=self.number,
            rounds=run_config.federation_spec.rounds,
            workload=run_config.workload,
            generator=torch.Generator().manual_seed(seed),
            state={},
            server_state=initial_server_state(run_config.trainer, parameters.length(net)),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return run_config.trainer.train(task, privatizer)

    def _gradient(self, vector: Tensor) -> Tensor:
        """Return the part of the trainable parameters, with the sign of a gradient."""
        length = sum(p.numel() for p in parameters.trainable(self.run_config.network()))
        sign = -1.0 if self.run_config.workload.output == "update" else 1.0
        return sign * vector[:length].detach().float().cpu()


@frozen(eq=False)
class _Watched:
    """A site's privatizer whose batches are recorded.

    Attributes:
        draw: Draws the batches.
        privatizer: The study's own. Without one, gradients are exact.
    """

    draw: Callable[[int], Iterator[ExampleIndices]]
    privatizer: SitePrivatizer | None = None
    _used: list[ExampleIndices] = field(factory=list, init=False, repr=False)

    @property
    def images(self) -> ExampleIndices:
        """Positions of the images in all batches."""
        return np.unique(np.concatenate([np.arange(0), *self._used]))

    def batches(self, examples: int) -> Iterator[ExampleIndices]:
        """Yield the batches."""
        for batch in self.draw(examples):
            self._used.append(batch)
            yield batch

    def set_private_gradient(
        self, net: nn.Module, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices
    ) -> None:
        """Set the study's own gradient, or the exact mean."""
        if self.privatizer is None:
            mean_gradient(net, losses, batch)
        else:
            self.privatizer.set_private_gradient(net, losses, batch)

    def release(self, vector: Tensor, weight: float) -> RingVector:
        """Refuse, because a trainer releases nothing itself."""
        raise NotImplementedError
