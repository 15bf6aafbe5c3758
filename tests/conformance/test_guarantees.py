"""Proves the checks that measure a privatizer's noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve

from cohortium.plugin import Randomness, mean_gradient, parameters
from cohortium.testing import ConformanceError, guarantees
from tests.conformance.toy_privatizer import (
    BATCH,
    CLIP,
    GOOD,
    MULTIPLIER,
    REPLACED,
    SHARED,
    SITE,
    ToyPlan,
    ToySite,
    gradient_of,
    site,
)


class NeverClips(ToySite):
    def set_private_gradient(self, net: Any, losses: Any, batch: Any) -> None:
        mean_gradient(net, losses, batch)
        for parameter in parameters.trainable(net):
            noise = self.drawn(parameter.numel()) / BATCH
            gradient_of(parameter).add_(noise.view_as(parameter).float())

    def clipped(self, values: Any) -> Any:
        return values


class LittleNoise(ToySite):
    @property
    def deviation(self) -> float:
        return MULTIPLIER * CLIP / 2


class NoNoise(ToySite):
    @property
    def deviation(self) -> float:
        return 0.0


class NoiseOnSomeValues(ToySite):
    def drawn(self, size: int) -> Any:
        noise = super().drawn(size)
        noise[: size // 2] = 0
        return noise


class OneNoiseForAll(ToySite):
    def drawn(self, size: int) -> Any:
        return super().drawn(256)[:size] if size > 256 else self.kept[:size]

    def __init__(self, plan: ToyPlan, secret: Randomness) -> None:
        super().__init__(plan, secret)
        self.kept = torch.from_numpy(self.deviation * self.noise.normal(256))


class SilentWhenEmpty(ToySite):
    def set_private_gradient(self, net: Any, losses: Any, batch: Any) -> None:
        super().set_private_gradient(net, losses, batch)
        if not len(batch):
            net.zero_grad(set_to_none=False)


class PassesNaN(ToySite):
    """Clips by hand, and forgets that a norm may be NaN."""

    def set_private_gradient(self, net: Any, losses: Any, batch: Any) -> None:
        if np.isnan(float(losses(batch).sum().detach())):
            super().set_private_gradient(net, losses, batch[:0])
        else:
            super().set_private_gradient(net, losses, batch)


BAD: list[tuple[Any, Any, str]] = [
    (guarantees.check_influence_is_bounded, site(NeverClips), "clip each unit"),
    (guarantees.check_influence_is_bounded, site(NeverClips, SITE), "one site with a huge"),
    (guarantees.check_influence_is_bounded, site(LittleNoise), "scale the noise to the clip"),
    (guarantees.check_influence_is_bounded, site(LittleNoise, SITE), "scale the noise to the"),
    # Noise for a unit that vanishes is half of what a replaced one needs.
    (guarantees.check_influence_is_bounded, REPLACED, "scale the noise to the clip"),
    (guarantees.check_noise_is_everywhere, site(NoNoise, SITE), "from 0 to 0"),
    (guarantees.check_noise_is_everywhere, site(NoiseOnSomeValues), "every value needs the same"),
    (guarantees.check_noise_is_fresh, site(OneNoiseForAll), "draw it anew for every step"),
    (guarantees.check_noise_is_fresh, site(SilentWhenEmpty), "reveals that it was empty"),
    (guarantees.check_non_finite_examples_count_as_zero, site(PassesNaN), "as zero"),
]

SHARED_NOISE: list[tuple[Any, Any, str]] = [
    (guarantees.check_influence_is_bounded, site(LittleNoise, SHARED), "scale the noise to the"),
    # Shares that add up to the full noise only if more sites are honest than are counted on.
    (
        guarantees.check_influence_is_bounded,
        evolve(SHARED, kind=lambda p, s: ToySite(evolve(p, terms=evolve(p.terms, honest=6)), s)),
        "scale the noise to the clip",
    ),
]
"""More bad privatizers, whose noise takes many seconds to measure."""

CHECKS = guarantees.CHECKS


@pytest.mark.parametrize(
    ("check", "bad", "words"),
    [*BAD, *(pytest.param(*case, marks=pytest.mark.slow) for case in SHARED_NOISE)],
)
def test_a_bad_privatizer_fails(check: Any, bad: Any, words: str) -> None:
    with pytest.raises(ConformanceError, match=words):
        check(bad)


def passing() -> list[object]:
    """Every check with every good privatizer; those that draw the most noise are slow."""
    return [
        pytest.param(
            check,
            good,
            id=f"{check.__name__}-{name}",
            marks=[pytest.mark.slow]
            if check in CHECKS[:2] and name in ("shared", "example")
            else [],
        )
        for check in CHECKS
        for name, good in GOOD.items()
    ]


@pytest.mark.parametrize(("check", "good"), passing())
def test_valid_plugin_passes_check(check: Any, good: Any) -> None:
    assert "not needed" in (check(good) or "not needed")


def test_every_check_has_bad_implementation() -> None:
    assert {check for check, _, _ in BAD} == set(CHECKS)
