"""Methods that compare features, so that the teacher may have any classes."""

from __future__ import annotations

import torch
from torch import Tensor

from ickd_lib import losses
from ickd_lib.methods.base import WithLabels
from ickd_lib.methods.context import Context
from ickd_lib.methods.registry import register
from ickd_lib.runtime.arguments import Count, NotNegative


@register("rkd")
class RKD(WithLabels):
    """Relational distillation of the distances and angles in a batch, Park et al. 2019 (arXiv 1904.05068).

    distance, angle: weights of the two terms.
    most: number of samples of which all triples form the angles, S^3 numbers. If there are more samples, as in
        detection, as many are drawn at random.
    """

    needs = frozenset({"teacher", "features"})
    label_space = "any"
    paper = "Park et al. 2019, arXiv 1904.05068"
    code = "megvii-research/mdistiller"

    def __init__(
        self, *, ce: NotNegative = 1.0, distance: NotNegative = 25.0, angle: NotNegative = 50.0, most: Count = 256
    ) -> None:
        super().__init__(ce=ce)
        self.distance, self.angle, self.most = distance, angle, most

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        student, teacher = context.student.features, context.teacher.features
        distance = losses.rkd_distance(student, teacher)
        if len(student) > self.most:
            some = torch.randperm(len(student), device=student.device)[: self.most]
            student, teacher = student[some], teacher[some]
        return {"distance": self.distance * distance, "angle": self.angle * losses.rkd_angle(student, teacher)}


@register("pkt")
class PKT(WithLabels):
    """Probabilistic transfer of the similarities in a batch, Passalis & Tefas 2018 (arXiv 1803.10837).

    pkt: weight of the term.
    """

    needs = frozenset({"teacher", "features"})
    label_space = "any"
    paper = "Passalis & Tefas 2018, arXiv 1803.10837"
    code = "megvii-research/mdistiller"

    def __init__(self, *, ce: NotNegative = 1.0, pkt: NotNegative = 30000.0) -> None:
        super().__init__(ce=ce)
        self.pkt = pkt

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        return {"pkt": self.pkt * losses.pkt(context.student.features, context.teacher.features)}
