"""One network in memory, shared by all sites of a process.

Each site loads the global weights before it trains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cohortium import parameters
from cohortium.errors import MessageError
from cohortium.messages import codec
from cohortium.messages.run import Request
from cohortium.rounds.server_state import decode_server_state, initial_server_state

if TYPE_CHECKING:
    from torch import Tensor

    from cohortium.rounds.run_config import RunConfig


class SharedModel:
    """One network in memory, which a process's sites use in turn."""

    def __init__(self, run_config: RunConfig) -> None:
        """Build the network."""
        import torch

        self.net = run_config.network()
        self._pieces = parameters.tensors(self.net)
        self.length = sum(piece.numel() for piece in self._pieces)
        self.server_state = initial_server_state(run_config.trainer, self.length)
        """Server state of the latest attempt, or None if the trainer has none."""
        self._buffers = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        self._device = torch.device(run_config.device)
        self._latest: tuple[bytes, Request] | None = None
        self._taken: Request | None = None
        self.shared: dict[str, Any] = {}
        """Objects that the aggregation's sessions at these sites share (see `SiteContext`)."""
        self._weights: list[Tensor] = []
        self._begun: list[Tensor] = []

    def decode_request(self, broadcast: bytes) -> Request:
        """Decode, once, the part of a request that all sites share.

        Raises:
            MessageError: The bytes are not a request.
        """
        if self._latest is None or self._latest[0] is not broadcast:
            self._latest = broadcast, codec.decode(broadcast, Request)
        return self._latest[1]

    def take_weights(self, request: Request) -> None:
        """Decode, once, the global weights of a request, if it has any.

        Raises:
            MessageError: The weights or the server state are not this network's.
        """
        if request is self._taken:
            return
        if request.weights is not None:
            length = None if self.server_state is None else len(self.server_state)
            # Both are decoded before either is kept, so a refused request changes nothing.
            weights = self._decoded(request.weights)
            self.server_state = decode_server_state(request.server_state, length)
            self._weights = weights
        self._taken = request

    def _decoded(self, weights: memoryview) -> list[Tensor]:
        import torch

        if len(weights) != 4 * self.length:
            raise MessageError(
                f"the model has {self.length} numbers of 4 bytes, but {len(weights)} bytes came."
            )
        array = np.frombuffer(weights, dtype="<f4")
        if not np.isfinite(array).all():
            raise MessageError("the global weights are not all finite.")
        # Split once, for all sites that begin with these weights.
        return parameters.split(torch.from_numpy(array.copy()).to(self._device), self._pieces)

    def load_global_weights(self) -> None:
        """Load the round's global weights into the network."""
        import torch

        if not self._weights:
            raise MessageError("an attempt must begin with the global weights.")
        # Counters, and buffers that are not part of the weights, must not pass from one site to
        # another.
        for name, buffer in self.net.named_buffers():
            buffer.copy_(self._buffers[name])
        with torch.no_grad():
            for piece, weights in zip(self._pieces, self._weights, strict=True):
                piece.copy_(weights)
        self._begun = [b.clone() for b in self.net.buffers() if b.is_floating_point()]
        if not all(module.training for module in self.net.modules()):
            # Only then, since it sets an attribute of every layer, which is slow.
            self.net.train()

    def buffers_changed(self) -> bool:
        """Return whether any floating-point buffer has changed since `load_global_weights`."""
        now = [b for b in self.net.buffers() if b.is_floating_point()]
        return not all(old.equal(new) for old, new in zip(self._begun, now, strict=True))
