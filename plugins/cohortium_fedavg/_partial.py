"""Networks of which a part stays at each site: FedPer and FedBN."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import max_len

from cohortium.plugin import (
    LocalResult,
    LocalTask,
    SitePrivatizer,
    StudyError,
    did_you_mean,
    parameters,
)
from cohortium_fedavg._averaging import FedAvg

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn

PREFIX = "partial."
"""Prefix of the names of a site's own parameters in its state."""


@frozen(kw_only=True)
class PartialSharing(FedAvg):
    """`FedAvg` over the layers that sites share.  The other layers stay at each site.

    Guarantees:
        The parameters that stay are trained by the privatizer's gradients, as all others.  Their
        part of the release is zero.
    """

    def train(self, task: LocalTask, privatizer: SitePrivatizer) -> LocalResult:
        """Return the update of the shared layers, and keep the others."""
        import torch

        own = own_tensors(task.net, self._own_layers(task.net))
        with torch.no_grad():
            for name, tensor in own.items():
                if task.state:
                    tensor.copy_(task.state[PREFIX + name])
        update, _ = self._take_steps(task, privatizer)
        pieces = parameters.tensors(task.net)
        kept = {id(tensor) for tensor in own.values()}
        for part, piece in zip(parameters.split(update, pieces), pieces, strict=True):
            if id(piece) in kept:
                part.zero_()
        return LocalResult(
            vector=update,
            weight=float(len(task.labels)),
            state={PREFIX + name: tensor.detach() for name, tensor in own.items()},
        )

    def personalize(self, net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
        """Return the shared layers with the site's own ones."""
        import torch

        if not state:
            return net
        personal = copy.deepcopy(net)
        with torch.no_grad():
            for name, tensor in own_tensors(personal, self._own_layers(personal)).items():
                own = state[PREFIX + name]
                if own.shape != tensor.shape:  # which `copy_` would broadcast
                    raise StudyError(f"the state's {name} has shape {tuple(own.shape)}.")
                tensor.copy_(own)
        return personal

    def _own_layers(self, net: nn.Module) -> list[str]:
        """Return the names of the layers that stay."""
        raise NotImplementedError


@frozen(kw_only=True)
class FedPer(PartialSharing):
    """`FedAvg` with a head at each site (Arivazhagan et al. 2019).

    Attributes:
        personal_layers: Names of the layers that stay, with all layers inside them.  Empty for the
            last layer that has parameters.
    """

    personal_layers: tuple[str, ...] = field(default=(), validator=max_len(1000))

    def _own_layers(self, net: nn.Module) -> list[str]:
        layers = [name for name, layer in net.named_modules() if name and _has_parameters(layer)]
        if not layers:
            raise StudyError(
                "the network is one layer, so fedper would share nothing; use trainer 'fedavg', "
                "or 'ditto' for a network of each site's own."
            )
        known = [name for name, _ in net.named_modules() if name]
        for name in self.personal_layers:
            if name not in known:
                raise StudyError(
                    f"trainer.personal_layers: the network has no layer {name!r}; "
                    f"{did_you_mean(name, known)}"
                )
        return list(self.personal_layers) or [layers[-1]]


@frozen(kw_only=True)
class FedBN(PartialSharing):
    """`FedAvg` with the normalisation layers at each site (Li et al. 2021).

    The layers are those of batches, groups, instances and features.
    """

    def _own_layers(self, net: nn.Module) -> list[str]:
        from torch import nn as layers
        from torch.nn.modules.batchnorm import _NormBase

        kinds = (_NormBase, layers.GroupNorm, layers.LayerNorm, layers.RMSNorm)
        found = [
            name
            for name, layer in net.named_modules()
            if isinstance(layer, kinds) and (_has_parameters(layer) or any(layer.buffers()))
        ]
        if not found:
            raise StudyError(
                "fedbn keeps normalisation layers at the sites, and the network has none with "
                "parameters; use trainer 'fedper' or 'fedavg'."
            )
        return found


def own_tensors(net: nn.Module, layers: Iterable[str]) -> dict[str, Tensor]:
    """Return the trainable parameters and statistics inside `layers`, by name.

    Raises:
        StudyError: They are all of the network.
    """
    pieces = {id(piece) for piece in parameters.tensors(net)}
    prefixes = tuple(f"{layer}." for layer in layers)
    named = [*net.named_parameters(), *net.named_buffers()]
    own = {name: t for name, t in named if name.startswith(prefixes) and id(t) in pieces}
    if len(own) == len(pieces):
        raise StudyError(
            "all layers of the network would stay at the sites, and none be shared; name fewer "
            "layers, or use trainer 'ditto' for a network of each site's own."
        )
    return own


def _has_parameters(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
