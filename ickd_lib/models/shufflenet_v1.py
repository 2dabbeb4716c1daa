"""ShuffleNetV1 with three groups (Zhang et al. 2017, arXiv 1707.01083).

The stem is a 1x1 convolution without pooling, which suits small images. Parameter names are those of RepDistiller's and
mdistiller's `ShuffleV1`.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .network import Network, Output

STEM, GROUPS = 24, 3


class Block(nn.Module):
    """A grouped 1x1 convolution, a channel shuffle, a depthwise 3x3 and a grouped 1x1 convolution.

    Shapes: [B, inputs, H, W] to [B, outputs, H / stride, W / stride]. With stride 1 the input is added to the result.
    With stride 2 the average-pooled input is concatenated to it, as the last `inputs` of the output channels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        computed = outputs if stride == 1 else outputs - inputs
        hidden = computed // 4
        self.groups = 1 if inputs == STEM else GROUPS  # the stem has too few channels for groups
        self.conv1 = nn.Conv2d(inputs, hidden, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, computed, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(computed)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.channel_shuffle(out, self.groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.stride == 1:
            return F.relu(out + x)
        return F.relu(torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], 1))


class ShuffleNetV1(Network):
    """ShuffleNetV1.

    Args:
        widths: channels of the three stages; the last of them is D.
        depths: number of blocks in each of the three stages.
        num_classes: C.
    """

    stages = ("layer1", "layer2", "layer3")

    def __init__(self, widths: tuple[int, int, int], depths: tuple[int, int, int], num_classes: int) -> None:
        super().__init__(num_classes, features_dim=widths[2])
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = _stage(STEM, widths[0], depths[0])
        self.layer2 = _stage(widths[0], widths[1], depths[1])
        self.layer3 = _stage(widths[1], widths[2], depths[2])
        self.linear = nn.Linear(widths[2], num_classes)

    def last_map(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_normalised(self, x: Tensor) -> Output:
        features = self.last_map(x).mean((2, 3))
        return Output(self.linear(features), features)


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    """Return blocks in sequence, the first of which changes the channels and has stride 2."""
    rest = [Block(outputs, outputs, stride=1) for _ in range(blocks - 1)]
    return nn.Sequential(Block(inputs, outputs, stride=2), *rest)


NETWORKS = {"ShuffleV1": partial(ShuffleNetV1, (240, 480, 960), (4, 8, 4))}
