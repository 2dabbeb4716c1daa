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


@register("pskd")
class PSKD(Method):
    """Progressive self-distillation, Kim et al. 2021 (arXiv 2006.12000).

    The labels are softened by what the student itself said of each image when it saw it last; alpha is the weight of
    that at the end of the training, to which it rises from 0.
    """

    needs = frozenset({"earlier"})

    def __init__(self, *, alpha: float = 0.8) -> None:
        super().__init__()
        self.alpha = within("alpha", alpha, 0, 1)

    def forward(self, context: Context) -> dict[str, Tensor]:
        assert context.earlier is not None
        logits, alpha = context.student.logits, self.alpha * context.progress
        soft = losses.cross_entropy(logits, context.earlier.output.logits.detach().softmax(1))
        return {
            "ce": (1 - alpha) * losses.cross_entropy(logits, context.batch.targets),
            "earlier": alpha * soft,
        }


@register("tfkd")
class TfKD(Method):
    """A virtual teacher that is right with a given confidence, Yuan et al. 2020 (arXiv 1909.11723), Tf-KD_reg.

    (1 - alpha) CE + alpha τ² KL(p^d_τ ‖ p^S_τ), with this project's τ². The paper's other half, a teacher that is the
    same network trained before (Tf-KD_self), is `kd` with that teacher.

    correct: the teacher's probability of the label; the other classes share the rest.
    """

    def __init__(self, *, alpha: float = 0.1, temperature: float = 20.0, correct: float = 0.99) -> None:
        super().__init__()
        self.alpha, self.temperature = within("alpha", alpha, 0, 1), positive("temperature", temperature)
        self.correct = within("correct", correct, 0.001, 0.999999)

    def forward(self, context: Context) -> dict[str, Tensor]:
        logits, targets = context.student.logits, context.batch.targets
        teacher = losses.virtual_teacher(context.batch.labels, logits.shape[1], correct=self.correct)
        return {
            "ce": (1 - self.alpha) * losses.cross_entropy(logits, targets),
            "virtual": self.alpha * losses.kd(logits, teacher, temperature=self.temperature),
        }
