"""A network as one vector: trainable parameters, then floating-point statistics.

The order is that of `named_parameters()` and `named_buffers()`. A parameter that several layers
share is in the vector once. Frozen parameters are not in it, because every party builds the same
ones from the seed. Nor are integer buffers such as BatchNorm's counters.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn


def trainable(net: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that training may change."""
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def statistics(net: nn.Module) -> list[Tensor]:
    """Return the persistent floating-point buffers.

    Examples are BatchNorm's running mean and variance.
    """
    floating = [(name, b) for name, b in net.named_buffers() if b.is_floating_point()]
    if not floating:
        return []
    saved = net.state_dict(keep_vars=True)
    return [b for name, b in floating if name in saved]


def tensors(net: nn.Module) -> list[Tensor]:
    """Return the tensors of the vector, in order."""
    return [*trainable(net), *statistics(net)]


def length(net: nn.Module) -> int:
    """Return P, the number of elements of `flatten`."""
    return sum(piece.numel() for piece in tensors(net))


def flatten(net: nn.Module) -> Tensor:
    """Return a copy of the network's vector, shape (P,), `float32`.

    It is on the network's device.
    """
    return join(tensors(net))


def join(pieces: Sequence[Tensor]) -> Tensor:
    """Return a copy of tensors as one vector, shape (P,), `float32`.

    It is the inverse of `split`.  With the pieces of `tensors` it equals `flatten`, without another
    walk over the network.
    """
    import torch

    return torch.cat([piece.detach().reshape(-1).float() for piece in pieces])


def flatten_gradients(net: nn.Module, *, before: Tensor) -> Tensor:
    """Return the gradients, then the statistics' changes, shape (P,).

    The changes are those since `before`.
    """
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
    """Set the network's parameters and statistics from `vector`, shape (P,)."""
    import torch

    mine = tensors(net)
    with torch.no_grad():
        for piece, part in zip(mine, split(vector, mine), strict=True):
            piece.copy_(part)


def split(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return views of `vector`, shape (P,), in the shapes of the tensors."""
    import torch

    parts = torch.split_with_sizes(vector, [piece.numel() for piece in like])
    return [part.view_as(piece) for part, piece in zip(parts, like, strict=True)]


def state_dict(net: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and floating-point statistics by name.

    They are on the CPU.
    """
    return {name: piece.detach().cpu().clone() for name, piece in _named_pieces(net)}


def load_state_dict(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set the network's parameters and statistics from the result of `state_dict`.

    Raises:
        ValueError: A name or a shape is not of this network. Nothing has been set.
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
    """Return the SHA-256 of every trainable parameter and statistic.

    It covers name, shape and little-endian bytes.
    """
    digest = hashlib.sha256()
    buffers = {id(buffer) for buffer in statistics(net)}
    state_dict = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    named_buffers = [(n, b) for n, b in net.named_buffers() if id(b) in buffers]
    for name, piece in [*state_dict, *named_buffers]:
        array = piece.detach().float().cpu().contiguous().numpy()
        digest.update(f"{name}:{array.shape}:".encode())
        digest.update(array.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()
