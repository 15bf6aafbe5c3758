"""Before the first round: a study is loaded, dealt, planned and tried out, or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen

from cohortium import vector
from cohortium.account import Account
from cohortium.clipping import require_per_example, require_separable
from cohortium.errors import StudyError
from cohortium.evaluation import resolve_device
from cohortium.identity import Directory, Identity
from cohortium.randomness import Randomness, Seeds
from cohortium.setting import Setting
from cohortium.site import Recipe
from cohortium.vocabulary import Cohort, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from cohortium.data import Examples, Splits
    from cohortium.federation import Federation
    from cohortium.ledger import Ledger
    from cohortium.ring import RingVector
    from cohortium.vocabulary import Index, SiteId, Work


TRIED = 4
"""Made-up images on which a network's gradients are tried."""


@frozen(eq=False, kw_only=True)
class Ready:
    """A study that can be run: loaded, dealt and planned.

    Attributes:
        federation: The study.
        splits: The data, as loaded.
        hands: Positions of each site's training examples.
        setting: What every party will know.
        parameters: P, the length of the update.
        identities: Each simulated site's signing key, where the study fears an active coordinator.
    """

    federation: Federation
    splits: Splits
    hands: tuple[Index, ...]
    setting: Setting
    parameters: int
    identities: tuple[Identity, ...] | None = field(default=None, repr=False)

    def recipe(self, site: SiteId, ledger: Ledger | None = None) -> Recipe:
        """How to make a simulated site, with its data and its key alone.

        Args:
            site: Its number.
            ledger: Where what it spends is written down, under a name of its own.
        """
        return Recipe(
            self.setting,
            site,
            self.splits.train.take(self.hands[site]),
            identity=None if self.identities is None else self.identities[site],
            account=None if ledger is None else Account(ledger, f"site {site}"),
        )


def prepare(federation: Federation) -> Ready:
    """Load, deal and plan; see `Federation.prepare`."""
    import torch

    device = resolve_device(federation.device)
    seeds = Seeds(federation.seed)
    splits = federation.dataset.load()
    spec = splits.spec
    hands = _deal(federation, splits, seeds)
    cohort = Cohort(
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
    net = federation.model.build(spec, seeds.integer("weights"))
    parameters = vector.length(net)
    _try_out(federation, splits, net)
    work = federation.trainer.work(cohort)
    shape = (TRIED, *splits.train.images.shape[1:])
    made_up = torch.from_numpy(seeds.generator("trial").random(shape, dtype=np.float32))
    made_up = federation.model.prepare(made_up)
    plan = federation.privatizer.plan(work, cohort, parameters)
    if plan.guarantee is not None and plan.guarantee.unit != "site":
        require_per_example(net)
        require_separable(net, made_up)
    _rehearse(federation, net, made_up, work)
    fresh = Randomness.simulated(seeds.root) if cohort.seeded_noise else Randomness.system()
    identities = _identities(cohort, fresh)
    setting = Setting(
        session=fresh.token(16, "session"),
        spec=spec,
        cohort=cohort,
        model=federation.model,
        trainer=federation.trainer,
        work=work,
        plan=plan,
        aggregator=federation.aggregator,
        seeds=seeds,
        directory=None if identities is None else Directory(tuple(i.public for i in identities)),
        device=device,
    )
    # Refuses a cohort that the aggregator cannot serve, before anything is started.
    setting.aggregator.coordinator(setting.sum, fresh)
    return Ready(
        federation=federation,
        splits=splits,
        hands=hands,
        setting=setting,
        parameters=parameters,
        identities=identities,
    )


def _identities(cohort: Cohort, secret: Randomness) -> tuple[Identity, ...] | None:
    """A signing key for each simulated site; hospitals make and pin their own."""
    if cohort.adversary != "active":
        return None
    return tuple(Identity.draw(secret.fork("identity", site)) for site in range(cohort.sites))


def _try_out(federation: Federation, splits: Splits, net: nn.Module) -> None:
    """Refuse a model whose network does not fit the images, by showing it blank ones."""
    import torch

    blank = torch.zeros(2, *splits.train.images.shape[1:])
    wanted = (2, len(splits.classes))
    try:
        with torch.no_grad():
            found = tuple(net.eval()(federation.model.prepare(blank)).shape)
    except (RuntimeError, ValueError) as error:
        raise StudyError(
            f"the model cannot take images of shape {tuple(blank.shape[1:])}: {error}."
        ) from error
    if found != wanted:
        raise StudyError(f"the model gives outputs of shape {found}, not {wanted}.")


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


def _deal(federation: Federation, splits: Splits, seeds: Seeds) -> tuple[Index, ...]:
    rng = seeds.generator("partition")
    examples, whole = _persons(splits.train)
    hands = tuple(federation.partitioner.deal(examples, federation.sites, rng))
    if len(hands) != federation.sites:
        raise StudyError(f"the partitioner dealt {len(hands)} hands to {federation.sites} sites.")
    empty = [site for site, hand in enumerate(hands) if len(hand) == 0]
    if empty:
        raise StudyError(
            f"site {empty[0]} has no data; ask for fewer sites, or a partitioner with a min_size."
        )
    dealt = np.concatenate([np.asarray(hand) for hand in hands])
    if dealt.dtype.kind not in "iu" or dealt.min() < 0 or dealt.max() >= len(examples):
        raise StudyError(f"the partitioner must deal whole numbers from 0 to {len(examples) - 1}.")
    if len(np.unique(dealt)) != len(dealt):
        raise StudyError("the partitioner dealt one example to two sites.")
    return tuple(whole(hand) for hand in hands)


def _persons(train: Examples) -> tuple[Examples, Callable[[Index], Index]]:
    """What is dealt: an example of each patient, where patients are named, and who has which.

    All images of a patient go to one site: what is hidden is a patient's part at one site.
    """
    if train.patients is None:
        return train, lambda hand: hand
    _, first, owner = np.unique(train.patients, return_index=True, return_inverse=True)
    return train.take(first), lambda hand: np.flatnonzero(np.isin(owner, hand))
