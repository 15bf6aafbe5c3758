"""Training on public or synthetic images before a study.

It costs no privacy.  It is plain mini-batch training in one process.  The result depends on the
arguments and on this build of torch, the device and the thread count.  Elsewhere its bits differ.
So parties that need equal weights must exchange them in a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor, nn

BATCH = 64
TURNS = 4


def pretrain(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    prepare: Callable[[Tensor], Tensor],
    epochs: int,
    seed: int,
    learning_rate: float = 4e-3,
) -> None:
    """Train `net` in place with AdamW.

    The learning rate runs through one cycle (Smith and Topin 2018).

    Args:
        net: From preprocessed images to logits, (N, K) or (N, K, H, W).  It ends in evaluation
            mode.
        images: Shape (N, C, H, W), in [0, 1].  H = W where the training turns them.
        labels: Shape (N,), or (N, H, W) with a class for each pixel.  Those turn with the images.
        prepare: Preprocessing of the altered images (`augment`).
        epochs: Passes over the images.
        seed: Seed of the order and the alterations.
        learning_rate: The highest learning rate.
    """
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=1e-3)
    steps = epochs * -(-len(images) // BATCH)
    course = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1)
    net.train()
    with torch.enable_grad():
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(len(images), generator=generator), BATCH):
                altered, answers = augment(images[batch], labels[batch], generator)
                optimizer.zero_grad()
                functional.cross_entropy(net(prepare(altered)), answers).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                course.step()
    net.eval()


def augment(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images (N, C, H, W) with random turns, mirroring and colours, and their labels.

    Labels of pixels, (N, H, W), are turned and mirrored with their image.

    The colours change as under another stain, light and exposure.  Synthetic images are all of one
    kind, and the learned weights should not depend on it.
    """
    import torch

    n, channels = images.shape[:2]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    power = 0.15 * normal(n, channels, 1, 1) + 0.3 * normal(n, 1, 1, 1)
    mixing = torch.eye(channels) + 0.12 * normal(n, channels, channels)
    mixing = mixing / mixing.sum(2, keepdim=True).clamp_(min=0.2)
    out = torch.einsum("nij,njhw->nihw", mixing, images.clamp(0.02, 1) ** power.exp())
    out = out.clamp_(0, 1) + 0.02 * normal(n, 1, 1, 1) * normal(*images.shape)
    turns = int(torch.randint(2 * TURNS, (1,), generator=generator))
    return _turn(out, turns), _turn(labels, turns) if labels.ndim == images.ndim - 1 else labels


def _turn(planes: Tensor, turns: int) -> Tensor:
    """Return planes (…, H, W) after so many quarter turns, from the fourth on mirrored."""
    if planes.shape[-2] == planes.shape[-1]:
        planes = planes.rot90(turns % TURNS, (-2, -1))
    return planes.flip(-1) if turns >= TURNS else planes
