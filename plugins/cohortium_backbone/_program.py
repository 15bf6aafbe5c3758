"""A `torch.export` program, read as data.

`torch.export.load` unpickles parts of a file, and evaluates text of it as Python.  So this module
reads the file itself.  A `.pt2` file is a zip archive.  Its member `models/model.json` lists the
operations of the program.  Only that member is read, and only operations of a fixed list are
accepted (`_operations`).  The weights come from a file of safetensors.
"""

from __future__ import annotations

import io
import zipfile
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import torch
from attrs import field, frozen
from torch import Tensor

from cohortium.plugin import StudyError, escape_control_characters
from cohortium_backbone._operations import (
    IGNORED,
    STANDARDISATIONS,
    TRAINING_FLAGS,
    base_name,
    find_operation,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MAX_JSON_BYTES: Final = 1 << 26
"""Largest list of operations: 64 MiB."""

MAX_MEMBERS: Final = 1 << 16
MAX_NAME: Final = 300
MAX_STEPS: Final = 20_000
MAX_NUMBERS: Final = 1 << 27
"""Most numbers in an intermediate result of one image: 512 MiB."""

SCHEMA: Final = 8
"""Major version of torch's schema."""

_MEMBER: Final = "models/model.json"

_DTYPES: Final[Mapping[int, torch.dtype]] = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64,
    6: torch.float32, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.float32,
}  # fmt: skip
"""Types by torch's number.  Half precision becomes single precision."""

_FORMATS: Final[Mapping[int, torch.memory_format]] = {
    1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d,
    4: torch.preserve_format,
}  # fmt: skip

_Number = float | Literal["Infinity", "-Infinity", "NaN"]


class _Struct(msgspec.Struct, frozen=True):
    """Part of the list.  Fields that the program does not need are ignored."""


class _Name(_Struct, frozen=True):
    name: str


class _SymInt(_Struct, frozen=True):
    as_name: str | None = None
    as_int: int | None = None


class _Optional(_Struct, frozen=True):
    as_tensor: _Name | None = None
    as_none: bool | None = None


class _Device(_Struct, frozen=True):
    type: str


class _Argument(_Struct, frozen=True):
    """A value of one kind, in the field of that kind."""

    as_none: bool | None = None
    as_tensor: _Name | None = None
    as_tensors: tuple[_Name, ...] | None = None
    as_int: int | None = None
    as_ints: tuple[int, ...] | None = None
    as_float: _Number | None = None
    as_floats: tuple[_Number, ...] | None = None
    as_string: str | None = None
    as_sym_int: _SymInt | None = None
    as_sym_ints: tuple[_SymInt, ...] | None = None
    as_scalar_type: int | None = None
    as_memory_format: int | None = None
    as_layout: int | None = None
    as_device: _Device | None = None
    as_bool: bool | None = None
    as_bools: tuple[bool, ...] | None = None
    as_sym_bool: _Struct | None = None
    as_optional_tensor: _Optional | None = None
    as_optional_tensors: tuple[_Optional, ...] | None = None


class _Input(_Struct, frozen=True):
    name: str
    arg: _Argument


class _Node(_Struct, frozen=True):
    target: str
    inputs: tuple[_Input, ...]
    outputs: tuple[_Argument, ...]
    metadata: dict[str, str] = {}


class _Size(_Struct, frozen=True):
    as_int: int | None = None


class _Meta(_Struct, frozen=True):
    dtype: int
    sizes: tuple[_Size, ...]


class _Graph(_Struct, frozen=True):
    inputs: tuple[_Argument, ...]
    outputs: tuple[_Argument, ...]
    nodes: tuple[_Node, ...]
    tensor_values: dict[str, _Meta]


class _User(_Struct, frozen=True):
    arg: _Argument


class _Parameter(_Struct, frozen=True):
    arg: _Name
    parameter_name: str


class _Buffer(_Struct, frozen=True):
    arg: _Name
    buffer_name: str


