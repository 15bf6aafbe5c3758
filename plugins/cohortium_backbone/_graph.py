"""A program as values: its steps, and the weights that they use."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch
    from torch import Tensor


@frozen
class Value:
    """A reference to the result of an earlier step, a weight or the images."""

    name: str


class InputDevice:
    """Stand-in for the device of the images."""


@frozen
class Weight:
    """A tensor that the program takes from the file of weights.

    Attributes:
        value: Its name in the program.
        name: Its name in the file.
        shape: Its shape.
        dtype: Its type.
    """

    value: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@frozen(eq=False)
class Step:
    """A call of one operation.

    Attributes:
        kind: Name of the operation, without its overload.
        call: The operation.
        arguments: Arguments by name, in the operation's order.  They hold `Value`s, also in lists.
        num_positional: How many of them are given by position.
        outputs: Names of the results.  None stands for one that is not used.
        is_single: Whether the operation returns one result, and no tuple of them.
        modules: Paths of the modules whose code made the call.
    """

    kind: str
    call: Callable[..., Any] = field(repr=False)
    arguments: Mapping[str, Any]
    num_positional: int
    outputs: tuple[str | None, ...]
    is_single: bool
    modules: tuple[str, ...]

    def values(self) -> Iterator[str]:
        """Yield the names of the values that the step uses."""
        yield from referenced_values(self.arguments)


@frozen(eq=False)
class Program:
    """The operations of a network, from images to outputs.

    Attributes:
        images: Name of the images' value.
        image_shape: Channels and size of an image.  None for a size that may vary.
        steps: The operations in their order.
        weights: Tensors from the file of weights.
        outputs: Names of the results that are tensors.
        made: Weights that no file holds, because the architecture's own code computes them.
        optional_prefixes: Beginnings of names that a file may have although no step uses them.
    """

    images: str
    image_shape: tuple[int | None, ...]
    steps: tuple[Step, ...]
    weights: tuple[Weight, ...]
    outputs: tuple[str, ...]
    made: Mapping[str, Tensor] = field(factory=dict, repr=False)
    optional_prefixes: tuple[str, ...] = ()

    @cached_property
    def used_weights(self) -> tuple[Weight, ...]:
        """The weights that a step uses."""
        used = {name for step in self.steps for name in step.values()} | set(self.outputs)
        return tuple(weight for weight in self.weights if weight.value in used)

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(weight.name for weight in self.weights)

    @cached_property
    def last_uses(self) -> tuple[tuple[str, ...], ...]:
        """For each step, the values that no later step uses."""
        kept = set(self.outputs)
        uses: list[tuple[str, ...]] = []
        for step in reversed(self.steps):
            own = {*step.values(), *filter(None, step.outputs)}
            uses.append(tuple(own - kept))
            kept |= own
        return tuple(reversed(uses))

    def knows(self, name: str) -> bool:
        """Return whether a file of weights may have a tensor of that name."""
        return name in self._names or name.startswith(self.optional_prefixes)


def referenced_values(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the values in arguments."""
    for argument in arguments.values():
        for each in argument if isinstance(argument, list) else (argument,):
            if isinstance(each, Value):
                yield each.name
