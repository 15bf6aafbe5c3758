"""Training on public or made-up images, before a study: it costs no privacy.

Plain mini-batch training in one process.  What comes of it depends on the arguments and on this
build of torch, device and thread count; elsewhere other bits come of it, so that parties who need
equal weights pass them on in a file.
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
    """Train `net` in place with AdamW, one cycle of the learning rate (Smith and Topin 2018).

    Args:
        net: From prepared images to logits; left in evaluation mode.
        images: Shape (N, C, H, W), in [0, 1]; H = W where they are to be turned.
        labels: Shape (N,).
        prepare: What is done to images that have been altered (`augment`).
        epochs: Passes over them.
        seed: Of the order and the alterations.
        learning_rate: At its highest.
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
                logits = net(prepare(augment(images[batch], generator)))
                optimizer.zero_grad()
                functional.cross_entropy(logits, labels[batch]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                course.step()
    net.eval()


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W) turned, mirrored, and stained, lit and exposed otherwise.

    Made-up images are all of one kind; what is learned should not hang on it.
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
    if images.shape[2] == images.shape[3]:
        out = out.rot90(turns % TURNS, (2, 3))
    return out.flip(3) if turns >= TURNS else out
