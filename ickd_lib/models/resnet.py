"""The CIFAR ResNets: three stages of basic blocks (He et al. 2015, arXiv 1512.03385, section 4.2).

`resnetN` has N = 6n + 2 layers and stages of 16, 32 and 64 channels. `resnetNx4` has a stem of 32 channels and stages
of 64, 128 and 256 channels. Parameter names are those of RepDistiller and mdistiller.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from .network import Network, Output, initialise_convolutions


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet(Network):
    """A CIFAR ResNet.

    Args:
        depth: number of layers, 6n + 2 with n blocks in each stage.
        widths: channels of the stem and of the three stages; the last of them is D.
        num_classes: C.
    """

    stages = ("layer1", "layer2", "layer3")

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__(num_classes, features_dim=widths[3])
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        initialise_convolutions(self)

    def last_map(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_normalised(self, x: Tensor) -> Output:
        features = self.last_map(x).mean((2, 3))
        return Output(self.fc(features), features)


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    """Return blocks in sequence, the first of which changes the channels and has the stride."""
    rest = [Block(outputs, outputs, stride=1) for _ in range(blocks - 1)]
    return nn.Sequential(Block(inputs, outputs, stride), *rest)


NETWORKS = {
    **{f"resnet{n}": partial(ResNet, n, (16, 16, 32, 64)) for n in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{n}x4": partial(ResNet, n, (32, 64, 128, 256)) for n in (8, 32)},
}
