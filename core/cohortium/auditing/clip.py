"""Measurement of one example's effect on the study's own clipped gradient.

It uses the study's network, trainer and clip. The mechanism's audit uses a network of two
parameters, so a clip that works there may still fail for the study's network. Here the network is
the study's, as built and after a change of its weights, in batches of several sizes. All random
draws and all noise are equal in the two worlds. So their difference is the example's contribution
alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import Factory, define, field

from cohortium import parameters
from cohortium.auditing.findings import Finding
from cohortium.auditing.probe import HUGE
from cohortium.crypto.randomness import Randomness
from cohortium.data.intensity import to_unit_range
from cohortium.roles.values import LocalTask
from cohortium.rounds.server_state import initial_server_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from torch import Tensor, nn

    from cohortium.ring.ring import RingVector
    from cohortium.roles.sessions import SitePrivatizer
    from cohortium.roles.values import ExampleIndices
    from cohortium.runs.prepare import PreparedStudy

SIZES = (64, 49, 16, 9, 8, 2)
"""Batch sizes. Some divide a network's inner axes, which code that depends on sizes may confuse."""

STEPS = 2
"""Steps in each size, of a trainer with several steps."""

MOVED = 0.1
"""Standard deviation of the noise that changes the weights. It opens gates that begin at zero."""

TOLERANCE = 1e-2
"""Allowed excess over one clip, because of rounding in single precision."""


def audit_clip(prepared: PreparedStudy) -> Finding:
    """Remove or replace single examples in batches, with the study's own parts."""
    import torch

    run_config = prepared.run_config
    guarantee = run_config.plan.guarantee
    assert guarantee is not None, "an audit begins with a claim"
    if guarantee.unit == "site":
        return Finding(
            check="clip",
            procedure="nothing: it is a site's whole update that is clipped, see the mechanism",
            observation="nothing.",
            detection_limit="none.",
            is_refuted=False,
        )
    train = prepared.splits.train
    rows = np.sort(np.concatenate(list(prepared.partition)))[: max(SIZES)]
    examples = train.select(rows)
    images = run_config.model.preprocess(to_unit_range(examples.images, run_config.spec))
    measure = ClipProbe(privatizer=_private(prepared, np.arange(len(rows))), images=images)
    for moved in (0.0, MOVED):
        net = run_config.network()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in parameters.trainable(net):
                parameter.add_(moved * torch.randn(parameter.shape, generator=generator))
        for size in sorted({min(size, len(rows)) for size in SIZES}):
            measure.sizes = [size] * min(run_config.workload.steps, STEPS)
            measure.generator.manual_seed(0)
            task = LocalTask(
                net=net.train(),
                images=images,
                labels=torch.from_numpy(examples.labels),
                spec=run_config.spec,
                round=0,
                rounds=run_config.federation_spec.rounds,
                workload=run_config.workload,
                generator=measure.generator,
                state={},
                server_state=initial_server_state(run_config.trainer, parameters.length(net)),
            )
            with torch.random.fork_rng(devices=[]):
                run_config.trainer.train(task, measure)
    return _finding(measure, prepared)


def _finding(measure: ClipProbe, prepared: PreparedStudy) -> Finding:
    left, replaced = measure.left_out, measure.replaced
    is_refuted = left > 1 + TOLERANCE or replaced > 2 * (1 + TOLERANCE)
    net = type(prepared.run_config.network()).__name__
    out = f"left out, by at most {left:.3g}" if measure.is_steady else "left out, not tried"
    return Finding(
        check="clip",
        procedure=(
            f"{measure.pairs} pairs of batches of {net} that differ in one example, with equal "
            "draws and equal noise, at the first weights and at others"
        ),
        observation=(
            f"in units of what the clip lets through, an example moved the sum: {out}; replaced, "
            f"by at most {replaced:.3g}."
        ),
        detection_limit=(
            "1 and 2 are promised; it finds a network whose examples are not clipped each for "
            "itself at these weights and images, and nothing about the noise."
        ),
        is_refuted=is_refuted,
    )


def _private(prepared: PreparedStudy, patients: ExampleIndices) -> Callable[[], SitePrivatizer]:
    secret = Randomness.insecure_from_seed(0)
    plan = prepared.run_config.plan
    return lambda: plan.at_round(0, plan.initial_state).for_site(secret, patients)


