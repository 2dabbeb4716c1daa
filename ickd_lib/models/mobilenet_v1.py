"""MobileNetV1 (Howard et al. 2017, arXiv 1704.04861), the small student of ImageNet in the distillation literature.

Its strides are for images of 224 pixels, of which the last map has 7 x 7 positions. Parameter names and the
initialisation, which is that of torch, are those of mdistiller's `MobileNetV1`. With 1000 classes it has 4.2 million
parameters.
"""

from __future__ import annotations

from torch import Tensor, nn

from .network import Network, Output

WIDTH = 32  # channels of the first convolution
# Output channels and stride of each depthwise-separable block.
BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)


class MobileNetV1(Network):
    """A 3x3 convolution with stride 2 and 13 depthwise-separable blocks, with D = 1024 features.

    Args:
        num_classes: C.
    """

    stages = ("model.3", "model.5", "model.11", "model.13")  # the last block of each resolution, from stride 4 on
    activations = tuple(f"{stage}.5" for stage in stages)
    pooled = "model.13"

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, features_dim=1024)
        inputs, parts = WIDTH, [nn.Sequential(*_conv(3, WIDTH, 3, 2))]
        for outputs, stride in BLOCKS:
            parts.append(nn.Sequential(*_conv(inputs, inputs, 3, stride, groups=inputs), *_conv(inputs, outputs, 1)))
            inputs = outputs
        self.model = nn.Sequential(*parts)
        self.fc = nn.Linear(inputs, num_classes)

    def forward_normalised(self, x: Tensor) -> Output:
        features = self.model(x).mean((2, 3))
        return Output(self.fc(features), features)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> tuple[nn.Module, ...]:
    """Return a convolution, its batch norm and ReLU: [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU()


NETWORKS = {"MobileNetV1": MobileNetV1}
