"""The scattering transform of images, by Fourier transforms.

The filters are as in Bruna and Mallat 2013, section 2 and 3.3: Morlet wavelets

    ψ(u) = (exp(i ξ ⟨u, e⟩) - κ) · exp(-(⟨u, e⟩² + (s ⟨u, e⊥⟩)²) / 2σ²),   ξ = (3π/4) / 2^j,
    σ = 0.8 · 2^j,   s = 4/L,   e at the angle π l/L,

with κ such that ψ has mean zero, and a Gaussian φ of deviation 0.8 · 2^(J-1) and sum one.  All ψ
have one further factor, the greatest under which no frequency is amplified:

    |φ̂(ω)|² + ½ Σ_ψ (|ψ̂(ω)|² + |ψ̂(-ω)|²) ≤ 1,

so that the transform of real images never increases distances between them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from attrs import field, frozen
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    Banks = Callable[[int, int], "FilterBank"]

IMAGES_AT_ONCE = 16
WRAPS = 3
"""Number of periods to each side that a filter is summed over.  Beyond, it is negligible."""


@frozen(eq=False)
class FilterBank:
    """Filters on a periodic grid.

    Attributes:
        low: φ along either side, each of shape (side,).  The grid's φ is their product.
        bands: ψ̂ by octave and angle, shape (J, L, H, W).  It is real.
    """

    low: tuple[Tensor, Tensor] = field(repr=False)
    bands: Tensor = field(repr=False)

    def averages(self, margin: int) -> tuple[Tensor, Tensor]:
        """Return the matrices that convolve by φ and subsample.

        They take every `margin`-th pixel within the margins.
        """
        found = []
        for low in self.low:
            taken = torch.arange(margin, len(low) - margin, margin)
            found.append(low[(taken[:, None] - torch.arange(len(low))) % len(low)])
        return found[0], found[1]


def coarse(side: int, scales: int) -> int:
    """Return the pixels of a map along a side of `side` pixels."""
    return -(-side // (1 << scales))


def scattering(images: Tensor, *, scales: int, angles: int, banks: Banks | None = None) -> Tensor:
    """Return maps (N, C, K, h, w) of images (N, C, H, W).

    The images are mirrored at their sides.

    Args:
        images: Real images, with no side shorter than 2^(scales + 1) pixels.
        scales: J.
        angles: L.
        banks: A function that returns the kept `filter_bank` of a grid's height and width.

    Raises:
        ValueError: The images are too small.
    """
    least = 2 ** (scales + 1)
    if min(images.shape[2:]) < least:
        raise ValueError(
            f"scattering of {scales} scales needs images of at least {least} pixels a side, not "
            f"{images.shape[2]}x{images.shape[3]}."
        )
    margin = 2**scales
    # Sides in whole steps, and mirrored by one step at each end.
    height, width = ((coarse(side, scales) + 2) * margin for side in images.shape[2:])
    filters = filter_bank(height, width, scales, angles) if banks is None else banks(height, width)
    if torch.compiler.is_compiling():
        # A traced program has no loop over an unknown number of images.  Its caller chooses that
        # number.
        return _scattering(images, filters, scales)
    if not len(images):
        maps = 1 + scales * angles + angles**2 * scales * (scales - 1) // 2
        places = (coarse(side, scales) for side in images.shape[2:])
        return images.new_empty(0, images.shape[1], maps, *places)
    parts = torch.split(images, IMAGES_AT_ONCE)
    return torch.cat([_scattering(part, filters, scales) for part in parts])


def _scattering(images: Tensor, filters: FilterBank, scales: int) -> Tensor:
    margin, (height, width) = 2**scales, images.shape[2:]
    steps = coarse(height, scales), coarse(width, scales)
    more = steps[0] * margin - height, steps[1] * margin - width  # to whole steps
    sides = (margin, margin + more[1], margin, margin + more[0])
    x = functional.pad(images, sides, mode="reflect")
    bands = filters.bands.to(x)
    down, across = (matrix.to(x) for matrix in filters.averages(margin))

    def averaged(maps: Tensor) -> Tensor:
        """Average by φ, at every `margin`-th pixel of the image alone."""
        return down @ maps @ across.T

    wave = torch.fft.fft2(x)
    out = [averaged(x).unsqueeze(2)]  # (N, C, 1, h, w)
    second = []
    for octave in range(scales):
        first = torch.fft.ifft2(wave.unsqueeze(2) * bands[octave]).abs()  # (N, C, L, H, W)
        out.append(averaged(first))
        waves = torch.fft.fft2(first)
        for later in range(octave + 1, scales):
            both = torch.fft.ifft2(waves.unsqueeze(3) * bands[later]).abs()  # (N, C, L, L, H, W)
            second.append(averaged(both).flatten(2, 3))
    return torch.cat([*out, *second], 2)


def filter_bank(height: int, width: int, scales: int, angles: int) -> FilterBank:
    """Return the filters for a grid of this size, in single precision."""
    low = _gaussian(height, scales), _gaussian(width, scales)
    passed = torch.outer(*(torch.fft.fft(side).real for side in low))
    waves = [
        [_morlet(height, width, octave, angle * math.pi / angles, 4 / angles)
         for angle in range(angles)] for octave in range(scales)
    ]  # fmt: skip
    bands = torch.stack([torch.stack([torch.fft.fft2(w).real for w in row]) for row in waves])
    mirrored = bands.flip((2, 3)).roll((1, 1), (2, 3))  # ψ̂(-ω)
    strength = (bands.square() + mirrored.square()).sum((0, 1)) / 2
    room = (1 - passed.square()).clamp(min=0)
    # Where all bands are negligible, round-off must not decide.
    matters = strength > 1e-6 * strength.max()
    factor = (room[matters] / strength[matters]).min().sqrt()
    return FilterBank((low[0].float(), low[1].float()), (bands * factor).float())


def _periodic(height: int, width: int, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the sum of `of` over periods of the grid, (H, W).

    `of` takes rows and columns.  The sum is in double precision.
    """
    total = torch.zeros(height, width, dtype=torch.complex128)
    for down in range(-WRAPS, WRAPS + 1):
        for across in range(-WRAPS, WRAPS + 1):
            v = torch.arange(height, dtype=torch.float64) + down * height
            u = torch.arange(width, dtype=torch.float64) + across * width
            total += of(v[:, None], u[None, :])
    return total


