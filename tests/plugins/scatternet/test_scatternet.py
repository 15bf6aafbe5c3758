"""Scattering, against a slow derivation of its own that shares no line with the plugin."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cohortium.plugin import DataSpec, Multiclass, parameters
from cohortium_scatternet import ScatterNet
from cohortium_scatternet._scattering import filter_bank, scattering

Grid = NDArray[np.complex128]


def wrapped(i: int, side: int) -> list[int]:
    return [i + period * side for period in range(-4, 5)]


def morlet(height: int, width: int, octave: int, angle: int, angles: int) -> Grid:
    """Point by point in space, from the formula."""
    sigma, xi = 0.8 * 2**octave, 3 * math.pi / 4 / 2**octave
    c, s = math.cos(math.pi * angle / angles), math.sin(math.pi * angle / angles)
    wave, bump = np.zeros((height, width), complex), np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            for v in wrapped(i, height):
                for u in wrapped(j, width):
                    x, y = u * c + v * s, (v * c - u * s) * 4 / angles
                    size = math.exp(-(x * x + y * y) / (2 * sigma * sigma))
                    bump[i, j] += size
                    wave[i, j] += size * cmath.exp(1j * xi * x)
    kappa = wave.sum() / bump.sum()
    found: Grid = wave - kappa * bump
    return found


def gaussian(height: int, width: int, scales: int) -> Grid:
    sigma = 0.4 * 2**scales
    phi = np.zeros((height, width), complex)
    for i in range(height):
        for j in range(width):
            for v in wrapped(i, height):
                for u in wrapped(j, width):
                    phi[i, j] += math.exp(-(u * u + v * v) / (2 * sigma * sigma))
    found: Grid = phi / phi.sum()
    return found


def convolved(x: Grid, by: Grid) -> Grid:
    """In space: a weighted sum of shifted copies."""
    out = np.zeros_like(x)
    for i in range(len(by)):
        for j in range(len(by[0])):
            out += by[i, j] * np.roll(x, (i, j), (0, 1))
    return out


def slowly(image: NDArray[np.float64], scales: int, angles: int) -> list[Grid]:
    """All maps of one channel, whose sides are multiples of 2^J."""
    step = 2**scales
    x = np.pad(image, step, mode="reflect").astype(complex)
    height, width = x.shape
    phi = gaussian(height, width, scales)
    psi = {
        (j, a): morlet(height, width, j, a, angles) for j in range(scales) for a in range(angles)
    }
    power = np.zeros(x.shape)
    for p in psi.values():
        power += abs(np.fft.fft2(p)) ** 2 / 2 + abs(np.fft.fft2(p.conj())) ** 2 / 2
    room = 1 - abs(np.fft.fft2(phi)) ** 2
    tight = power > 1e-6 * np.max(power)
    factor = math.sqrt(np.min(room[tight] / power[tight]))

    def averaged(u: Grid) -> Grid:
        return convolved(u, phi)[step:-step:step, step:-step:step]

    first = {key: abs(convolved(x, factor * p)).astype(complex) for key, p in psi.items()}
    maps = [averaged(x), *(averaged(u) for u in first.values())]
    for (j, _), u in first.items():
        maps += [
            averaged(abs(convolved(u, factor * p)).astype(complex))
            for (k, _), p in psi.items()
            if k > j
        ]
    return maps


def test_scattering_matches_its_definition() -> None:
    image = np.random.default_rng(3).random((8, 12))
    wanted = np.stack(slowly(image, 2, 3)).real
    found = scattering(torch.from_numpy(image).float()[None, None], scales=2, angles=3)[0, 0]
    # 1 + 2·3 maps of orders zero and one, then 3·3 of order two: the same order in both.
    assert found.shape == wanted.shape == (16, 2, 3)
    assert float(np.abs(found.numpy() - wanted).max()) < 1e-5
    assert float(np.abs(wanted[7:]).max()) > 1e-3


@pytest.mark.parametrize("size", [(36, 36, 2, 8), (24, 40, 2, 8), (64, 64, 3, 6), (16, 16, 1, 4)])
def test_filter_bank_amplifies_no_frequency(size: tuple[int, int, int, int]) -> None:
    filters = filter_bank(*size)
    low = torch.outer(*(torch.fft.fft(side).real for side in filters.low))
    there = filters.bands.square().sum((0, 1))
    back = filters.bands.flip((2, 3)).roll((1, 1), (2, 3)).square().sum((0, 1))
    strength = low.square() + (there + back) / 2
    assert float(strength.max()) == pytest.approx(1, abs=1e-5)
    # And what is constant passes the low filter alone.
    assert float(low[0, 0]) == pytest.approx(1, abs=1e-6)
    assert float(filters.bands[:, :, 0, 0].abs().max()) < 1e-6


def cell(down: int = 0, across: int = 0) -> torch.Tensor:
    """A bright blot with an edge, far from the sides."""
    v, u = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    distance = torch.hypot(v - 22 - down, (u - 23 - across) * 1.4)
    return torch.sigmoid((7 - distance) * 2)[None, None]


def test_scattering_maps_shift_with_image() -> None:
    still = scattering(cell(), scales=2, angles=8)
    moved = scattering(cell(down=4, across=-8), scales=2, angles=8)
    gap = moved - still.roll((1, -2), (3, 4))
    assert float(gap.abs().max()) < 1e-4
    assert float((moved - still).abs().max()) > 0.1


def test_a_small_shift_changes_features_less_than_pixels() -> None:
    def change(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).norm() / a.norm())

    one, other = cell(), cell(across=1)
    ones, others = (scattering(x, scales=3, angles=6) for x in (one, other))
    assert change(ones, others) < change(one, other) / 2


@settings(max_examples=20, deadline=None)
@given(level=st.floats(0.0, 1.0), side=st.integers(8, 33))
def test_constant_image_has_only_mean_map(level: float, side: int) -> None:
    maps = scattering(torch.full((1, 1, side, side), level), scales=2, angles=4)[0, 0]
    assert maps.shape[1:] == (-(-side // 4),) * 2
    assert torch.allclose(maps[0], torch.full_like(maps[0], level), atol=1e-5)
    assert float(maps[1:].abs().max()) < 1e-5


@pytest.mark.parametrize(("channels", "side", "groups"), [(1, 28, 27), (3, 28, 0), (2, 30, 1)])
def test_features_have_unit_norm_per_image(channels: int, side: int, groups: int) -> None:
    model = ScatterNet(groups=groups)
    images = torch.rand(20, channels, side, side, generator=torch.Generator().manual_seed(1))
    rows = model.preprocess(images)
    assert torch.allclose(rows.norm(dim=1), torch.full((20,), 70.0), rtol=1e-4)
    assert torch.allclose(model.preprocess(images[18:19]), rows[18:19], atol=1e-3)
    assert model.preprocess(images[:0]).shape == (0, rows.shape[1])
    spec = DataSpec(channels=channels, size=(side, side), task=Multiclass(("a", "b")), examples=20)
    net = model.build(spec, 5)
    assert net(rows).shape == (20, 2)
    assert not parameters.flatten(net).any()


def test_invalid_groups_or_image_size_are_refused() -> None:
    with pytest.raises(ValueError, match="divide the 81 maps"):
        ScatterNet(groups=10)
    with pytest.raises(ValueError, match="at least 8 pixels a side, not 7x30"):
        ScatterNet().preprocess(torch.rand(1, 1, 7, 30))
