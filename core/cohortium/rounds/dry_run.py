"""A complete round on made-up images, which costs no privacy.

It precedes the first round. A wrong type of numbers, a shape or an optimizer's option fails here.
Without the dry run, it would fail after every site had paid for an attempt.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from cohortium import parameters
from cohortium.catalog.discovery import discover
from cohortium.catalog.part_results import (
    describe_plugin_fault,
    is_foreign_fault,
    require_result,
)
from cohortium.crypto.randomness import Seeds
from cohortium.data.examples import Examples
from cohortium.data.intensity import to_unit_range
from cohortium.errors import CohortiumError, PluginError, RunError, StudyError
from cohortium.learning.evaluation import predict
from cohortium.rounds.coordinator import Coordinator
from cohortium.rounds.local_round import reading_own
from cohortium.rounds.network_size import PROBE_IMAGES
from cohortium.rounds.run_config import Sizes
from cohortium.rounds.shared_model import SharedModel
from cohortium.rounds.site import Site
from cohortium.rounds.stand_ins import (
    PrebuiltModel,
    SingleSiteAggregator,
    StateSizeRecorder,
    ZeroGradientPrivatizer,
)
from cohortium.rounds.wrapped_plan import WrappedPlan
from cohortium.storage import tensor_tree
from cohortium.third_party import plugin_location

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from cohortium.rounds.run_config import RunConfig


def require_transmittable(net: nn.Module) -> None:
    """Refuse a network whose trainable parameters a round would round or truncate.

    Weights and updates travel as `float32`. A network in `float64` can hold them exactly.

    Raises:
        StudyError: A parameter has another type of numbers. The message names the network's class.
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


def dry_run(run_config: RunConfig, net: nn.Module) -> Sizes:
    """Run the first and the last round with one made-up site.

    The site, the coordinator, the trainer, the privatizer, the server optimizer, the evaluation and
    the checkpoint are the run's own. The aggregation is of one site.

    Args:
        run_config: The run configuration. It is not changed.
        net: The run's initial network. The dry run uses it up, so the caller must build another one
            for the run.

    Returns:
        Sizes of the state that is written after a round.

    Guarantees:
        Nothing is charged, stored or sent.
        The seeds are another study's, so the run draws none of these values, and torch's own
        generator is left as it was.
        The dry run refuses no study for the values that result, because values from made-up images
        prove nothing.

    Raises:
        StudyError: The round failed. The message names the step that failed.
    """
    import torch

    rounds = run_config.federation_spec.rounds
    with torch.random.fork_rng(devices=[]):
        stage = _DryRun(run_config, net)
        return stage.play([0] if rounds == 1 else [0, rounds - 1])


class _DryRun:
    """Both parties of a dry run, which take turns with one network."""

    def __init__(self, run_config: RunConfig, net: nn.Module) -> None:
        self._run_config = run_config
        self._net = net.to(run_config.device)
        zero_gradients = partial(
            ZeroGradientPrivatizer, max_examples=run_config.workload.batch_size or PROBE_IMAGES
        )
        self._tried = attrs.evolve(
            run_config,
            federation_spec=attrs.evolve(run_config.federation_spec, min_contributors=1),
            model=PrebuiltModel(run_config.model, self._net),
            workload=attrs.evolve(run_config.workload, steps=1, epochs=None),
            plan=WrappedPlan(run_config.plan, zero_gradients),
            aggregator=SingleSiteAggregator(
                run_config.aggregator.confidentiality(run_config.federation_spec)
            ),
            seeds=Seeds(run_config.seeds.integer("rehearsal")),
            directory=None,
        )
        self._examples = _probe_examples(run_config)
        self._scale = StateSizeRecorder()

    def play(self, rounds: Sequence[int]) -> Sizes:
        """Run `rounds`, each from the initial weights."""
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
        with self._saying("the personal network"):
            self._personalize(number)
        with self._saying("the checkpoint"):
            tensor_tree.dumps(coordinator.state())
            coordinator.restore(coordinator.state())

    def _evaluate(self) -> None:
        spec = self._run_config.spec
        spec.task.score(self._predictions(self._net), self._examples.labels)

    def _predictions(self, net: nn.Module) -> NDArray[Any]:
        spec = self._run_config.spec
        images = to_unit_range(self._examples.images, spec)
        inputs = self._run_config.model.preprocess(images).to(self._run_config.device)
        return predict(self._run_config.model, net, inputs, spec)

    def _personalize(self, number: int) -> None:
        """Try the network that the site itself would use after the round `number`."""
        import torch

        if self._run_config.statistic is not None:
            return
        trainer, before = self._run_config.trainer, parameters.flatten(self._net)
        own: object = trainer.personalize(
            self._net, reading_own(self._scale.kept.state_for(number + 1))
        )
        is_network = isinstance(own, torch.nn.Module)
        require_result(trainer, "personalize", own, is_network, "a torch.nn.Module")
        assert isinstance(own, torch.nn.Module)
        if not torch.equal(before, parameters.flatten(self._net)):
            raise StudyError(
                f"the trainer {type(trainer).__qualname__} changes the global network in its "
                "personalize; change a copy of it."
            )
        if own is self._net:
            return
        try:
            self._predictions(own)
        except CohortiumError as error:
            raise StudyError(
                f"the personal network of the trainer {type(trainer).__qualname__} cannot be used: "
                f"{error}"
            ) from error

    @contextlib.contextmanager
    def _saying(self, where: str) -> Iterator[None]:
        """Name the step that failed, the network and the trainer."""
        try:
            yield
        except RunError as error:
            raise StudyError(str(error)) from error
        except CohortiumError:
            raise
        except Exception as error:
            began = (
                f"a round that was rehearsed on made-up images ended in {where}, so nothing is "
                "charged"
            )
            if is_foreign_fault(error):
                raise PluginError(f"{began}; {describe_plugin_fault(error)}.") from error
            why = str(error).strip().partition("\n")[0].rstrip(".") or "no reason is given"
            packages = {each.target.partition(".")[0] for each in discover().records}
            place = plugin_location(error, packages)
            trainer, network = type(self._run_config.trainer), type(self._net)
            raise StudyError(
                f"{began}; with the network {network.__qualname__} and the trainer "
                f"{trainer.__qualname__} it raised {type(error).__name__}: {why}{place}."
            ) from error


def _probe_examples(run_config: RunConfig) -> Examples:
    """Return a few images of the declared shape, each of another patient."""
    spec = run_config.spec
    count = min(PROBE_IMAGES, spec.examples)
    rng = run_config.seeds.generator("trial")
    return Examples(
        images=spec.sample_images(count, rng),
        labels=spec.task.sample_labels(spec.size, count, rng),
        patients=None if spec.patients is None else np.arange(count) % spec.patients,
    )
