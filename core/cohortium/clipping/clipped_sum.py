"""Clipped sums of per-example gradients, on which example-level privacy relies."""

from __future__ import annotations

import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from attrs import define, field

from cohortium.errors import CohortiumError, PrivacyError
from cohortium.parameters import trainable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn

    from cohortium.clipping.bookkeeping import Contribution
    from cohortium.clipping.module_state import ModuleState
    from cohortium.clipping.pass_checks import UntrackedGradientError
    from cohortium.roles.values import ExampleIndices

GRADIENT_FLOATS = 1 << 26
"""Numbers stored of a physical batch for its clipped sum: 256 MiB."""

SMALLEST_FACTOR = 2.0**-126
"""Smallest factor.  Below it, `float32` has fewer digits."""


@define(eq=False)
class ClippedSums:
    """Clipped sums of a batch so far.

    Attributes:
        totals: The sum of clipped gradients by parameter.
        unclipped: Number of examples whose gradient was within the clip norm.
    """

    totals: dict[nn.Parameter, Tensor] = field(factory=dict, repr=False)
    unclipped: int = 0


def mean_gradient(
    net: nn.Module,
    losses: Callable[[ExampleIndices], Tensor],
    batch: ExampleIndices,
    *,
    parameters: Iterable[nn.Parameter] | None = None,
) -> None:
    """Set `.grad` to the mean gradient over `batch`, without privacy.

    An empty batch gives zero.

    Args:
        net: The network inside `losses`.
        losses: Returns the loss of each example at some positions, shape (B,).
        batch: Positions of examples, shape (B,).
        parameters: All parameters of the network, if the caller has collected them.  In a small
            network that takes as long as a layer.
    """
    import torch

    for parameter in net.parameters() if parameters is None else parameters:
        parameter.grad = None
    if len(batch):
        each = losses(batch)
        # Their mean would take three more operations in each direction.
        each.backward(torch.full_like(each, 1 / len(each)))  # type: ignore[no-untyped-call]
        return
    for parameter in trainable(net):
        parameter.grad = torch.zeros_like(parameter)


def clipped_sum(
    net: nn.Module,
    losses: Callable[[ExampleIndices], Tensor],
    batch: ExampleIndices,
    *,
    clip: float,
) -> int:
    """Set `.grad` to the sum of clipped per-example gradients over `batch`.

    Each per-example gradient is clipped to norm `clip`.

    Args:
        net: The network inside `losses`.
        losses: Returns the loss of each example at some positions, shape (B,).  It calls modules of
            the network, or their `statistics_loss`, and gives them tensors with a row for each
            example.
            If an example occurs K times in them, its copies must be adjacent.
        batch: Positions of examples, shape (B,).  May be empty.
        clip: C, the largest ℓ₂ norm of one example's contribution over all parameters.

    Returns:
        The number of examples whose gradient was within the clip norm.  It is as secret as the
        batch.

    Guarantees:
        Replacing one example's data by any other data changes the result by at most 2·C in ℓ₂ norm,
        up to `float32` rounding.
        Leaving one example out changes it by at most C, up to `float32` rounding.
        Both bounds assume that `losses` itself uses no example's data for another's loss.
        They hold for any network and any weights: its code runs with each example by itself, mapped
        over the batch (`mapped_forward`).
        Code that cannot be mapped runs for one example after another, with a warning.
        Every pass begins with the state that the network had before.
        Random draws are independent for each example.
        An example whose gradient is not finite contributes zero.
        Memory that the network keeps outside its modules (in a module's globals, say) is not always
        detected.
        In each pass, one output is compared with the output of its example alone.

    Raises:
        PrivacyError: A parameter is complex, of less than single precision or lazy.  Or the network
            alters its parameters, keeps a memory of its inputs or keeps a generator.  Or its output
            for an example alone differs, or it cannot run with one example alone.
    """
    import torch

    from cohortium.clipping.module_state import ModuleState
    from cohortium.clipping.pass_checks import UntrackedGradientError

    parameters = trainable(net)
    for name, parameter in net.named_parameters():
        if torch.nn.parameter.is_lazy(parameter):
            raise PrivacyError(
                f"parameter '{name}' of {type(net).__name__} has no shape yet; call the network "
                "once where it is made."
            )
        if parameter.requires_grad and parameter.dtype not in {torch.float32, torch.float64}:
            raise PrivacyError(
                f"parameter '{name}' of {type(net).__name__} is of type {parameter.dtype}, in "
                "which a clipped sum would be rounded by more than its noise covers; make it "
                "float32 with .float(), or use the privatizer's unit 'site'."
            )
    state = ModuleState.of(net)
    with _uncompiled():
        found = reason = _mapped(net, losses, batch, clip, state)
        if isinstance(found, UntrackedGradientError):
            state.restore()
            found = _one_by_one(net, losses, batch, clip, state)
    if isinstance(reason, UntrackedGradientError):
        # The warning waits for success: a fault of the network is not one of the mapping.
        warnings.warn(f"{reason}: examples are taken one by one, which is slow.", stacklevel=2)
    state.require_same()
    for parameter in parameters:
        total = found.totals.get(parameter)
        parameter.grad = torch.zeros_like(parameter) if total is None else total
    return found.unclipped


