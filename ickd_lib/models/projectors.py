"""Small networks that bring a student's maps to the shape of a teacher's. They are used in training only.

Shapes of maps are (channels, height, width), as `models.map_shapes` returns them.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int, int]


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that uses its running statistics for a batch with one value per channel, which has no variance.

    This happens when the last batch of an epoch has one image, and the map a single position.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.numel() == input.shape[1]:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


def regressor(student: Shape, teacher: Shape) -> nn.Sequential:
    """Return a convolution from the shape of the student's map to that of the teacher's, with batch norm and ReLU.

    A map of twice the teacher's size has a convolution with stride 2, and a map of half its size a transposed
    convolution. Any other map that is at least as large has a convolution whose kernel is so large that the size
    becomes the teacher's. In all other cases the sizes stay different, and the larger map must be averaged down
    (`losses.hint`). Source: the regressor that RepDistiller and mdistiller use for FitNet.
    """
    (inputs, *size), (outputs, *target) = student, teacher
    larger = [1 + have - want for have, want in zip(size, target, strict=True)]
    if size == [2 * side for side in target]:
        convolution: nn.Module = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    elif [2 * side for side in size] == target:
        convolution = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
    elif min(larger) >= 1:
        convolution = nn.Conv2d(inputs, outputs, (larger[0], larger[1]))
    else:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
    return nn.Sequential(convolution, BatchNorm(outputs), nn.ReLU())


def pointwise(inputs: int, outputs: int) -> nn.Sequential:
    """Return three 1x1 convolutions with ReLU between them: [B, inputs, H, W] to [B, outputs, H, W].

    Source: the regressor of variational information distillation (Ahn et al. 2019, arXiv 1904.05835).
    """
    widths = (inputs, outputs, outputs, outputs)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 1, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def bottleneck(inputs: int, outputs: int, factor: int) -> nn.Sequential:
    """Return 1x1, 3x3 and 1x1 convolutions, each with batch norm and ReLU: [B, inputs, H, W] to [B, outputs, H, W].

    Source: the projector of SimKD (Chen et al. 2022, arXiv 2203.14001).

    Args:
        inputs, outputs: numbers of channels.
        factor: the number of hidden channels is `outputs` divided by it.
    """
    hidden = max(1, outputs // factor)
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, 1, bias=False),
        BatchNorm(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, hidden, 3, padding=1, bias=False),
        BatchNorm(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, outputs, 1, bias=False),
        BatchNorm(outputs),
        nn.ReLU(),
    )


class Fusion(nn.Module):
    """Attention-based fusion (ABF) of a student's map with the fused map of the deeper stages, for knowledge review.

    Source: Chen et al. 2021, arXiv 2104.09044, section 3.3.

    Args:
        inputs: channels of the student's map.
        hidden: channels of the fused maps.
        outputs: channels of the teacher's map.
        fuse: whether there is a deeper stage.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, *, fuse: bool) -> None:
        super().__init__()
        first = nn.Conv2d(inputs, hidden, 1, bias=False)
        last = nn.Conv2d(hidden, outputs, 3, padding=1, bias=False)
        for convolution in (first, last):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.enter = nn.Sequential(first, BatchNorm(hidden))
        self.leave = nn.Sequential(last, BatchNorm(outputs))
        self.attention = nn.Sequential(nn.Conv2d(2 * hidden, 2, 1), nn.Sigmoid()) if fuse else None

    def forward(self, x: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Fuse one map.

        Args:
            x: the student's map, [B, inputs, H, W].
            deeper: the fused map of the next deeper stage, [B, hidden, any, any]; None for the deepest.
            size: height and width (h, w) of the teacher's map.
        Returns:
            The student's map in the teacher's shape, [B, outputs, h, w], and the fused map, [B, hidden, h, w].
        """
        x = self.enter(x)
        if self.attention is not None:
            assert deeper is not None
            deeper = F.interpolate(deeper, x.shape[2:])
            own, other = self.attention(torch.cat([x, deeper], 1)).split(1, 1)
            x = own * x + other * deeper
        if x.shape[2:] != size:
            x = F.interpolate(x, size)
        return self.leave(x), x
