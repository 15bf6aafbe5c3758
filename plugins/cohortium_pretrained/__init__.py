"""Features that a small network has learned on public or made-up images, at no cost in privacy.

Tang et al. 2023 (arXiv 2306.06076) learn them on images of random processes; the cells of
`phantom` are procedural, too, and nearer to what hospitals have.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen
from attrs.validators import ge, gt

from cohortium.plugin import Dataset, DataSpec, Model, Offer, StudyError, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

COHORTIUM_API = 1


@frozen(kw_only=True)
class Pretrained:
    """Ring averages of a convolutional network's last maps, and one linear layer over them.

    The network is trained on `images` with their labels, once, and stays as it is.

    Attributes:
        images: Public or made-up images with labels of any kind, such as `phantom`.
        width: Channels of the network's first convolution; the last has four times as many.
        epochs: Passes over `images`.
        seed: Of the network's training.
        norm: Euclidean norm of every image's features.
        weights: A file to keep the trained network in, and to take it from where it is there.
            Sites of a deployment must have the same one: other machines' training differs.

    Guarantees:
        The features of an image depend on that image, on these constants and on `images` alone,
        so they cost no privacy where `images` do not.
    """

    images: Dataset
    width: int = field(default=32, validator=ge(1))
    epochs: int = field(default=6, validator=ge(1))
    seed: int = field(default=1, validator=ge(0))
    norm: float = field(default=70.0, validator=gt(0))
    weights: str = ""

    def prepare(self, images: Tensor) -> Tensor:
        """Features (N, 12·width) of images (N, C, H, W) in [0, 1]; another C is averaged."""
        from cohortium_pretrained._network import Network, pooled

        net: Network = self._network
        channels = net.channels
        if images.shape[1] != channels:
            images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1)
        rows = pooled(net, images.sub(0.5).div(0.5))
        length: Tensor = rows.norm(dim=1, keepdim=True).clamp(min=1e-6)
        return rows * (self.norm / length)

    def build(self, spec: DataSpec, seed: int) -> nn.Module:  # noqa: ARG002
        """The linear layer; at zero, it needs no seed."""
        import torch
        from torch import nn

        with torch.random.fork_rng(devices=[]):
            net = nn.Linear(12 * self.width, len(spec.classes))
        nn.init.zeros_(net.weight)
        nn.init.zeros_(net.bias)
        return net

    @cached_property
    def _network(self) -> Any:  # attrs keeps annotations, to be importable
        """The trained network, from `weights` or from `images`."""
        import torch

        from cohortium.plugin import pretrain
        from cohortium_pretrained._network import Network

        splits = self.images.load()
        spec = splits.spec
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = Network(spec.channels, len(spec.classes), self.width)
        path = Path(self.weights) if self.weights else None
        if path is not None and path.is_file():
            return self._read(net, path)
        pixels = torch.from_numpy(splits.train.images).float().div_(255)
        pretrain(
            net,
            pixels,
            torch.from_numpy(splits.train.labels),
            prepare=lambda images: images.sub(0.5).div(0.5),
            epochs=self.epochs,
            seed=self.seed,
        )
        if path is not None:
            self._write(net, path)
        return net

    @property
    def _named(self) -> str:
        """What the weights were trained with."""
        return hashlib.sha256(repr(evolve(self, weights="", norm=1.0)).encode()).hexdigest()

    def _read(self, net: Any, path: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("trained") != self._named:
                    raise StudyError(
                        f"{path} holds weights that were trained otherwise than model 'pretrained' "
                        "asks; name another file, or take that one away."
                    )
                net.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, RuntimeError, OSError) as error:
            raise StudyError(f"{path} is not a file of this network's weights: {error}.") from error
        return net.eval()

    def _write(self, net: Any, path: Path) -> None:
        from safetensors.torch import save

        from cohortium.plugin import write_whole

        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, save(net.state_dict(), metadata={"trained": self._named}))


@hookimpl
def cohortium_models() -> list[Offer[Model]]:
    """Offer `pretrained`."""
    return [Offer("pretrained", Pretrained, "Features learned on public images, linear head.")]
