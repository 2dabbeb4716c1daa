"""A student with its teacher's classifier behind a projector (SimKD; Chen et al. 2022, arXiv 2203.14001)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .network import Network, Output
from .projectors import bottleneck


class Reused(Network):
    """A network that contains a student, a projector of its last map, and a frozen classifier.

    The projected map, which is averaged to the features, has the size of the teacher's, unless the student's is
    smaller. The student's own classifier is not used and stays as it was initialised. The network is therefore larger
    than the student: by the projector and by the teacher's classifier.

    Args:
        student: the student, which is not copied; its name and preprocessing become the network's.
        channels: number of channels of the student's last map.
        features: number of features of the teacher, D.
        size: height and width of the map that the teacher averages to its features.
        factor: the projector has D / factor hidden channels.
        bias: whether the classifier has a bias.
        teacher: the teacher's name.
    Attributes:
        maps: those of the student, with its pre-activations; `unpooled` is the projected map [B, D, H, W].
    """

    def __init__(
        self,
        student: Network,
        *,
        channels: int,
        features: int,
        size: Sequence[int],
        factor: int,
        bias: bool,
        teacher: str,
    ) -> None:
        super().__init__(student.num_classes, features)
        given: dict[str, Any] = {"channels": channels, "features": features, "size": list(size), "factor": factor}
        self.added = {"reused": given | {"bias": bias, "teacher": teacher}}
        self.student, self.size = student, (size[0], size[1])
        self.projector = bottleneck(channels, features, factor)
        self.classifier = nn.Linear(features, student.num_classes, bias=bias).requires_grad_(False)
        self.name, self.classes, self.trained_on = student.name, student.classes, student.trained_on
        self.stages = tuple(f"student.{stage}" for stage in student.stages)
        self.mean.copy_(student.mean)
        self.std.copy_(student.std)

    def forward_normalised(self, x: Tensor) -> Output:
        output = self._forward_with_maps(x)
        return Output(output.logits, output.features)

    def _forward_with_maps(self, x: Tensor) -> Output:
        output = self.student._forward_with_maps(x)
        last = output.maps[-1]
        size = (min(last.shape[2], self.size[0]), min(last.shape[3], self.size[1]))
        if last.shape[2:] != size:
            last = F.adaptive_avg_pool2d(last, size)
        unpooled = self.projector(last)
        features = unpooled.mean((2, 3))
        return output._replace(logits=self.classifier(features), features=features, unpooled=unpooled)
