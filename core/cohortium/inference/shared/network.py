"""The operations of a network as public data, and the owner's weights for them.

`torch.export` follows the network's code. A step that depends on the image is computed on shares.
A step on weights alone, such as the standardisation of a kernel, is computed by the owner. The list
of steps has shapes and names, and no weight.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen

from cohortium.errors import NetworkError
from cohortium.text import escape_control_characters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn
    from torch.fx import Node

IMAGE: Final = "image"

IDENTITIES: Final = frozenset({"dropout", "dropout_", "detach", "clone", "contiguous", "alias"})
"""Operations that change nothing in evaluation mode."""

IMAGE_AXES: Final = 4
SPATIAL: Final = [2, 3]


@frozen(eq=False)
class SharedNetwork:
    """A network's public operations, and its weights.

    Attributes:
        graph: The operations, in the form that `party.network` reads.
        weights: Weights by their name in the operations. A clinic has other values, and uses none.
    """

    graph: Mapping[str, Any]
    weights: Mapping[str, Tensor] = field(repr=False)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return the weights for a party's process."""
        return {name: tensor.float().contiguous().numpy() for name, tensor in self.weights.items()}


def read_network(net: nn.Module, shape: tuple[int, ...]) -> SharedNetwork:
    """Return the operations of a network for one preprocessed image of a shape (C, H, W).

    Raises:
        NetworkError: The network has an operation that cannot be computed on shares.
    """
    import torch

    if len(shape) != IMAGE_AXES - 1:
        raise _refused(f"takes inputs with {len(shape)} axes, and not images")
    try:
        with torch.no_grad():
            image = torch.zeros(1, *shape)
            # A trace in training mode would have the operations of a training.
            program = torch.export.export(net.eval(), (image,))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise _refused(
            f"cannot be traced ({type(error).__name__}: {escape_control_characters(reason)})"
        ) from error
    signature = program.graph_signature
    sources = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = {**program.state_dict, **program.constants}
    reader = _Reader(shape)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            name = sources.get(node.name) or signature.inputs_to_lifted_tensor_constants.get(
                node.name
            )
            if name is None:
                reader.images[node] = IMAGE
            else:
                reader.fixed[node] = constants[name].detach()
        elif node.op == "call_function":
            with torch.no_grad():
                reader.read(node)
        else:
            (outputs,) = node.args
            output = reader.image_of(outputs[0]) if len(outputs) == 1 else None
            if output is None:
                raise _refused("has not one output")
            reader.output = output
    return reader.result()


def _refused(fault: str) -> NetworkError:
    return NetworkError(
        f"the network {fault}, and cannot be computed on shares; use a model of convolutions, "
        "normalisations, ReLU, pooling and linear layers on images with two axes."
    )


class _Reader:
    """The steps of a program, while they are read."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.images: dict[Node, str] = {}
        self.fixed: dict[Node, Any] = {}
        self.weights: dict[str, Tensor] = {}
        self.steps: list[dict[str, Any]] = []
        self.output = ""

    def image_of(self, value: Any) -> str | None:
        """Return the name of a value that depends on the image."""
        import torch

        return self.images.get(value) if isinstance(value, torch.fx.Node) else None

    def result(self) -> SharedNetwork:
        weights = [
            {"name": name, "shape": list(tensor.shape)} for name, tensor in self.weights.items()
        ]
        graph = {
            "image": [1, *self.shape],
            "weights": weights,
            "steps": self.steps,
            "output": self.output,
        }
        # A round trip shows that it is plain data.
        return SharedNetwork(json.loads(json.dumps(graph)), self.weights)

    def read(self, node: Node) -> None:
        """Compute a step on weights, or list a step on the image."""
        from torch.fx.node import map_arg

        if not any(each in self.images for each in node.all_input_nodes):
            arguments = map_arg((node.args, node.kwargs), self.fixed.__getitem__)
            self.fixed[node] = node.target(*arguments[0], **arguments[1])  # type: ignore[operator]
            return
        name = str(node.target).removeprefix("aten.").partition(".")[0]
        given = _arguments(node)
        if name in IDENTITIES and not (name.startswith("dropout") and given["train"]):
            self.images[node] = self.images[node.all_input_nodes[0]]
            return
        read = _READERS.get(name.removesuffix("_"))
        if read is None:
            raise _refused(f"has the operation '{name}'")
        read(self, node, given)

    def add(
        self, node: Node, operation: str, values: list[Any], weights: list[Any], **parameters: Any
    ) -> None:
        """List a step.

        Args:
            node: Its node.
            operation: Its name at the parties.
            values: Nodes that depend on the image.
            weights: Tensors, or nodes of weights.
            parameters: Public parameters.
        """
        names = [self.image_of(value) for value in values]
        if None in names:
            raise _refused(f"has the operation '{operation}' with a weight in place of an image")
        names += [self._weight(each) for each in weights]
        output = f"value{len(self.steps)}"
        self.images[node] = output
        self.steps.append(
            {"operation": operation, "inputs": names, "output": output, "parameters": parameters}
        )

    def _weight(self, value: Any) -> str:
        tensor = self.tensor(value)
        for name, known in self.weights.items():
            if known is tensor:
                return name
        name = f"weight{len(self.weights)}"
        self.weights[name] = tensor
        return name

    def tensor(self, value: Any) -> Tensor:
        """Return the tensor of a node of weights."""
        import torch

        found = self.fixed.get(value) if isinstance(value, torch.fx.Node) else value
        if not isinstance(found, torch.Tensor):
            raise _refused("computes a weight from the image")
        return found


def _arguments(node: Node) -> dict[str, Any]:
    """Return the arguments of a call by name, with their defaults."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        raise _refused(f"has the operation '{node.target}'")
    found = {each.name: each.default_value for each in schema.arguments}
    found |= {each.name: value for each, value in zip(schema.arguments, node.args, strict=False)}
    return found | dict(node.kwargs)


