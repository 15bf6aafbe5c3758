"""A network as one vector: its trainable parameters, then its floating-point statistics.

The order is that of `named_parameters()` and `named_buffers()`; a parameter that several layers
share stands once.  Frozen parameters are not in it (every party builds the same ones from the
seed), nor are integer buffers such as BatchNorm's counters.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn


def trainable(net: nn.Module) -> list[nn.Parameter]:
    """The parameters that training may change."""
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def statistics(net: nn.Module) -> list[Tensor]:
    """The persistent floating-point buffers, such as BatchNorm's running mean and variance."""
    floating = [(name, b) for name, b in net.named_buffers() if b.is_floating_point()]
    if not floating:
        return []
    saved = net.state_dict(keep_vars=True)
    return [b for name, b in floating if name in saved]


def tensors(net: nn.Module) -> list[Tensor]:
    """What the vector is put together from, in order."""
    return [*trainable(net), *statistics(net)]


def length(net: nn.Module) -> int:
    """P, how many numbers `flatten` gives."""
    return sum(piece.numel() for piece in tensors(net))


def flatten(net: nn.Module) -> Tensor:
    """A copy of the network's numbers, shape (P,), `float32`, on its device."""
    import torch

    return torch.cat([piece.detach().reshape(-1).float() for piece in tensors(net)])


def flatten_gradients(net: nn.Module, *, before: Tensor) -> Tensor:
    """The gradients, then how far the statistics have moved since `before`, shape (P,)."""
    import torch

    parts = [
        torch.zeros(p.numel(), device=p.device) if p.grad is None else p.grad.reshape(-1).float()
        for p in trainable(net)
    ]
    moved = [piece.detach().reshape(-1).float() for piece in statistics(net)]
    if moved:
        tail = torch.cat(moved)
        parts.append(tail - before[len(before) - len(tail) :])
    return torch.cat(parts)


def load(net: nn.Module, vector: Tensor) -> None:
    """Set the network's numbers from `parameters`, shape (P,)."""
    import torch

    mine = tensors(net)
    with torch.no_grad():
        for piece, part in zip(mine, split(vector, mine), strict=True):
            piece.copy_(part)


def split(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of `parameters`, shape (P,), one in the shape of each piece."""
    import torch

    parts = torch.split_with_sizes(vector, [piece.numel() for piece in like])
    return [part.view_as(piece) for part, piece in zip(parts, like, strict=True)]


def state_dict(net: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and floating-point statistics, by name, on the CPU."""
    return {name: piece.detach().cpu().clone() for name, piece in _named_pieces(net)}


def load_state_dict(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set the network's numbers from what `state_dict` gave.

    Raises:
        ValueError: A name or a shape is not of this network; nothing has been set.
    """
    import torch

    own = dict(_named_pieces(net))
    odd = own.keys() ^ state.keys()
    odd |= {n for n in own.keys() & state.keys() if own[n].shape != state[n].shape}
    if odd:
        raise ValueError(f"they differ in {', '.join(sorted(odd)[:3])}")
    with torch.no_grad():
        for name, piece in own.items():
            piece.copy_(state[name])


def _named_pieces(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    kept = {id(piece) for piece in (*net.parameters(), *statistics(net))}
    for name, piece in (*net.named_parameters(), *net.named_buffers()):
        if id(piece) in kept:
            yield name, piece


def sha256(net: nn.Module) -> str:
    """SHA-256 of every trainable parameter and statistic: name, shape and little-endian bytes."""
    digest = hashlib.sha256()
    buffers = {id(buffer) for buffer in statistics(net)}
    state_dict = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    named_buffers = [(n, b) for n, b in net.named_buffers() if id(b) in buffers]
    for name, piece in [*state_dict, *named_buffers]:
        array = piece.detach().float().cpu().contiguous().numpy()
        digest.update(f"{name}:{array.shape}:".encode())
        digest.update(array.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()