def _gaussian(side: int, scales: int) -> Tensor:
    """Return φ along a periodic line of `side` pixels, centred at 0."""
    deviation = 0.8 * 2 ** (scales - 1)
    places = torch.arange(-WRAPS * side, (WRAPS + 1) * side, dtype=torch.float64)
    bump = torch.exp(places.square() / (-2 * deviation**2)).view(-1, side).sum(0)
    return bump / bump.sum()


def _morlet(height: int, width: int, octave: int, angle: float, slant: float) -> Tensor:
    """Return ψ of mean zero on the periodic grid, (H, W), complex.

    Its transform is real.
    """
    deviation, frequency = 0.8 * 2**octave, 0.75 * math.pi / 2**octave

    def envelope(v: Tensor, u: Tensor) -> Tensor:
        along = u * math.cos(angle) + v * math.sin(angle)
        across = v * math.cos(angle) - u * math.sin(angle)
        return torch.exp((along**2 + (slant * across) ** 2) / (-2 * deviation**2))

    def carried(v: Tensor, u: Tensor) -> Tensor:
        along = u * math.cos(angle) + v * math.sin(angle)
        return envelope(v, u) * torch.exp(1j * frequency * along)

    wave, bump = _periodic(height, width, carried), _periodic(height, width, envelope)
    return wave - bump * (wave.sum() / bump.sum())
