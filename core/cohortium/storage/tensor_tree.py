"""Nested Python values with tensors as one file of safetensors and JSON.

The state of an optimizer, a schedule or a trainer is a tree of dicts, lists and tuples, whose
leaves are tensors and plain values. The file has the tensors, and its header has the tree. The file
is never a pickle.
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
    """Return the content of a file with `tree`, equal for equal trees.

    Raises:
        RunError: The tree has a value that is neither a tensor nor a plain value.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    text = json.dumps(_plain(tree, tensors))
    # One entry, because the order of several would vary.
    return save(tensors, metadata={_TREE: _digest(text, tensors) + text})


def read(path: Path) -> Any:
    """Return the tree in a file that `dumps` made.

    Guarantees:
        The result is the tree that was written, to the last bit, or an error.
        No part of a damaged file is trusted, and nothing in it is executed.

    Raises:
        FileNotFoundError: The file does not exist.
        RunError: The file is damaged, has another format, or cannot be read.
    """
    import torch  # noqa: F401 - safetensors names it without importing it
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
            # Copies, because mapped tensors are lost with the file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        digest, text = header[_TREE][:_DIGEST_LETTERS], header[_TREE][_DIGEST_LETTERS:]
        if digest == _digest(text, tensors):
            return _grown(json.loads(text), tensors)
        why = "its content is not that which was written"
    except FileNotFoundError:
        raise
    except KeyError:
        why = "it has no mark of such a file"
    except (SafetensorError, OSError, TypeError, ValueError, RecursionError) as error:
        why = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    raise RunError(f"{path} is damaged, or is something else: {why}.")


def _plain(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Return `tree` as JSON can represent it, its tensors moved to `tensors`."""
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
        f"a {type(tree).__name__} is state for the next round, but only tensors, numbers, "
        "texts, and dicts, lists and tuples of these can be stored."
    )


def _grown(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the tree from which `_plain` made `node`."""
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
