"""Any `torch.nn.Module` as a model, named by where it can be imported from."""

from __future__ import annotations

import importlib
import inspect
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from attrs.validators import matches_re

from cohortium.plugin import DataSpec, Model, Offer, StudyError, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

COHORTIUM_API = 1


@frozen(kw_only=True)
class Module:
    """A network of one's own, without a plugin.

    The class, or function, is called with `arguments`, and with the numbers `channels` and
    `classes` where it has parameters so called.  It has to give a module that maps images
    (N, C, H, W) to logits (N, classes).

    Attributes:
        module: "package.module:Class".
        arguments: Keyword arguments for it.
        mean: Subtracted from intensities in [0, 1].
        deviation: What the difference is divided by.
    """

    module: str = field(default="", validator=matches_re(r"^$|^[\w.]+:[\w.]+$"))
    arguments: dict[str, Any] = field(factory=dict)
    mean: float = 0.5
    deviation: float = 0.5

    def prepare(self, images: Tensor) -> Tensor:
        """Intensities, shifted and scaled."""
        return images.sub(self.mean).div_(self.deviation)

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        """The network, initialised from `seed`.

        Raises:
            StudyError: It cannot be imported or made, or is no module.
        """
        import torch

        package, _, name = self.module.partition(":")
        if not package:
            raise StudyError("model 'module' needs module = \"package.module:Class\".")
        try:
            made: Any = importlib.import_module(package)
            for part in name.split("."):
                made = getattr(made, part)
            known = {"channels": spec.channels, "classes": len(spec.classes)}
            wanted = known.keys() & inspect.signature(made).parameters.keys()
            arguments = {key: known[key] for key in wanted} | self.arguments
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                net = made(**arguments)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise StudyError(f"model '{self.module}' cannot be made: {error}.") from error
        if not isinstance(net, torch.nn.Module):
            raise StudyError(f"model '{self.module}' gives a {type(net).__name__}, not a module.")
        return net

    def code(self) -> Any:
        """What makes the network, whose source file a run's record tells of."""
        package, _, name = self.module.partition(":")
        return attrgetter(name)(importlib.import_module(package))


@hookimpl
def cohortium_models() -> list[Offer[Model]]:
    """Offer `module`."""
    summary = "Any torch.nn.Module, by module = package:Class."
    return [Offer("module", Module, summary, local=("module",))]
