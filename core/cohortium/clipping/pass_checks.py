"""Checks of a private pass on its own data, for what `mapped_forward` cannot see."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cohortium.errors import PrivacyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class UnaccountedError(Exception):
    """A forward or backward pass that does not show each example's own gradient."""


class UsedElsewhereError(UnaccountedError):
    """A parameter of a known layer is used outside that layer's calls."""


SCALE_TOLERANCE = 1e-3
"""How far a gradient may be from its loss's weight times itself, relative to the largest."""

ALONE_TOLERANCE = 1e-2
"""How far an output may be from the same row's alone, relative to the largest."""


ALONE_FLOOR = 1e-3
"""Outputs smaller than this are compared as if they were as large."""


class ScaleCheck:
    """A second look at the losses: weights on them must scale the rows of their own examples.

    A trainer that puts the rows of examples in another order than it takes them from the batch
    would have each clipped for another.
    """

    def __init__(self, losses: Tensor, outputs: list[Tensor]) -> None:
        self._outputs = [t for t in outputs if t.requires_grad]
        steps = torch.arange(len(losses), device=losses.device)
        # Powers of two, so that scaling is exact; neighbours differ.
        self._weights = torch.tensor([1.0, -0.5, 2.0, -4.0, 0.25], device=losses.device)[steps % 5]
        self._scaled = torch.autograd.grad(
            losses, self._outputs, self._weights.to(losses.dtype), retain_graph=True,
            allow_unused=True,
        )  # fmt: skip
        self._plain: dict[int, Tensor] = {}
        for i, output in enumerate(self._outputs):
            output.register_hook(partial(self._plain.__setitem__, i))  # type: ignore[no-untyped-call]

    def require(self) -> None:
        """Compare, after the backward pass.

        Raises:
            UnaccountedError: They differ.
        """
        for i, scaled in enumerate(self._scaled):
            plain = self._plain.get(i)
            if scaled is None or plain is None:
                continue
            each = self._weights.repeat_interleave(len(plain) // len(self._weights))
            wanted = plain * each.to(plain.dtype).view(-1, *[1] * (plain.ndim - 1))
            if scaled.is_meta:
                continue
            gap = (wanted - scaled).abs().nan_to_num(0.0, 0.0, 0.0).max()
            if not bool(gap <= SCALE_TOLERANCE * scaled.abs().nan_to_num(0.0, 0.0, 0.0).max()):
                raise UnaccountedError("a loss depends on the rows of another example")


def require_same_alone(
    output: list[Tensor], call: Callable[[int], list[Tensor]], kind: str
) -> None:
    """Refuse a network that gives a row another output alone than it had in the mapped call.

    It has a memory that is not seen in its modules.  One row is called, and two more where it
    differs, since rounding may tip a threshold.
    """
    rows = len(output[0])
    for i in sorted({rows // 2, 0, rows - 1}, key=lambda i: i != rows // 2):
        with torch.no_grad():
            found = call(i)
        if all(_is_near(t[i].detach(), single) for t, single in zip(output, found, strict=True)):
            return
    raise PrivacyError(
        f"the network {kind} gives an example another output alone than beside others, so that "
        "one example would reach another's gradient; remove its memory, or use the privatizer's "
        "unit 'site'."
    )


def _is_near(mapped: Tensor, single: Tensor) -> bool:
    if mapped.is_meta or mapped.shape != single.shape:
        return mapped.is_meta
    if not mapped.is_floating_point():
        return bool((mapped == single).all())
    room = ALONE_TOLERANCE * (single.abs().max() + ALONE_FLOOR) if single.numel() else 0.0
    gap = (mapped - single).abs()
    return not bool((gap > room).any())


def draws(device: torch.device) -> tuple[Any, ...]:
    """The states of the generators that a network's own code may draw from."""
    found: tuple[Any, ...] = (
        torch.random.get_rng_state().numpy().tobytes(),
        random.getstate(),
        np.random.get_state(legacy=False)["state"]["key"].tobytes(),  # noqa: NPY002
    )
    if device.type == "cuda":
        found += (torch.cuda.get_rng_state(device).numpy().tobytes(),)
    return found