def _pair(value: Any) -> list[int]:
    """Return a parameter of two axes, which torch also writes as one number."""
    found = [value] if isinstance(value, int) else list(value)
    return [int(each) for each in (found * 2 if len(found) == 1 else found)]


def _given(*values: Any) -> list[Any]:
    return [value for value in values if value is not None]


def _conv2d(reader: _Reader, node: Node, given: dict[str, Any]) -> None:
    if isinstance(given["padding"], str) or given["groups"] != 1:
        raise _refused("has a convolution with groups, or with padding by name")
    if _pair(given["dilation"]) != [1, 1]:
        raise _refused("has a dilated convolution")
    weights = _given(given["weight"], given["bias"])
    stride, padding = _pair(given["stride"]), _pair(given["padding"])
    reader.add(node, "conv2d", [given["input"]], weights, stride=stride, padding=padding)


def _group_norm(reader: _Reader, node: Node, given: dict[str, Any]) -> None:
    affine = (given["weight"], given["bias"])
    reader.add(
        node,
        "group_norm",
        [given["input"]],
        _given(*affine),
        groups=given["num_groups"],
        epsilon=given["eps"],
        weighted=[each is not None for each in affine],
    )


def _batch_norm(reader: _Reader, node: Node, given: dict[str, Any]) -> None:
    import torch

    if given["training"] or given["running_mean"] is None:
        raise _refused("has a normalisation over the batch")
    mean, variance = reader.tensor(given["running_mean"]), reader.tensor(given["running_var"])
    factor = torch.rsqrt(variance.double() + given["eps"])
    if given["weight"] is not None:
        factor = factor * reader.tensor(given["weight"])
    shift = -mean * factor
    if given["bias"] is not None:
        shift = shift + reader.tensor(given["bias"])
    reader.add(node, "scale", [given["input"]], [factor, shift])


def _relu(reader: _Reader, node: Node, given: dict[str, Any]) -> None:
    reader.add(node, "relu", [given["self"]], [])


def _add(reader: _Reader, node: Node, given: dict[str, Any]) -> None:
    if given["alpha"] != 1:
        raise _refused("has a sum with a factor")
    reader.add(node, "add", [given["self"], given["other"]], [])


def _max_pool2d(reader: _Reader, node: Node, given: dict[str, Any]) -> None:
    if _pair(given["dilation"]) != [1, 1]:
        raise _refused("has a dilated pooling")
    kernel = _pair(given["kernel_size"])
    reader.add(
        node,
        "max_pool2d",
        [given["self"]],
        [],
        kernel=kernel,
        stride=_pair(given["stride"] or kernel),
        padding=_pair(given["padding"]),
        size=[int(each) for each in node.meta["val"].shape[2:]],
    )


def _adaptive_avg_pool2d(reader: _Reader, node: Node, given: dict[str, Any]) -> None:
    if _pair(given["output_size"]) != [1, 1]:
        raise _refused("has an adaptive pooling to more than one value")
    reader.add(node, "mean", [given["self"]], [], axes=SPATIAL, keep=True)


def _reduction(operation: str) -> Callable[[_Reader, Node, dict[str, Any]], None]:
    def read(reader: _Reader, node: Node, given: dict[str, Any]) -> None:
        axes = sorted(axis % IMAGE_AXES for axis in given["dim"] or ())
        if axes != SPATIAL or len(node.args[0].meta["val"].shape) != IMAGE_AXES:  # type: ignore[union-attr]
            raise _refused(f"has the operation '{operation}' over other axes than height and width")
        keep = bool(given["keepdim"])
        reader.add(node, operation, [given["self"]], [], axes=SPATIAL, keep=keep)

    return read


def _flatten(reader: _Reader, node: Node, given: dict[str, Any]) -> None:
    value = given["self"]
    if tuple(node.meta["val"].shape) != (1, value.meta["val"].numel()):
        raise _refused("changes the shape of its maps")
    reader.add(node, "flatten", [value], [])


def _linear(reader: _Reader, node: Node, given: dict[str, Any]) -> None:
    reader.add(node, "linear", [given["input"]], _given(given["weight"], given["bias"]))


_READERS: Final[Mapping[str, Callable[[_Reader, Node, dict[str, Any]], None]]] = {
    "conv2d": _conv2d,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
    "relu": _relu,
    "add": _add,
    "max_pool2d": _max_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "mean": _reduction("mean"),
    "amax": _reduction("amax"),
    "flatten": _flatten,
    "view": _flatten,
    "reshape": _flatten,
    "linear": _linear,
}
