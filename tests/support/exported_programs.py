"""Small networks as programs of `torch.export` with their weights, for tests of `backbone`."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block with batch normalisation and operations in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.relu_(self.norm(self.conv(x)))
        return y + x


class Net(nn.Module):
    """A network with a constant, a depthwise convolution, and all usual kinds of layers."""

    scale: Tensor

    def __init__(self, width: int = 4, outputs: int = 6) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1), nn.GroupNorm(2, width), nn.ReLU6()
        )
        self.block = Block(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding="same", groups=width)
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(width, outputs)
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.depthwise(self.block(self.stem(images)))
        x = self.norm(x.mean((2, 3)).reshape(images.shape[0], -1) * self.scale)
        out: Tensor = self.out(self.drop(x))
        return out


def network(seed: int = 0) -> Net:
    """Return a network in evaluation mode, with statistics of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net()
        for _ in range(3):
            net(torch.rand(8, 3, 16, 16))
    return net.eval()


def exported(net: nn.Module, size: int = 16, *, has_batch: bool = True) -> bytes:
    """Return the content of a file of `torch.export.save`."""
    shapes: Any = ({0: torch.export.Dim("batch")},) if has_batch else None
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        program = torch.export.export(net, (torch.zeros(2, 3, size, size),), dynamic_shapes=shapes)
        torch.export.save(program, file)
    return file.getvalue()


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network, with buffers that it does not save."""
    return {**net.state_dict(), **dict(net.named_buffers())}


def pinned(path: Path, content: bytes) -> str:
    """Write a file, and return its SHA-256."""
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def parameters(folder: Path, net: nn.Module | None = None, **more: Any) -> dict[str, Any]:
    """Write both files of a network, and return the model's parameters."""
    net = network() if net is None else net
    program, weights = folder / "net.pt2", folder / "net.safetensors"
    return {
        "program": str(program),
        "program_sha256": pinned(program, exported(net)),
        "weights": str(weights),
        "weights_sha256": pinned(weights, save(weights_of(net))),
        "size": 16,
        **more,
    }


def altered(content: bytes, change: Any) -> bytes:
    """Return a program whose list of operations `change` has altered."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for item in old.infolist():
            raw = old.read(item)
            if item.filename.endswith("models/model.json"):
                listed = json.loads(raw)
                change(listed)
                raw = json.dumps(listed).encode()
            new.writestr(item.filename, raw)
    return out.getvalue()
