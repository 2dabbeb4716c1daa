"""ShuffleNetV2 at width 1 (Ma et al. 2018, arXiv 1807.11164).

The stem is a 1x1 convolution without pooling, which suits small images. Parameter names are those of RepDistiller's and
mdistiller's `ShuffleV2`.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .network import Network, Output

STEM = 24


class Block(nn.Module):
    """Three convolutions transform the second half of the channels; then both halves are shuffled.

    Shapes: [B, width, H, W] to [B, width, H, W].
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        right = F.relu(self.bn1(self.conv1(right)))
        right = self.bn2(self.conv2(right))
        right = F.relu(self.bn3(self.conv3(right)))
        return F.channel_shuffle(torch.cat([left, right], 1), 2)


class DownBlock(nn.Module):
    """Two branches with stride 2, each of which takes all channels and computes half of the outputs.

    Shapes: [B, inputs, H, W] to [B, outputs, H / 2, W / 2].
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = nn.Conv2d(inputs, inputs, 3, stride=2, padding=1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)))
        return F.channel_shuffle(torch.cat([left, right], 1), 2)


class ShuffleNetV2(Network):
    """ShuffleNetV2.

    Args:
        widths: channels of the three stages and of the last 1x1 convolution; the last of them is D.
        depths: number of blocks in each of the three stages, including the one with stride 2.
        num_classes: C.
    """

    stages = ("layer1", "layer2", "layer3")

    def __init__(self, widths: tuple[int, int, int, int], depths: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(num_classes, features_dim=widths[3])
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = _stage(STEM, widths[0], depths[0])
        self.layer2 = _stage(widths[0], widths[1], depths[1])
        self.layer3 = _stage(widths[1], widths[2], depths[2])
        self.conv2 = nn.Conv2d(widths[2], widths[3], 1, bias=False)
        self.bn2 = nn.BatchNorm2d(widths[3])
        self.linear = nn.Linear(widths[3], num_classes)

    def last_map(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return F.relu(self.bn2(self.conv2(x)))

    def forward_normalised(self, x: Tensor) -> Output:
        features = self.last_map(x).mean((2, 3))
        return Output(self.linear(features), features)


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    """Return blocks in sequence, the first of which changes the channels and has stride 2."""
    return nn.Sequential(DownBlock(inputs, outputs), *(Block(outputs) for _ in range(blocks - 1)))


NETWORKS = {"ShuffleV2": partial(ShuffleNetV2, (116, 232, 464, 1024), (4, 8, 4))}
