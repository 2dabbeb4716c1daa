"""Methods without a teacher: the labels, and a student that is its own teacher."""

from __future__ import annotations

from torch import Tensor

from ickd_lib import losses
from ickd_lib.methods.base import Context, Method, WithLabels, positive, register, within


@register("ce")
class CrossEntropy(Method):
    """Cross-entropy to the labels: the student alone."""

    def forward(self, context: Context) -> dict[str, Tensor]:
        return {"ce": losses.cross_entropy(context.student.logits, context.batch.targets)}


@register("ls")
class LabelSmoothing(Method):
    """Cross-entropy to smoothed labels, Szegedy et al. 2016; alpha is the weight of the uniform part."""

    def __init__(self, *, alpha: float = 0.1) -> None:
        super().__init__()
        self.alpha = within("alpha", alpha, 0, 1)

    def forward(self, context: Context) -> dict[str, Tensor]:
        return {"ls": losses.label_smoothing(context.student.logits, context.batch.targets, alpha=self.alpha)}


@register("cskd")
class CSKD(WithLabels):
    """Class-wise self-distillation, Yun et al. 2020 (arXiv 2003.13964).

    The student's softened prediction for an image follows its own prediction for another image of the class.
    """

    needs = frozenset({"partner"})

    def __init__(self, *, ce: float = 1.0, kd: float = 1.0, temperature: float = 4.0) -> None:
        super().__init__(ce=ce)
        self.kd, self.temperature = kd, positive("temperature", temperature)

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.partner is not None
        same = losses.kd(context.student.logits, context.partner.logits, temperature=self.temperature)
        return {"kd": self.kd * same}
