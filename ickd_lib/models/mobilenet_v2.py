"""MobileNetV2 at half width (Sandler et al. 2018, arXiv 1801.04381).

It differs from the published network in two ways that suit small images: four layers have stride 2 instead of five, and
its ReLU has no upper bound. Parameter names are those of RepDistiller's and mdistiller's `mobile_half`.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from .network import Network, Output, initialise_classifier, initialise_convolutions

# Expansion of the hidden width, output channels at full width, number of blocks, stride of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """A 1x1 convolution that widens, a depthwise 3x3, and a 1x1 that narrows, without ReLU after the last.

    Shapes: [B, inputs, H, W] to [B, outputs, H / stride, W / stride].
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *_conv(inputs, hidden, 1),
            *_conv(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(Network):
    """MobileNetV2, with D = 1280 features.

    Args:
        width: factor for the channels of every layer except the last convolution.
        num_classes: C.
    """

    stages = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")  # the last stage of each resolution; no ReLU follows it

    def __init__(self, width: float, num_classes: int) -> None:
        super().__init__(num_classes, features_dim=1280)
        inputs = int(32 * width)
        self.conv1 = _conv(3, inputs, 3, stride=2)
        stages = []
        for expansion, channels, depth, stride in STAGES:
            blocks = []
            for position in range(depth):
                outputs = int(channels * width)
                blocks.append(InvertedResidual(inputs, outputs, stride if position == 0 else 1, expansion))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv2 = _conv(inputs, 1280, 1)
        classifier = nn.Linear(1280, num_classes)
        self.classifier = nn.Sequential(classifier)
        initialise_convolutions(self)
        initialise_classifier(classifier)

    def last_map(self, x: Tensor) -> Tensor:
        return self.conv2(self.blocks(self.conv1(x)))

    def forward_normalised(self, x: Tensor) -> Output:
        features = self.last_map(x).mean((2, 3))
        return Output(self.classifier(features), features)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution with batch norm and ReLU: [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


NETWORKS = {"MobileNetV2": partial(MobileNetV2, 0.5)}