def _uncompiled() -> AbstractContextManager[None]:
    """Run compiled code as it was written.

    The code was compiled for a batch, and maps rows wrongly.
    """
    if "torch._dynamo" not in sys.modules:  # so nothing has been compiled
        return nullcontext()
    import torch

    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


def _mapped(
    net: nn.Module, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices, clip: float,
    state: ModuleState,
) -> ClippedSums | UntrackedGradientError:  # fmt: skip
    """Return clipped sums, or the reason for their absence."""
    from cohortium.clipping.pass_checks import SharedParameterError, UntrackedGradientError

    try:
        return _from_one_pass(net, losses, batch, clip, state)
    except SharedParameterError:
        state.restore()
    except UntrackedGradientError as reason:
        return reason
    try:
        return _from_one_pass(net, losses, batch, clip, state, has_copies=True)
    except UntrackedGradientError as reason:
        return reason


def _from_one_pass(
    net: nn.Module, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices, clip: float,
    state: ModuleState, *, has_copies: bool = False,
) -> ClippedSums:  # fmt: skip
    """Return clipped sums, taken one physical batch at a time."""
    from cohortium.clipping.bookkeeping import GradientRecorder

    found = ClippedSums()
    # The first batch fits even if every gradient is stored.  Later ones use the measured size.
    size = max(1, sum(parameter.numel() for parameter in trainable(net)))
    start, step = 0, max(1, GRADIENT_FLOATS // size)
    with GradientRecorder(net, state, has_copies=has_copies) as book:
        while start < len(batch):
            part = batch[start : start + step]
            contributions, floats = book.record(losses, part)
            state.restore()
            if contributions:
                _add_clipped(found, contributions, clip)
            else:  # no gradient, which is within every clip
                found.unclipped += len(part)
            start += step
            step = max(1, GRADIENT_FLOATS * len(part) // max(1, floats))
    return found


def _add_clipped(found: ClippedSums, contributions: list[Contribution], clip: float) -> None:
    """Add a physical batch's clipped sums.

    The memory of each contribution is freed after its use.
    """
    import torch
    from torch.nn.utils.parametrize import cached

    squares = sum(
        (contribution.squared_norms for contribution in contributions[1:]),
        contributions[0].squared_norms,
    )
    factors = _factors(squares, clip)
    found.unclipped += int((factors == 1).sum())
    totals = found.totals
    bad = None if bool(squares.isfinite().all()) else ~squares.isfinite()
    with torch.no_grad(), torch.autocast(factors.device.type, enabled=False), cached():
        while contributions:
            contribution = contributions.pop()
            for parameter, total in zip(
                contribution.parameters, contribution.weighted_sums(factors, bad), strict=True
            ):
                totals[parameter] = totals[parameter] + total if parameter in totals else total


def _one_by_one(
    net: nn.Module, losses: Callable[[ExampleIndices], Tensor], batch: ExampleIndices, clip: float,
    state: ModuleState,
) -> ClippedSums:  # fmt: skip
    """Return the same sums by definition: one backward pass for each example."""
    import torch

    from cohortium.clipping.recording import Recording

    parameters = trainable(net)
    found = ClippedSums()
    totals = found.totals
    recording = Recording(net, state.rewind)
    for i in range(len(batch)):
        try:
            with nullcontext() if i else recording:
                loss = losses(batch[i : i + 1]).sum()
            if not loss.requires_grad:
                found.unclipped += 1
                state.restore()
                continue
            net.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # not `autograd.grad`, which reentrant checkpoints refuse
        except CohortiumError:
            raise
        except Exception as error:
            kind = type(net).__name__
            what = " ".join(str(error).split())
            raise PrivacyError(
                f"the network {kind} cannot take a private step ({what[:300]}); its gradient must "
                "be had from one example alone."
            ) from error
        state.restore()
        pairs = [(p, p.grad if p.grad.layout == torch.strided else p.grad.to_dense())
                 for p in parameters if p.grad is not None]  # fmt: skip
        if not pairs:
            found.unclipped += 1
            continue
        squares = torch.stack([g.square().sum(dtype=torch.float64) for _, g in pairs]).sum()
        if squares.isfinite():
            factor = _factors(squares, clip)
            found.unclipped += int(factor == 1)
            for parameter, g in pairs:
                totals[parameter] = totals.get(parameter, 0) + g * factor.to(g.dtype)
    state.require_same()
    for alone in recording.calls:
        alone.require()
    state.restore()
    net.zero_grad(set_to_none=True)
    return found


def _factors(squares: Tensor, clip: float) -> Tensor:
    """Return factors that scale gradients of these squared norms down to `clip`.

    A factor is zero where the norm is not finite.  It is also zero where single precision would
    round the factor by more than numbers of usual sizes.
    """
    norms = squares.sqrt()
    factors = (clip / norms.clamp(min=1e-12)).clamp(max=1.0)
    return factors.where(norms.isfinite() & (factors >= SMALLEST_FACTOR), 0.0)
