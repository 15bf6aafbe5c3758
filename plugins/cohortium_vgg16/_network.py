"""The layers of VGG-16."""

from __future__ import annotations

import torch
from torch import nn

MAX_GROUPS = 32
"""Groups of a GroupNorm, if there are twice as many channels."""

STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
"""Channels of a stage as a multiple of the width, and the number of its convolutions."""

HIDDEN = 64
"""Units of a hidden linear layer as a multiple of the width."""

CONVOLUTIONS: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
POOLS: dict[int, type[nn.MaxPool2d | nn.MaxPool3d]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
MEANS: dict[int, type[nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d]] = {
    2: nn.AdaptiveAvgPool2d,
    3: nn.AdaptiveAvgPool3d,
}
"""Layers by the number of axes."""


class Network(nn.Module):
    """VGG-16, which returns logits (N, classes) from images (N, C, *size)."""

    def __init__(
        self, channels: int, classes: int, width: int, pooled_size: int, dropout: float, *,
        rank: int,
    ) -> None:  # fmt: skip
        super().__init__()
        layers: list[nn.Module] = []
        for multiple, convolutions in STAGES:
            outputs = multiple * width
            for _ in range(convolutions):
                convolution = CONVOLUTIONS[rank](channels, outputs, 3, padding=1, bias=False)
                nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
                layers += [convolution, nn.GroupNorm(_groups(outputs), outputs), nn.ReLU()]
                channels = outputs
            # A side is rounded up, so that images of 28 pixels survive five poolings.
            layers.append(POOLS[rank](2, ceil_mode=True))
        self.stages = nn.Sequential(*layers)
        self.mean = MEANS[rank](pooled_size)
        hidden = HIDDEN * width
        self.hidden = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(channels * pooled_size**rank, hidden), nn.ReLU(), nn.Dropout(dropout)),
            *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout)),
        )
        self.head = nn.Linear(hidden, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        logits: torch.Tensor = self.head(self.hidden(self.mean(self.stages(images))))
        return logits


def _groups(channels: int) -> int:
    """Return the most groups up to 32 that divide the channels into two or more.

    After the last pooling a channel may be one number, which would be normalised to zero alone.
    """
    most = min(MAX_GROUPS, max(1, channels // 2))
    return next(g for g in range(most, 0, -1) if channels % g == 0)
