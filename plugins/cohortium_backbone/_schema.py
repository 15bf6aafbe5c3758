"""The list of operations of a `torch.export` program, strictly decoded.

`torch.export.load` unpickles parts of a file, and evaluates text of it as Python.  So this module
reads the file itself.  A `.pt2` file is a zip archive.  Its member `models/model.json` lists the
operations of the program in torch's own schema.  Only that member is read.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import Final, Literal

import msgspec

from cohortium.plugin import StudyError, escape_control_characters

MAX_JSON_BYTES: Final = 1 << 26
"""Largest list of operations: 64 MiB."""

MAX_MEMBERS: Final = 1 << 16

SCHEMA: Final = 8
"""Major version of torch's schema."""

_MEMBER: Final = "models/model.json"

_UNREADABLE: Final = (
    OSError,
    RuntimeError,  # it is encrypted, or packed in a way that zipfile does not know
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Errors that zipfile raises over damaged files. They are the known ones."""

_Number = float | Literal["Infinity", "-Infinity", "NaN"]


class _Struct(msgspec.Struct, frozen=True):
    """Part of the list.  Fields that the program does not need are ignored."""


class Name(_Struct, frozen=True):
    name: str


class SymInt(_Struct, frozen=True):
    as_name: str | None = None
    as_int: int | None = None


class OptionalTensor(_Struct, frozen=True):
    as_tensor: Name | None = None
    as_none: bool | None = None


class Device(_Struct, frozen=True):
    type: str


class Argument(_Struct, frozen=True):
    """A value of one kind, in the field of that kind."""

    as_none: bool | None = None
    as_tensor: Name | None = None
    as_tensors: tuple[Name, ...] | None = None
    as_int: int | None = None
    as_ints: tuple[int, ...] | None = None
    as_float: _Number | None = None
    as_floats: tuple[_Number, ...] | None = None
    as_string: str | None = None
    as_sym_int: SymInt | None = None
    as_sym_ints: tuple[SymInt, ...] | None = None
    as_scalar_type: int | None = None
    as_memory_format: int | None = None
    as_layout: int | None = None
    as_device: Device | None = None
    as_bool: bool | None = None
    as_bools: tuple[bool, ...] | None = None
    as_sym_bool: _Struct | None = None
    as_optional_tensor: OptionalTensor | None = None
    as_optional_tensors: tuple[OptionalTensor, ...] | None = None


class Input(_Struct, frozen=True):
    name: str
    arg: Argument


class Node(_Struct, frozen=True):
    target: str
    inputs: tuple[Input, ...]
    outputs: tuple[Argument, ...]
    metadata: dict[str, str] = {}


class Size(_Struct, frozen=True):
    as_int: int | None = None


class Meta(_Struct, frozen=True):
    dtype: int
    sizes: tuple[Size, ...]


class Graph(_Struct, frozen=True):
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    nodes: tuple[Node, ...]
    tensor_values: dict[str, Meta]


class User(_Struct, frozen=True):
    arg: Argument


class Parameter(_Struct, frozen=True):
    arg: Name
    parameter_name: str


class Buffer(_Struct, frozen=True):
    arg: Name
    buffer_name: str


class Constant(_Struct, frozen=True):
    arg: Name
    tensor_constant_name: str


class InputSpec(_Struct, frozen=True):
    user_input: User | None = None
    parameter: Parameter | None = None
    buffer: Buffer | None = None
    tensor_constant: Constant | None = None


class OutputSpec(_Struct, frozen=True):
    user_output: User | None = None


class Signature(_Struct, frozen=True):
    input_specs: tuple[InputSpec, ...]
    output_specs: tuple[OutputSpec, ...]


class GraphModule(_Struct, frozen=True):
    graph: Graph
    signature: Signature


class _Version(_Struct, frozen=True):
    major: int


class _Listed(_Struct, frozen=True):
    schema_version: _Version
    graph_module: GraphModule


class _VersionOnly(_Struct, frozen=True):
    schema_version: _Version


def read_graph_module(content: bytes, place: str) -> GraphModule:
    """Return the list of operations in the content of a `.pt2` file.

    Args:
        content: The file's content.
        place: The file's name in an error.

    Guarantees:
        No part of the content is unpickled, imported, compiled or evaluated as an expression.

    Raises:
        StudyError: It is no such file, or of another version.
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
    return listed.graph_module


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
    except _UNREADABLE as error:
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
