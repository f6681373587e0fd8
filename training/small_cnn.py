"""A small convolutional network that learns from random weights within minutes on a CPU.

Torchvision's networks need ImageNet weights or hours; demos and tests have neither.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["MEAN", "SIDE", "STD", "SmallCNN"]

SIDE = 112
MEAN = [0.5, 0.5, 0.5]
STD = [0.5, 0.5, 0.5]

WIDTHS = (3, 24, 48, 96, 160)
FEATURES = 192


class SmallCNN(nn.Module):
    """Five plain 3 × 3 convolutions, each but the last followed by a halving; average pooling."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        blocks = []
        for i, (before, after) in enumerate(pairwise(WIDTHS)):
            blocks += [_block(before, after, stride=2 if i == 0 else 1), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*blocks, _block(WIDTHS[-1], FEATURES))
        self.classifier = nn.Linear(FEATURES, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Float [n, 3, h, w] → [n, num_classes]; h and w at least 32."""
        scores: Tensor = self.classifier(torch.mean(self.features(x), dim=(2, 3)))
        return scores


def _block(before: int, after: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
    )
