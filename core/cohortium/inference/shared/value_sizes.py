"""Sizes of the values inside a network, which the ring of the shares must hold.

In a ring of k bits, numbers have f fraction bits. A product has 2 f of them before it is truncated,
and needs two bits more: its sign, and one for the truncation. So products and means must be below
2^(k - 2 f - 2). The inverse square root of SPU takes a variance below 2^(f - 1) alone. A greater
value gives wrong outputs, and no party notices it. `test_ring_holds_values_up_to_its_limits`
measures both limits.

The owner knows the weights, so the owner compares its network with these limits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen

from cohortium.errors import NetworkError
from cohortium.inference.shared.party import IMAGE, PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from cohortium.inference.shared.network import SharedNetwork

RING_BITS: Final[Mapping[str, int]] = {"FM64": 64, "FM128": 128}

SPARE: Final = 2.0
"""Factor that a bound leaves for the rounding to fraction bits."""


@frozen
class Limits:
    """Sizes that values must be below.

    Attributes:
        product: For a product, a sum of products, or a mean.
        variance: For the variance of a normalisation.
    """

    product: float
    variance: float

    @classmethod
    def of(cls, parties: int) -> Limits:
        """Return the limits of two or three parties."""
        _, ring, bits = PROTOCOLS[parties]
        return cls(2.0 ** (RING_BITS[ring] - 2 * bits - 2), 2.0 ** (bits - 1))


def require_in_ring(
    network: SharedNetwork, made_up: Tensor, all_inputs: tuple[Tensor, Tensor] | None, parties: int
) -> str:
    """Refuse a network whose values the ring does not hold.

    Args:
        network: The network, with its real weights.
        made_up: Inputs of made-up images, shape (N, C, H, W).
        all_inputs: The least and the greatest input at each place of any image, both of shape
            (1, C, H, W). None if they are not known.
        parties: Number of parties.

    Returns:
        "" if no image has a value outside the ring, and otherwise a warning.

    Guarantees:
        The result "" is a bound by interval arithmetic (Moore 1966) on all images, with the factor
        `SPARE` for rounding. Made-up images prove nothing about other images, so the warning says
        how near to the limits they come.

    Raises:
        NetworkError: A made-up image has a value outside the ring.
    """
    import torch

    limits = Limits.of(parties)
    seen = max(largest_part(network, image, image, limits) for image in torch.split(made_up, 1))
    if not seen < 1:
        remedy = "add a helper to the parties' file, or " if parties == min(PROTOCOLS) else ""
        raise NetworkError(
            f"a made-up image gives a value inside the network that is {seen:,.3g} times the "
            f"largest one that {parties} parties can compute with, so the outputs would be wrong; "
            f"{remedy}serve a network with smaller values."
        )
    if all_inputs is not None and largest_part(network, *all_inputs, limits) * SPARE <= 1:
        return ""
    return (
        f"{len(made_up)} made-up images give values inside the network up to {100 * seen:.2g} % "
        f"of the largest one that {parties} parties can compute with; an image with a greater "
        "value would get wrong outputs, and nobody would notice it."
    )


def largest_part(network: SharedNetwork, low: Tensor, high: Tensor, limits: Limits) -> float:
    """Return a bound on the ratio of each value inside a network to its limit.

    Args:
        network: The network.
        low: Least inputs, shape (N, C, H, W).
        high: Greatest inputs. If it is the same tensor, the result is the largest ratio itself.
        limits: The limits.
    """
    import torch

    weights = {name: tensor.double() for name, tensor in network.weights.items()}
    start = low.double()
    values = {IMAGE: _Interval(start, start if high is low else high.double())}
    parts: list[float] = []
    with torch.no_grad():
        for step in network.graph["steps"]:
            names = step["inputs"]
            intervals = [values[name] for name in names if name in values]
            fixed = [weights[name] for name in names if name in weights]
            found, sizes = _BOUNDS[step["operation"]](*intervals, *fixed, **step["parameters"])
            values[step["output"]] = found
            parts += [sizes.product / limits.product, sizes.variance / limits.variance]
    return math.nan if any(map(math.isnan, parts)) else max(parts)


@frozen
class _Sizes:
    """Sizes of the greatest product and of the greatest variance in a step."""

    product: float = 0.0
    variance: float = 0.0


@frozen(eq=False)
class _Interval:
    """The least and the greatest value at each place. One tensor is both if they are equal."""

    low: Tensor = field(repr=False)
    high: Tensor = field(repr=False)

    @property
    def size(self) -> float:
        """The largest absolute value."""
        import torch

        return float(torch.maximum(self.low.abs(), self.high.abs()).max())

    def mapped(self, function: Callable[[Tensor], Tensor]) -> _Interval:
        """Return the values of a function that never falls."""
        low = function(self.low)
        return _Interval(low, low if self.high is self.low else function(self.high))


_Bound = tuple[_Interval, _Sizes]
"""The values of a step, and the sizes inside it."""


def _sum_of_products(
    x: _Interval, weight: Tensor, shift: Tensor | None, apply: Callable[[Tensor, Tensor], Tensor]
) -> _Bound:
    """Return the values of a linear operation: those of the centres, and the greatest distances."""
    if x.high is x.low:
        found = x.mapped(lambda each: apply(each, weight))
    else:
        centre = apply((x.low + x.high) / 2, weight)
        reach = apply((x.high - x.low) / 2, weight.abs())
        found = _Interval(centre - reach, centre + reach)
    sizes = _Sizes(product=found.size)
    return (found if shift is None else found.mapped(lambda each: each + shift)), sizes


def _conv2d(
    x: _Interval,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: list[int],
    padding: list[int],
) -> _Bound:
    from torch.nn import functional

    def apply(images: Tensor, kernel: Tensor) -> Tensor:
        return functional.conv2d(images, kernel, stride=tuple(stride), padding=tuple(padding))

    return _sum_of_products(x, weight, None if bias is None else bias[:, None, None], apply)


def _linear(x: _Interval, weight: Tensor, bias: Tensor | None = None) -> _Bound:
    from torch.nn import functional

    return _sum_of_products(x, weight, bias, functional.linear)


def _group_norm(
    x: _Interval, *affine: Tensor, groups: int, epsilon: float, weighted: list[bool]
) -> _Bound:
    import torch

    shape = x.low.shape
    parts = x.mapped(lambda each: each.reshape(len(each), groups, -1))
    size = parts.low.shape[2]
    # The value itself is a part of the mean, so its own two ends never meet.
    apart = _Interval(
        parts.low * (1 - 1 / size) - (parts.high.sum(2, keepdim=True) - parts.high) / size,
        parts.high * (1 - 1 / size) - (parts.low.sum(2, keepdim=True) - parts.low) / size,
    )
    most = torch.maximum(apart.low.abs(), apart.high.abs())
    least = torch.maximum(apart.low, -apart.high).clamp(min=0)
    variance = most.square().mean(2, keepdim=True) + epsilon
    smallest = variance.rsqrt()
    greatest = (least.square().mean(2, keepdim=True) + epsilon).rsqrt()
    # No value of M is further from their mean than sqrt(M - 1) standard deviations.
    reach = math.sqrt(size - 1)
    found = _Interval(
        torch.minimum(apart.low * smallest, apart.low * greatest).clamp(-reach, reach),
        torch.maximum(apart.high * smallest, apart.high * greatest).clamp(-reach, reach),
    ).mapped(lambda each: each.reshape(shape))
    given = iter(affine)
    ones = torch.ones(shape[1], dtype=torch.float64)
    weight = next(given) if weighted[0] else ones
    shift = next(given) if weighted[1] else 0 * ones
    scaled, sizes = _scale(found, weight, shift)
    products = (sizes.product, found.size, parts.size, float(most.square().max()))
    return scaled, _Sizes(product=max(products), variance=float(variance.max()))


def _scale(x: _Interval, factor: Tensor, shift: Tensor) -> _Bound:
    import torch

    ends = [each * factor[:, None, None] for each in (x.low, x.high)]
    found = _Interval(torch.minimum(*ends), torch.maximum(*ends))
    return found.mapped(lambda each: each + shift[:, None, None]), _Sizes(product=found.size)


def _relu(x: _Interval) -> _Bound:
    return x.mapped(lambda each: each.clamp(min=0)), _Sizes()


def _add(x: _Interval, y: _Interval) -> _Bound:
    low = x.low + y.low
    is_point = x.high is x.low and y.high is y.low
    return _Interval(low, low if is_point else x.high + y.high), _Sizes()


def _max_pool2d(
    x: _Interval, *, kernel: list[int], stride: list[int], padding: list[int], size: list[int]
) -> _Bound:
    from torch.nn import functional

    def apply(images: Tensor) -> Tensor:
        found = functional.max_pool2d(
            images, tuple(kernel), tuple(stride), tuple(padding), ceil_mode=True
        )
        return found[:, :, : size[0], : size[1]]

    return x.mapped(apply), _Sizes()


def _mean(x: _Interval, *, axes: list[int], keep: bool) -> _Bound:
    return x.mapped(lambda each: each.mean(axes, keepdim=keep)), _Sizes(product=x.size)


def _amax(x: _Interval, *, axes: list[int], keep: bool) -> _Bound:
    return x.mapped(lambda each: each.amax(axes, keepdim=keep)), _Sizes()


def _flatten(x: _Interval) -> _Bound:
    return x.mapped(lambda each: each.flatten(1)), _Sizes()


_BOUNDS: Final[Mapping[str, Callable[..., Any]]] = {
    "conv2d": _conv2d,
    "group_norm": _group_norm,
    "scale": _scale,
    "relu": _relu,
    "add": _add,
    "max_pool2d": _max_pool2d,
    "mean": _mean,
    "amax": _amax,
    "flatten": _flatten,
    "linear": _linear,
}
