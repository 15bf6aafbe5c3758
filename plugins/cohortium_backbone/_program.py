"""A `torch.export` program, read as data.

Only operations of a fixed list are accepted (`_operations`).  The weights come from a file of
safetensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from cohortium.plugin import StudyError, escape_control_characters
from cohortium_backbone._graph import InputDevice, Program, Step, Value, Weight, referenced_values
from cohortium_backbone._operations import (
    IGNORED,
    STANDARDISATIONS,
    TRAINING_FLAGS,
    base_name,
    find_operation,
)
from cohortium_backbone._schema import read_graph_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cohortium_backbone._schema import (
        Argument,
        GraphModule,
        InputSpec,
        Node,
        OptionalTensor,
        SymInt,
    )

MAX_NAME: Final = 300
MAX_STEPS: Final = 20_000

_DTYPES: Final[Mapping[int, torch.dtype]] = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64,
    6: torch.float32, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.float32,
}  # fmt: skip
"""Types by torch's number.  Half precision becomes single precision."""

_FORMATS: Final[Mapping[int, torch.memory_format]] = {
    1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d,
    4: torch.preserve_format,
}  # fmt: skip


def read_program(content: bytes, place: str) -> Program:
    """Return the program in the content of a `.pt2` file.

    Args:
        content: The file's content.
        place: The file's name in an error.

    Guarantees:
        No part of the content is unpickled, imported, compiled or evaluated as an expression.

    Raises:
        StudyError: It is no such file, of another version, or has an operation that is not allowed.
    """
    return _Reader(read_graph_module(content, place), place).program()


