"""A whole round before the first: made-up images go all the way, and nothing is charged for it.

What fails here, whether for a type of numbers, a shape or an option of an optimizer, would have
failed after every site had paid for an attempt.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import attrs
import numpy as np

from cohortium import parameters
from cohortium.crypto.randomness import Seeds
from cohortium.data.examples import Examples
from cohortium.errors import CohortiumError, RunError, StudyError
from cohortium.learning.evaluation import probabilities
from cohortium.rounds.coordinator import Coordinator
from cohortium.rounds.network_size import PROBE_IMAGES
from cohortium.rounds.run_config import Sizes
from cohortium.rounds.shared_model import SharedModel
from cohortium.rounds.site import Site
from cohortium.rounds.stand_ins import (
    PrebuiltModel,
    SingleSiteAggregator,
    StateSizeRecorder,
    ZeroGradientPlan,
)
from cohortium.storage import tensor_tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from cohortium.rounds.run_config import RunConfig


def require_transmittable(net: nn.Module) -> None:
    """Refuse a network whose trainable parameters a round would round, or drop parts of.

    Weights and updates travel as `float32`.  A network in `float64` takes them in as they are.

    Raises:
        StudyError: One is of another type of numbers; the sentence names the network's class.
    """
    import torch

    for name, parameter in net.named_parameters():
        if parameter.requires_grad and parameter.dtype not in (torch.float32, torch.float64):
            kind = str(parameter.dtype).removeprefix("torch.")
            raise StudyError(
                f"the parameter {name} of the network {type(net).__qualname__} is of the type "
                f"{kind}, and weights travel as float32; make the network's parameters float32, "
                f"and compute in {kind} inside its forward, or freeze them."
            )


def dry_run(setting: RunConfig, net: nn.Module) -> Sizes:
    """Play the first round and the last with one made-up site, from the weights to new weights.

    The site, the coordinator, the trainer, the privatizer, the server optimizer, the evaluation
    and the checkpoint are the run's own; the aggregation is of one.

    Args:
        setting: Of the run.  It is left as it is.
        net: The run's initial network, used up: another is to be built for the run.

    Returns:
        How much is to be written down after a round.

    Guarantees:
        Nothing is charged, kept or sent.  The seeds are another study's: what is drawn is drawn
        for nobody, and torch's own generator is left as it was.
        No study is refused for the values that come out: those of made-up images prove nothing.

    Raises:
        StudyError: The round cannot be played; the sentence says where it ended.
    """
    import torch

    rounds = setting.cohort.rounds
    with torch.random.fork_rng(devices=[]):
        stage = _DryRun(setting, net)
        return stage.play([0] if rounds == 1 else [0, rounds - 1])


class _DryRun:
    """Both parties of a rehearsal, which take turns with one network."""

    def __init__(self, setting: RunConfig, net: nn.Module) -> None:
        self._setting = setting
        self._net = net.to(setting.device)
        self._tried = attrs.evolve(
            setting,
            cohort=attrs.evolve(setting.cohort, min_contributors=1),
            model=PrebuiltModel(setting.model, self._net),
            workload=attrs.evolve(setting.workload, steps=1, epochs=None),
            plan=ZeroGradientPlan(setting.plan, setting.workload.batch_size or PROBE_IMAGES),
            aggregator=SingleSiteAggregator(setting.aggregator.confidentiality(setting.cohort)),
            seeds=Seeds(setting.seeds.integer("rehearsal")),
            directory=None,
        )
        self._examples = _probe_examples(setting)
        self._scale = StateSizeRecorder()

    def play(self, rounds: Sequence[int]) -> Sizes:
        """Play `rounds`, each from the initial weights."""
        initial = parameters.flatten(self._net)
        with self._saying("the server optimizer"):
            coordinator = Coordinator(self._tried)
        with self._saying("a site's preparation"):
            place = SharedModel(self._tried)
            site = Site(self._tried, 0, self._examples, place, store=self._scale)
        for attempt, number in enumerate(rounds):
            parameters.load(self._net, initial)
            self._round(coordinator, site, number, attempt)
        state = tensor_tree.dumps(coordinator.state())
        return Sizes(site=self._scale.bytes, server=len(state))

    def _round(self, coordinator: Coordinator, site: Site, number: int, attempt: int) -> None:
        coordinator.begin_attempt(number, attempt, (0,))
        requests = coordinator.next_requests()
        with self._saying("a site's training"):
            reply = site.answer(requests.broadcast, requests.per_site[0])
        if not coordinator.receive(0, reply):
            raise StudyError(f"every site would refuse its round: {coordinator.failures[0].reason}")
        site.shared_model.load_global_weights()
        with self._saying("the server's step"):
            coordinator.finish_attempt()
        with self._saying("the evaluation"):
            self._evaluate()
        with self._saying("the checkpoint"):
            tensor_tree.dumps(coordinator.state())
            coordinator.restore(coordinator.state())

    def _evaluate(self) -> None:
        import torch

        images = torch.from_numpy(self._examples.images).float().div_(255)
        inputs = self._setting.model.preprocess(images).to(self._setting.device)
        found = probabilities(self._setting.model, self._net, inputs).shape
        wanted = len(self._setting.spec.classes)
        if found != (len(images), wanted):
            raise StudyError(
                f"the model gives outputs of shape {found} after a round, not "
                f"{(len(images), wanted)}."
            )

    @contextlib.contextmanager
    def _saying(self, where: str) -> Iterator[None]:
        """Say where the round has ended, and of what it was made."""
        try:
            yield
        except RunError as error:
            raise StudyError(str(error)) from error
        except CohortiumError:
            raise
        except Exception as error:
            why = str(error).strip().partition("\n")[0].rstrip(".") or "no reason is given"
            trainer, network = type(self._setting.trainer), type(self._net)
            raise StudyError(
                f"a round that was rehearsed on made-up images ended in {where}, so nothing is "
                f"charged; with the network {network.__qualname__} and the trainer "
                f"{trainer.__qualname__} it raised {type(error).__name__}: {why}."
            ) from error


def _probe_examples(setting: RunConfig) -> Examples:
    """A few images of the declared shape, each of a patient of its own."""
    spec = setting.spec
    count = min(PROBE_IMAGES, spec.examples)
    rng = setting.seeds.generator("trial")
    return Examples(
        images=rng.integers(0, 256, (count, *spec.shape), dtype=np.uint8),
        labels=np.arange(count) % len(spec.classes),
        patients=None if spec.patients is None else np.arange(count) % spec.patients,
    )