class _Constant(_Struct, frozen=True):
    arg: _Name
    tensor_constant_name: str


class _InputSpec(_Struct, frozen=True):
    user_input: _User | None = None
    parameter: _Parameter | None = None
    buffer: _Buffer | None = None
    tensor_constant: _Constant | None = None


class _OutputSpec(_Struct, frozen=True):
    user_output: _User | None = None


class _Signature(_Struct, frozen=True):
    input_specs: tuple[_InputSpec, ...]
    output_specs: tuple[_OutputSpec, ...]


class _GraphModule(_Struct, frozen=True):
    graph: _Graph
    signature: _Signature


class _Version(_Struct, frozen=True):
    major: int


class _Listed(_Struct, frozen=True):
    schema_version: _Version
    graph_module: _GraphModule


class _VersionOnly(_Struct, frozen=True):
    schema_version: _Version


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
        yield from _values(self.arguments)


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
    made: Mapping[str, Tensor] = field(factory=dict)
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
    raw = _listed(content, place)
    try:
        version = msgspec.json.decode(raw, type=_VersionOnly).schema_version.major
        if version != SCHEMA:
            raise StudyError(
                f"{place} has version {version} of torch's schema, and version {SCHEMA} can be "
                "read; export it anew with a current torch."
            )
        listed = msgspec.json.decode(raw, type=_Listed)
    except (msgspec.MsgspecError, RecursionError) as error:
        why = escape_control_characters(str(error))[:300]
        raise StudyError(
            f"{place} is no program of torch.export ({why}); write it with torch.export.save."
        ) from error
    return _Reader(listed.graph_module, place).program()


def _listed(content: bytes, place: str) -> bytes:
    """Return the list of operations."""
    wrong = f"{place} is no file of torch.export.save"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found = [i for i in archive.infolist() if i.filename.endswith(f"/{_MEMBER}")]
            if len(archive.infolist()) > MAX_MEMBERS or len(found) != 1:
                raise StudyError(
                    f"{wrong}: it has {len(found)} members {_MEMBER}, and needs one; write it with "
                    "a current torch."
                )
            with archive.open(found[0]) as member:
                raw = member.read(MAX_JSON_BYTES + 1)
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        why = escape_control_characters(str(error))[:200]
        raise StudyError(f"{wrong} ({why}); write it with a current torch.") from error
    except EOFError as error:
        raise StudyError(f"{wrong}: it is cut off; write it anew.") from error
    if len(raw) > MAX_JSON_BYTES:
        raise StudyError(
            f"{place} has a list of operations of more than {MAX_JSON_BYTES:,} bytes; export a "
            "smaller network."
        )
    return raw


class _Reader:
    """Reader of the operations of one program."""

    def __init__(self, module: _GraphModule, place: str) -> None:
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

    def _weight(self, spec: _InputSpec) -> Weight | None:
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

    def _step(self, node: _Node) -> Step:
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
        is_fixed = not self._of_images.intersection(_values(arguments))
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

    def _results(self, node: _Node) -> tuple[tuple[str | None, ...], bool]:
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

    def _argument(self, given: _Argument) -> Any:
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

    def _size(self, size: _SymInt) -> Value | int:
        if size.as_int is not None:
            return size.as_int
        return self._value(size.as_name or "")

    def _optional(self, given: _Optional) -> Value | None:
        return None if given.as_tensor is None else self._value(given.as_tensor.name)


def _values(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the values in arguments."""
    for argument in arguments.values():
        for each in argument if isinstance(argument, list) else (argument,):
            if isinstance(each, Value):
                yield each.name


def _modules(stack: str) -> tuple[str, ...]:
    """Return the paths of modules from torch's list of keys, paths and types."""
    entries = (entry.split(",") for entry in stack.split(";"))
    return tuple(
        entry[1]
        for entry in entries
        if len(entry) > 1 and 0 < len(entry[1]) <= MAX_NAME and entry[1].isprintable()
    )