class _Reader:
    """Reader of the operations of one program."""

    def __init__(self, module: GraphModule, place: str) -> None:
        self._graph, self._signature, self._place = module.graph, module.signature, place
        self._known: set[str] = set()
        self._of_images: set[str] = set()

    def _refused(self, why: str, remedy: str) -> StudyError:
        return StudyError(f"{self._place} {escape_control_characters(why)[:300]}; {remedy}.")

    def program(self) -> Program:
        if len(self._graph.nodes) > MAX_STEPS:
            raise self._refused(
                f"has {len(self._graph.nodes):,} operations, more than {MAX_STEPS:,}",
                "export a smaller network",
            )
        images: list[str] = []
        weights: list[Weight] = []
        for spec in self._signature.input_specs:
            if spec.user_input is not None and spec.user_input.arg.as_tensor is not None:
                images.append(spec.user_input.arg.as_tensor.name)
            elif (weight := self._weight(spec)) is not None:
                weights.append(weight)
            else:
                raise self._refused(
                    "has an input that is neither images nor a tensor of weights",
                    "export a network that takes images alone",
                )
        if len(images) != 1:
            raise self._refused(
                f"takes {len(images)} tensors", "export a network that takes images alone"
            )
        number, *image_shape = self._shape(images[0]) or (None,)
        if number is not None:
            raise self._refused(
                f"takes {number} images at a time",
                "export it with dynamic_shapes=({0: torch.export.Dim('batch')},)",
            )
        self._of_images = {images[0]}
        self._known = {images[0], *(weight.value for weight in weights)}
        if len(self._known) != 1 + len(weights):
            raise self._refused("gives one name to two values", "export it anew")
        steps = tuple(self._step(node) for node in self._graph.nodes if node.target not in IGNORED)
        return Program(
            images=images[0],
            image_shape=tuple(image_shape),
            steps=steps,
            weights=tuple(weights),
            outputs=tuple(self._outputs()),
        )

    def _weight(self, spec: InputSpec) -> Weight | None:
        if spec.parameter is not None:
            value, name = spec.parameter.arg.name, spec.parameter.parameter_name
        elif spec.buffer is not None:
            value, name = spec.buffer.arg.name, spec.buffer.buffer_name
        elif spec.tensor_constant is not None:
            value, name = spec.tensor_constant.arg.name, spec.tensor_constant.tensor_constant_name
        else:
            return None
        self._require_printable(name)
        shape = self._shape(value)
        dtype = _DTYPES.get(self._graph.tensor_values[value].dtype)
        if None in shape or dtype is None:
            raise self._refused(
                f"has a weight '{name}' of unknown shape or type", "give it one before the export"
            )
        return Weight(value, name, tuple(size for size in shape if size is not None), dtype)

    def _shape(self, value: str) -> tuple[int | None, ...]:
        meta = self._graph.tensor_values.get(value)
        if meta is None or any(size.as_int is not None and size.as_int < 0 for size in meta.sizes):
            raise self._refused(f"states no shape of its input '{value}'", "export it anew")
        return tuple(size.as_int for size in meta.sizes)

    def _outputs(self) -> Iterator[str]:
        for spec in self._signature.output_specs:
            if spec.user_output is None:
                raise self._refused(
                    "changes its own buffers, as a network in training does",
                    "call net.eval() before the export",
                )
            if (tensor := spec.user_output.arg.as_tensor) is not None:
                yield self._require_known(tensor.name)

    def _step(self, node: Node) -> Step:
        operation = find_operation(node.target)
        if operation is None:
            raise self._refused(
                f"uses the operation '{node.target}', which is not allowed",
                "export a network of usual layers, in evaluation mode",
            )
        arguments = {each.name: self._argument(each.arg) for each in node.inputs}
        if len(arguments) != len(node.inputs):
            raise self._refused(f"gives '{node.target}' an argument twice", "export it anew")
        num_positional = operation.num_positional(arguments)
        if num_positional is None:
            raise self._refused(
                f"gives '{node.target}' an argument that it has not",
                "export it anew with a current torch",
            )
        is_fixed = not self._of_images.intersection(referenced_values(arguments))
        self._require_evaluation(node.target, arguments, is_fixed=is_fixed)
        for unused in ("layout", "pin_memory"):
            arguments.pop(unused, None)
        outputs, is_single = self._results(node)
        for name in filter(None, outputs):
            self._require_printable(name)
            if name in self._known:
                raise self._refused("gives one name to two values", "export it anew")
            self._known.add(name)
            if not is_fixed:
                self._of_images.add(name)
        return Step(
            kind=base_name(node.target),
            call=operation.call,
            arguments=arguments,
            num_positional=num_positional,
            outputs=outputs,
            is_single=is_single,
            modules=_modules(node.metadata.get("nn_module_stack", "")),
        )

    def _require_evaluation(
        self, target: str, arguments: Mapping[str, Any], *, is_fixed: bool
    ) -> None:
        """Refuse a call that depends on the batch, or draws.

        Args:
            target: The operation.
            arguments: Its arguments.
            is_fixed: Whether no argument depends on the images.
        """
        for flag in TRAINING_FLAGS & arguments.keys():
            # Batch normalisation also standardises kernels, whose rows are its batch.
            if arguments[flag] is not False and not (is_fixed and target in STANDARDISATIONS):
                raise self._refused(
                    f"calls '{base_name(target)}' in training mode",
                    "call net.eval() before the export",
                )
        if arguments.get("dropout_p", 0.0) != 0.0:
            raise self._refused(
                "drops attention weights at random", "call net.eval() before the export"
            )

    def _results(self, node: Node) -> tuple[tuple[str | None, ...], bool]:
        names: list[str | None] = []
        for each in node.outputs:
            if each.as_tensors is not None:
                if len(node.outputs) > 1:
                    raise self._refused(f"has results of '{node.target}' in two lists", "change it")
                return tuple(tensor.name for tensor in each.as_tensors), False
            if each.as_tensor is not None:
                names.append(each.as_tensor.name)
            elif each.as_sym_int is not None:
                names.append(each.as_sym_int.as_name)
            elif each.as_none is not None or each.as_sym_bool is not None:
                names.append(None)
            else:
                raise self._refused(
                    f"has a result of '{node.target}' that is neither a tensor nor a size",
                    "export a network of usual layers",
                )
        return tuple(names), len(names) == 1

    def _require_printable(self, name: str) -> None:
        """Refuse a name that an error could not show as it is."""
        if not name.isprintable() or len(name) > MAX_NAME:
            raise self._refused(f"has a name '{name[:50]}' that cannot be shown", "export it anew")

    def _require_known(self, name: str) -> str:
        if name not in self._known:
            raise self._refused(f"uses a value '{name}' before it has one", "export it anew")
        return name

    def _value(self, name: str) -> Value:
        return Value(self._require_known(name))

    def _argument(self, given: Argument) -> Any:
        """Return the value of an argument, with references as `Value`s."""
        kinds = [kind for kind in given.__struct_fields__ if getattr(given, kind) is not None]
        read = self._readers.get(kinds[0]) if len(kinds) == 1 else None
        if read is None:
            raise self._refused(
                "has an argument of an unknown kind", "export a network of usual layers"
            )
        return read(getattr(given, kinds[0]))

    @property
    def _readers(self) -> dict[str, Callable[[Any], Any]]:
        """Functions that return the value of an argument, by its kind."""
        return {
            "as_none": lambda _: None,
            "as_tensor": lambda given: self._value(given.name),
            "as_tensors": lambda given: [self._value(each.name) for each in given],
            "as_sym_int": self._size,
            "as_sym_ints": lambda given: [self._size(each) for each in given],
            "as_optional_tensor": self._optional,
            "as_optional_tensors": lambda given: [self._optional(each) for each in given],
            "as_int": int,
            "as_bool": bool,
            "as_string": str,
            "as_float": float,
            "as_ints": list,
            "as_bools": list,
            "as_floats": lambda given: [float(each) for each in given],
            "as_device": lambda _: InputDevice,
            "as_layout": lambda _: None,
            "as_scalar_type": lambda given: self._listed(_DTYPES, given),
            "as_memory_format": lambda given: self._listed(_FORMATS, given),
        }

    def _listed(self, table: Mapping[int, Any], number: int) -> Any:
        """Return a type or form of tensors by its number."""
        if number not in table:
            raise self._refused(
                f"has a type or form of tensors with the unknown number {number}",
                "export a network of usual layers",
            )
        return table[number]

    def _size(self, size: SymInt) -> Value | int:
        if size.as_int is not None:
            return size.as_int
        return self._value(size.as_name or "")

    def _optional(self, given: OptionalTensor) -> Value | None:
        return None if given.as_tensor is None else self._value(given.as_tensor.name)


def _modules(stack: str) -> tuple[str, ...]:
    """Return the paths of modules from torch's list of keys, paths and types."""
    entries = (entry.split(",") for entry in stack.split(";"))
    return tuple(
        entry[1]
        for entry in entries
        if len(entry) > 1 and 0 < len(entry[1]) <= MAX_NAME and entry[1].isprintable()
    )
