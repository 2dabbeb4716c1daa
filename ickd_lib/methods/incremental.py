"""Methods of incremental learning: a student that has new classes beside those of its teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from ickd_lib import losses
from ickd_lib.methods.base import WithLabels
from ickd_lib.methods.context import Context
from ickd_lib.methods.registry import register
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import NotNegative, Positive


@register("lwf")
class LwF(WithLabels):
    """Learning without forgetting: new classes are added to those of the teacher, Li & Hoiem 2016 (arXiv 1606.09282).

    Cross-entropy of an image of a new class is computed among the new classes only, so that it does not lower the
    logits of the old ones, which the teacher's soft labels preserve. That of an image of an old class is computed among
    the old classes only. The term of the soft labels is a cross-entropy without τ² (`losses.lwf`), as in FACIL, the
    code of a survey of incremental learning. If images of old classes are kept, FACIL computes the cross-entropy of
    every image among all classes (`separate=False`).

    ce, kd: weights of the two terms.
    temperature: τ of the soft labels.
    separate: whether cross-entropy compares new classes with new ones and old classes with old ones only.
    """

    needs = frozenset({"teacher"})
    label_space = "shared"
    pixelwise = True
    separable = True
    paper = "Li & Hoiem 2016, arXiv 1606.09282"
    code = "mmasana/FACIL"
    version = 2

    def __init__(
        self, *, ce: NotNegative = 1.0, kd: NotNegative = 1.0, temperature: Positive = 2.0, separate: bool = True
    ) -> None:
        super().__init__(ce=ce)
        self.kd, self.temperature, self.separate = kd, temperature, separate
        self.one_class = separate

    def forward(self, context: Context) -> dict[str, Tensor]:
        if context.common is None or not self.separate:
            return super().forward(context)
        student, labels = context.student, context.student.labels
        if student.soft is not None:
            raise InputError("lwf needs images of one class each; leave mixup and cutmix out")
        old = torch.zeros_like(student.logits[0], dtype=torch.bool).index_fill(0, context.common[0], True)
        apart = student.logits.masked_fill(old != old[labels, None], -torch.inf)
        ce = {"ce": self.ce * losses.cross_entropy(apart, labels)} if self.ce else {}
        return ce | self.teach(context)

    def teach(self, context: Context) -> dict[str, Tensor]:
        student, teacher = context.shared_logits()
        return {"kd": self.kd * losses.lwf(student, teacher, temperature=self.temperature)}
