"""VGG with batch norm and a linear classifier (Simonyan and Zisserman 2014, arXiv 1409.1556).

The output of the last of the five blocks is averaged over space and enters one linear layer instead of three.
Parameter names are those of RepDistiller and mdistiller.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from .network import Network, Output, initialise_classifier, initialise_convolutions

WIDTHS = (64, 128, 256, 512, 512)


class VGG(Network):
    """A VGG, with D = 512 features.

    Args:
        depths: number of convolutions in each of the five blocks.
        num_classes: C.
    """

    stages = ("block0", "block1", "block2", "block3", "block4")  # the maps are the values before ReLU and pooling

    def __init__(self, depths: tuple[int, int, int, int, int], num_classes: int) -> None:
        super().__init__(num_classes, features_dim=WIDTHS[-1])
        inputs = (3, *WIDTHS[:-1])
        blocks = [_block(*shape) for shape in zip(inputs, WIDTHS, depths, strict=True)]
        self.block0, self.block1, self.block2, self.block3, self.block4 = blocks
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        initialise_convolutions(self)
        initialise_classifier(self.classifier)

    def last_map(self, x: Tensor) -> Tensor:
        pools = 4 if x.shape[2] >= 64 else 3  # as in the published code, the fourth pooling is for larger images only
        for index, block in enumerate((self.block0, self.block1, self.block2, self.block3, self.block4)):
            x = F.relu(block(x))
            if index < pools and min(x.shape[2:]) > 1:
                x = F.max_pool2d(x, 2)
        return x

    def forward_normalised(self, x: Tensor) -> Output:
        features = self.last_map(x).mean((2, 3))
        return Output(self.classifier(features), features)


def _block(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """Return 3x3 convolutions with batch norm, with a ReLU after each but the last: [B, outputs, H, W]."""
    layers: list[nn.Module] = []
    for position in range(depth):
        width = inputs if position == 0 else outputs
        layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


NETWORKS = {
    "vgg8": partial(VGG, (1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, (1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, (2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, (2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, (2, 2, 4, 4, 4)),
}