@define(eq=False)
class ClipProbe:
    """Substitute for a site's privatizer that measures instead of releasing.

    Attributes:
        privatizer: Builds the privatizer's own site part, with equal secrets each time.
        images: The site's images, prepared. One is replaced temporarily for a pair.
        sizes: Of the batches for a trainer.
        left_out: The largest change of a sum by removal of an example, in clips.
        replaced: The largest change of a sum by replacement of an example, in clips.
        pairs: Number of comparisons.
        is_steady: Whether the network draws no random numbers. Only then can batches of different
            sizes be compared.
    """

    privatizer: Callable[[], SitePrivatizer]
    images: Tensor = field(repr=False)
    sizes: list[int] = Factory(list)
    left_out: float = 0.0
    replaced: float = 0.0
    pairs: int = 0
    is_steady: bool = True
    generator: torch.Generator = field(init=False)
    _clip: float = field(init=False)

    @generator.default
    def _make_generator(self) -> torch.Generator:
        import torch

        return torch.Generator()

    @_clip.default
    def _measure_clip(self) -> float:
        """Measure the contribution of an example with an enormous gradient.

        It is in the gradient's own units.
        """
        import torch

        net = torch.nn.Linear(2, 1, bias=False)
        rows = torch.tensor([[HUGE, 0.0], [0.0, 1.0]])

        def losses(batch: ExampleIndices) -> Tensor:
            out: Tensor = net(rows[torch.from_numpy(batch)])
            return out[:, 0]

        found = [self._gradient(net, losses, np.arange(first, 2)) for first in (0, 1)]
        return max(1e-30, float((found[0] - found[1]).norm()))

    def batches(self, examples: int) -> Iterator[ExampleIndices]:
        """Yield the first examples, once for each of the sizes."""
        yield from (np.arange(min(size, examples)) for size in self.sizes)

    def set_private_gradient(
        self, net: nn.Module, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices
    ) -> None:
        """Compare neighbouring batches, then set the gradient of the batch itself."""
        for place in sorted({0, len(batch) // 2, len(batch) - 1}):
            self._replace(net, losses, batch, batch[place])
            if self.is_steady:
                self._leave_out(net, losses, batch, place)
        self._gradient(net, losses, batch)

    def release(self, vector: Tensor, weight: float) -> RingVector:
        """Refuse, because nothing leaves."""
        raise NotImplementedError

    def _replace(
        self,
        net: nn.Module,
        losses: Callable[[ExampleIndices], Tensor],
        batch: ExampleIndices,
        row: int,
    ) -> None:
        own = self.images[row].clone()
        found = []
        for other in (own, 1e3 * own.flip(-1) - 1):
            self.images[row] = other
            found.append(self._gradient(net, losses, batch))
        self.images[row] = own
        self.replaced = max(self.replaced, self._distance(*found))

    def _leave_out(
        self,
        net: nn.Module,
        losses: Callable[[ExampleIndices], Tensor],
        batch: ExampleIndices,
        place: int,
    ) -> None:
        whole = self._gradient(net, losses, batch)
        again = self._gradient(net, losses, batch, seed=1)
        if float((whole - again).norm()) > TOLERANCE * self._clip:
            self.is_steady = False
            return
        without = self._gradient(net, losses, np.delete(batch, place))
        self.left_out = max(self.left_out, self._distance(whole, without))

    def _distance(self, one: Tensor, other: Tensor) -> float:
        self.pairs += 1
        return float((one - other).norm()) / self._clip

    def _gradient(
        self,
        net: nn.Module,
        losses: Callable[[ExampleIndices], Tensor],
        batch: ExampleIndices,
        *,
        seed: int = 0,
    ) -> Tensor:
        """Return the privatizer's gradient, shape (P,), `float64`.

        Equal seeds give equal draws.
        """
        import torch

        torch.manual_seed(seed)
        self.generator.manual_seed(seed)
        self.privatizer().set_private_gradient(net, losses, batch)
        parts = [p.grad for p in parameters.trainable(net) if p.grad is not None]
        return torch.cat([part.flatten().double() for part in parts])
