"""Wide residual networks with pre-activation (Zagoruyko and Komodakis 2016, arXiv 1605.07146).

`wrn_N_K` has N = 6n + 4 layers and stages of 16K, 32K and 64K channels. Parameter names are those of
RepDistiller and mdistiller.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from .network import Network, Output, initialise_convolutions


class Block(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution, twice: [B, inputs, H, W] to [B, outputs, H / stride, W / stride].

    If the number of channels changes, the shortcut is a 1x1 convolution of the input after batch norm and ReLU.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut: nn.Conv2d | None = None
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + shortcut


class Stage(nn.Module):
    """Blocks in sequence, the first of which changes the channels and has the stride.

    Shapes: [B, inputs, H, W] to [B, outputs, H / stride, W / stride].
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int) -> None:
        super().__init__()
        rest = [Block(outputs, outputs, stride=1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(Block(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(Network):
    """A wide ResNet.

    Args:
        depth: number of layers, 6n + 4 with n blocks in each stage.
        widen: the factor K of the channels; the number of features is 64K.
        num_classes: C.
    """

    stages = ("block1", "block2", "block3")  # the maps are the values before batch norm and ReLU

    def __init__(self, depth: int, widen: int, num_classes: int) -> None:
        super().__init__(num_classes, features_dim=64 * widen)
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Stage(16, 16 * widen, blocks, stride=1)
        self.block2 = Stage(16 * widen, 32 * widen, blocks, stride=2)
        self.block3 = Stage(32 * widen, 64 * widen, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, num_classes)
        initialise_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def last_map(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return F.relu(self.bn1(x))

    def forward_normalised(self, x: Tensor) -> Output:
        features = self.last_map(x).mean((2, 3))
        return Output(self.fc(features), features)


NETWORKS = {f"wrn_{d}_{k}": partial(WideResNet, d, k) for d in (16, 40) for k in (1, 2)}
