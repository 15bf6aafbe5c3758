"""The vector that a trainer's server publishes with the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cohortium.errors import MessageError, RefusalCode, RefusalError, RunError, StudyError
from cohortium.roles.protocols import ServerStateTrainer

if TYPE_CHECKING:
    from torch import Tensor

    from cohortium.roles.protocols import Trainer
    from cohortium.roles.values import LocalResult, ReleasedMean, Workload


def extra_length(trainer: Trainer, workload: Workload, parameters: int) -> int:
    """Return E, the number of values that a site releases after the network's vector.

    Args:
        trainer: The trainer.
        workload: Its declaration.
        parameters: P, the length of the network's vector.

    Raises:
        StudyError: Sites release a gradient, whose clip and noise cover no further values.
    """
    if not isinstance(trainer, ServerStateTrainer):
        return 0
    length = trainer.extra_length(parameters)
    if length and workload.output == "gradient":
        raise StudyError(
            f"the trainer {type(trainer).__qualname__} releases a gradient and "
            f"{length:,} further values, and neither clip nor noise covers those; let it release "
            "an update."
        )
    return length


def initial_server_state(trainer: Trainer, parameters: int) -> Tensor | None:
    """Return the server state of the first round, or None if the trainer has none.

    Args:
        trainer: The trainer.
        parameters: P, the length of the network's vector.
    """
    if not isinstance(trainer, ServerStateTrainer):
        return None
    return _require_vector(trainer, trainer.initial_server_state(parameters))


def next_server_state(
    trainer: Trainer, server_state: Tensor | None, mean: ReleasedMean
) -> Tensor | None:
    """Return the server state of the next round, or None if the trainer has none.

    Args:
        trainer: The trainer.
        server_state: That of this round.
        mean: The mean that the sites have released.

    Raises:
        RunError: The trainer gives a state of another shape.
    """
    if not isinstance(trainer, ServerStateTrainer) or server_state is None:
        return None
    found = _require_vector(trainer, trainer.next_server_state(server_state, mean))
    if found.shape != server_state.shape:
        raise RunError(
            f"{type(trainer).__qualname__}.next_server_state gives {len(found):,} values, and "
            f"the state has {len(server_state):,}."
        )
    return found


def whole_release(result: LocalResult, length: int) -> Tensor:
    """Return the whole vector of a site's release, shape (P + E,).

    Args:
        result: The result of a trainer's round.
        length: E.

    Raises:
        RefusalError: The result has another number of further values than the trainer declares.
    """
    import torch

    found = 0 if result.extra is None else result.extra.numel()
    if found != length:
        raise RefusalError(
            RefusalCode.TRAINER,
            f"the trainer releases {found:,} further values, and declares {length:,}.",
        )
    if result.extra is None:
        return result.vector
    return torch.cat([result.vector, result.extra.to(result.vector)])


def encode_server_state(server_state: Tensor | None) -> memoryview | None:
    """Return the state as it is sent."""
    return None if server_state is None else server_state.numpy().view(np.uint8).data


def decode_server_state(data: memoryview | None, length: int | None) -> Tensor | None:
    """Return the state that a coordinator sent.

    Args:
        data: Its bytes, untrusted.
        length: S, or None if the trainer has no server state.

    Raises:
        MessageError: They are not the state of this trainer.
    """
    import torch

    if length is None:
        if data is not None:
            raise MessageError("the trainer has no server state, and the request has one.")
        return None
    if data is None or len(data) != 4 * length:
        raise MessageError(
            f"the trainer's server state has {length} numbers of 4 bytes, but "
            f"{0 if data is None else len(data)} bytes came."
        )
    array = np.frombuffer(data, dtype="<f4")
    if not np.isfinite(array).all():
        raise MessageError("the trainer's server state is not all finite.")
    return torch.from_numpy(array.copy())


def _require_vector(trainer: Trainer, state: Tensor) -> Tensor:
    """Return `state` on the CPU, if it is a vector of `float32`."""
    import torch

    if state.ndim != 1 or state.dtype != torch.float32:
        raise RunError(
            f"the server state of {type(trainer).__qualname__} has shape {tuple(state.shape)} and "
            f"{str(state.dtype).removeprefix('torch.')}; make it a vector of float32."
        )
    return state.detach().cpu().contiguous()
