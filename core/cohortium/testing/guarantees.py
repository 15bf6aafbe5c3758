"""Measurement of a privatizer's noise against its guarantee.

    influence ≤ standard deviation of the noise / noise multiplier

Equal secrets make equal noise.  So two neighbouring inputs, released under one secret, differ by
exactly the influence of the unit in which they differ.  One input, released under many secrets,
scatters by exactly the noise.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cohortium.errors import RefusalError
from cohortium.testing.contract import Check, ConformanceError, ensure
from cohortium.testing.plans import EXAMPLES, PARAMETERS, PrivacyProbe, ProbeNetwork, privacy_probes

if TYPE_CHECKING:
    from cohortium.privacy.guarantee import Guarantee
    from cohortium.roles.protocols import Privatizer
    from cohortium.roles.values import ExampleIndices
    from cohortium.testing.plans import Reals

DRAWS = 24
"""Secrets for each measurement."""

SLACK = 1.1
"""Largest factor by which a measured ratio may exceed the declared one."""

HUGE = 1e6
"""Factor of the probing example's loss, or of the probing site's update."""

NOTHING = "not needed: nothing is guaranteed"


class Output(Protocol):
    """An adversary's view of one attempt, given the probed unit's factor."""

    def __call__(self, scale: float, draw: int) -> Reals:
        """Return the output under secret number `draw`.

        A factor `scale` of 0 leaves the unit out.
        """
        ...


def check_influence_is_bounded(privatizer: Privatizer) -> str | None:
    """One unit moves the visible output at most as the noise allows."""
    private = _guaranteed(privatizer)
    for trial, guarantee in private:
        output = _output(trial, guarantee)
        away = -HUGE if guarantee.adjacency == "replace-one" else 0.0
        apart = np.stack([output(HUGE, n) - output(away, n) for n in range(DRAWS)])
        # Rounding leaves some noise that would count as influence, so its share is subtracted.
        rounding = float(apart.var(axis=0).sum()) / DRAWS
        influence = math.sqrt(max(0.0, float(np.square(apart.mean(axis=0)).sum()) - rounding))
        noise = _deviation(output).mean()
        ensure(
            influence * guarantee.noise_multiplier <= SLACK * noise,
            f"one {guarantee.unit} with a huge loss or update moves the release by "
            f"{influence:.3g}, and noise of deviation {noise:.3g} at the declared multiplier "
            f"{guarantee.noise_multiplier:.3g} covers {noise / guarantee.noise_multiplier:.3g}; "
            "clip each unit, and scale the noise to the clip.",
        )
    return None if private else NOTHING


def check_noise_is_everywhere(privatizer: Privatizer) -> str | None:
    """Every visible value carries noise."""
    private = _guaranteed(privatizer)
    for trial, guarantee in private:
        each = _deviation(_output(trial, guarantee))
        ensure(
            each.min() > 0.2 * each.mean() > 0,
            f"the noise on single values has a deviation from {each.min():.3g} to "
            f"{each.max():.3g} over {DRAWS} secrets; every value needs the same, drawn anew from "
            "the secret.",
        )
    return None if private else NOTHING


def check_noise_is_fresh(privatizer: Privatizer) -> str | None:
    """Each step has its own noise where gradients are noised.

    An empty batch has noise, too.
    """
    private = [(t, g) for t, g in _guaranteed(privatizer) if t.noises_gradients]
    for trial, _ in private:
        site = trial.site(0, 0, 0)
        one, other = (ProbeNetwork().gradient(site, _all()[:0]).double().numpy() for _ in range(2))
        ensure(
            np.count_nonzero(one) and np.count_nonzero(other),
            "an empty batch gave a gradient without noise, which reveals that it was empty; add "
            "the noise to every batch.",
        )
        likeness = float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
        ensure(
            abs(likeness) < 6 / math.sqrt(PARAMETERS),
            f"the noise of two steps is alike (correlation {likeness:.2f}), so that their "
            "difference has none; draw it anew for every step.",
        )
    return None if private else "not needed: gradients are not noised one by one"


def check_non_finite_examples_count_as_zero(privatizer: Privatizer) -> str | None:
    """Under example-level privacy, an example with an undefined gradient is left out."""
    private = [(t, g) for t, g in _guaranteed(privatizer) if g.unit != "site"]
    for trial, _ in private:
        broken = ProbeNetwork().with_scale(0, math.nan).gradient(trial.site(0, 0, 0), _all())
        without = ProbeNetwork().gradient(trial.site(0, 0, 0), _all()[1:])
        gap = float((broken - without).abs().max())
        ensure(
            gap <= 1e-4 * (1 + float(without.abs().max())),
            "an example with a NaN loss spoiled the gradient of its batch, which reveals that it "
            "is there; count its gradient as zero, as cohortium.plugin.clipped_sum does.",
        )
    return None if private else "not needed: examples are not protected one by one"


CHECKS: tuple[Check, ...] = (
    check_influence_is_bounded,
    check_noise_is_everywhere,
    check_noise_is_fresh,
    check_non_finite_examples_count_as_zero,
)
"""Every check of a privatizer's guarantee."""


def _guaranteed(privatizer: Privatizer) -> list[tuple[PrivacyProbe, Guarantee]]:
    found = [(trial, trial.plan.guarantee) for trial in privacy_probes(privatizer)]
    return [(trial, guarantee) for trial, guarantee in found if guarantee is not None]


def _output(trial: PrivacyProbe, guarantee: Guarantee) -> Output:
    """Return the view of the adversary that `guarantee` names.

    It is a sum over the honest sites, or one site alone, with every element of the releases.
    """
    import torch

    sites = guarantee.honest if guarantee.against == "coordinator" else 1
    direction = torch.linspace(-1, 1, PARAMETERS)

    def gradient(scale: float, draw: int) -> Reals:
        batch = _all() if scale else _all()[1:]
        private = trial.site(draw, 0)
        return ProbeNetwork().with_scale(0, scale).gradient(private, batch).double().numpy()

    def released_gradients(scale: float, draw: int) -> Reals:
        words = []
        for site in range(sites):
            private = trial.site(draw, site)
            probed = site == 0 and scale != 0
            batch = _all() if probed or site else _all()[1:]
            scene = ProbeNetwork().with_scale(0, scale) if probed else ProbeNetwork()
            words.append(private.release(scene.gradient(private, batch), float(EXAMPLES)).words)
        return trial.seen(words)

    def released_update(scale: float, draw: int) -> Reals:
        others = [direction * 0] * (sites - 1)
        try:
            return trial.seen(trial.releases([direction * scale, *others], draw))
        except RefusalError as refusal:
            raise ConformanceError(
                f"one {guarantee.unit} with a huge update was refused ({refusal}), which reveals "
                "it; clip each unit, and scale the noise to the clip."
            ) from refusal

    if guarantee.unit == "site":
        return released_update
    return gradient if trial.noises_gradients else released_gradients


def _deviation(output: Output) -> Reals:
    """Return the standard deviation of each visible value, over secrets."""
    deviation: Reals = np.stack([output(0.0, n) for n in range(DRAWS)]).std(axis=0, ddof=1)
    return deviation


def _all() -> ExampleIndices:
    return np.arange(EXAMPLES, dtype=np.int64)
