"""Nested Python values with tensors in them as one file: safetensors and JSON, never a pickle.

What an optimizer, a schedule or a trainer keeps is a tree of dicts, lists and tuples whose leaves
are tensors and plain values.  The tensors are those of the file; the tree stands in its header.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from cohortium.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

_TREE = "cohortium"
"""The header's entry: the digest, and the tree as JSON."""

_DIGEST_LETTERS = 64


def dumps(tree: Any) -> bytes:
    """The content of a file that holds `tree`; equal trees give equal bytes.

    Raises:
        RunError: It holds something else than tensors and plain values.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    text = json.dumps(_plain(tree, tensors))
    # One entry: several would stand in an order of their own.
    return save(tensors, metadata={_TREE: _digest(text, tensors) + text})


def read(path: Path) -> Any:
    """The tree in a file that `dumps` made.

    Guarantees:
        It is the tree that was written, to the last bit, or an error: no part of a damaged file
        is believed, and nothing in it is executed.

    Raises:
        FileNotFoundError: There is none.
        RunError: It is damaged, is something else, or cannot be read.
    """
    import torch  # noqa: F401 - safetensors names it without importing it
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
            # Copies: what is mapped goes with the file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        digest, text = header[_TREE][:_DIGEST_LETTERS], header[_TREE][_DIGEST_LETTERS:]
        if digest == _digest(text, tensors):
            return _grown(json.loads(text), tensors)
        why = "its content is not what was written"
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        why = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    raise RunError(f"{path} is damaged, or is something else: {why}.")


def _plain(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """`tree` as JSON can hold it, its tensors moved to `tensors`."""
    import torch

    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if isinstance(tree, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = tree.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"dict": [[_plain(k, tensors), _plain(v, tensors)] for k, v in tree.items()]}
    if isinstance(tree, list | tuple):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [_plain(value, tensors) for value in tree]}
    raise RunError(
        f"a {type(tree).__name__} is to be kept for the next round, but only tensors, numbers, "
        "texts, and dicts, lists and tuples of these can be written down."
    )


def _grown(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `_plain` has made `node` of."""
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {_grown(k, tensors): _grown(v, tensors) for k, v in value}
    parts = [_grown(part, tensors) for part in value]
    return {"list": parts, "tuple": tuple(parts)}[kind]


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    import torch

    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
