"""Any `torch.nn.Module` as a model, named by its import path."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from attrs.validators import ge, le, matches_re

from cohortium.plugin import (
    DataSpec,
    Model,
    NetworkError,
    Offer,
    StudyError,
    describe_fault,
    hookimpl,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

COHORTIUM_API = 1


@frozen(kw_only=True)
class Module:
    """A network of the user's own, without a plugin.

    The class, or function, is called with `arguments`.  It also gets the numbers `channels` and
    `classes` if it has parameters with these names.  It has to return a module that maps images (N,
    C, H, W) to logits (N, classes).  For `module = "mynets:Net"`, a file mynets.py in the study's
    folder may be

        from torch import nn

        class Net(nn.Module):
            def __init__(self, channels, classes, width=8):
                super().__init__()
                self.conv = nn.Conv2d(channels, width, 3, stride=2)
                self.head = nn.Linear(width, classes)

            def forward(self, images):
                return self.head(self.conv(images).relu().mean((2, 3)))

    Installed packages come before files in the study's folder.  So a file with the name of an
    installed package would not be found.  At a hospital the class has to be installed, and allowed
    by its policy.

    Attributes:
        module: Import path of the class or function, "package.module:Class".
        folder: Further folder to search.  A study's file sets it to the study's folder.
        arguments: Keyword arguments for the class or function.
        mean: Number that is subtracted from intensities in [0, 1].
        deviation: Number that the difference is divided by.
    """

    module: str = field(default="", validator=matches_re(r"^$|^[\w.]+:[\w.]+$"))
    # Not compared or shown: a study that has moved, with its code, is the same study.
    folder: str | None = field(default=None, eq=False, repr=False)
    arguments: dict[str, Any] = field(factory=dict)
    mean: float = field(default=0.5, validator=[ge(-1e6), le(1e6)])
    deviation: float = field(default=0.5, validator=[ge(1e-6), le(1e6)])

    def preprocess(self, images: Tensor) -> Tensor:
        """Return intensities, shifted and scaled."""
        return images.sub(self.mean).div_(self.deviation)

    def build(self, spec: DataSpec, seed: int) -> nn.Module:
        """Build the network, initialised from `seed`.

        Raises:
            StudyError: No module is named.
            NetworkError: The network cannot be imported or created, or is not a module.
        """
        import torch

        if not self.module:
            raise StudyError("model 'module' needs module = \"package.module:Class\".")
        from cohortium_module._finding import beside, found

        with beside(self.folder):
            factory = found(self.module, self.folder)
            arguments = self._arguments(factory, spec)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                try:
                    net = factory(**arguments)
                except MemoryError:
                    raise
                except (Exception, SystemExit) as error:
                    raise self._refused(describe_fault(error)) from error
        if not isinstance(net, torch.nn.Module):
            raise NetworkError(f"model '{self.module}' gives a {type(net).__name__}, not a module.")
        return net

    def _arguments(self, factory: Callable[..., Any], spec: DataSpec) -> dict[str, Any]:
        """Return the arguments of `factory`, if it can be called with them."""
        try:
            signature = inspect.signature(factory)
        except (TypeError, ValueError):  # not a Python function
            return self.arguments
        known = {"channels": spec.channels, "classes": len(spec.classes)}
        wanted = known.keys() & signature.parameters.keys()
        arguments = {key: known[key] for key in wanted} | self.arguments
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise self._refused(
                f"{error}; it is called with 'channels' and 'classes' where it has parameters of "
                "these names, and with [model.arguments]"
            ) from error
        return arguments

    def _refused(self, why: str) -> NetworkError:
        return NetworkError(f"model '{self.module}' cannot be made: {why}.")

    def code(self) -> Any:
        """Return the network's factory.

        A run's record describes its source file.
        """
        from cohortium_module._finding import beside, found

        with beside(self.folder):
            return found(self.module, self.folder)


@hookimpl
def cohortium_models() -> list[Offer[Model]]:
    """Offer `module`."""
    summary = "Any torch.nn.Module, by module = package:Class."
    return [Offer("module", Module, summary, local_parameters=("module", "folder"), code="module")]
