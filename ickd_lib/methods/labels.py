"""Methods without a teacher: from the labels alone, or from the student's own outputs."""

from __future__ import annotations

from torch import Tensor

from ickd_lib import losses
from ickd_lib.methods.base import Context, Method, WithLabels, positive, within
from ickd_lib.methods.registry import register


@register("ce")
class CrossEntropy(Method):
    """Training with the task's own loss alone (for classification, cross-entropy with the labels)."""

    def forward(self, context: Context) -> dict[str, Tensor]:
        return {"ce": context.supervised}


@register("ls")
class LabelSmoothing(Method):
    """Cross-entropy with smoothed labels, Szegedy et al. 2016 (arXiv 1512.00567).

    alpha: weight of the uniform distribution in the targets.
    """

    def __init__(self, *, alpha: float = 0.1) -> None:
        super().__init__()
        self.alpha = within("alpha", alpha, 0, 1)

    def forward(self, context: Context) -> dict[str, Tensor]:
        return {"ls": losses.label_smoothing(context.student.logits, context.student.targets, alpha=self.alpha)}


@register("cskd")
class CSKD(WithLabels):
    """Class-wise self-distillation, Yun et al. 2020 (arXiv 2003.13964).

    The student's softened prediction for an image is matched to its own prediction for another image of the same class.

    ce, kd: weights of the two terms.
    temperature: temperature of the predictions.
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

    The targets mix the labels with the student's own prediction for each sample in the epoch before.

    alpha: weight of that prediction at the end of the training, to which it rises linearly from 0.
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
            "ce": (1 - alpha) * context.supervised,
            "earlier": alpha * soft,
        }


@register("tfkd")
class TfKD(Method):
    """A virtual teacher with a fixed probability of the label, Yuan et al. 2020 (arXiv 1909.11723), Tf-KD_reg.

    The loss is (1 - alpha) CE + alpha τ² KL(p^d_τ ‖ p^S_τ), with this project's τ². The paper's second method, in which
    the teacher is the same network trained before (Tf-KD_self), is `kd` with that teacher.

    alpha: weight of the virtual teacher.
    temperature: τ.
    correct: the virtual teacher's probability of the label; the other classes share the rest equally.
    """

    def __init__(self, *, alpha: float = 0.1, temperature: float = 20.0, correct: float = 0.99) -> None:
        super().__init__()
        self.alpha, self.temperature = within("alpha", alpha, 0, 1), positive("temperature", temperature)
        self.correct = within("correct", correct, 0.001, 0.999999)

    def forward(self, context: Context) -> dict[str, Tensor]:
        logits = context.student.logits
        teacher = losses.virtual_teacher(context.student.labels, logits.shape[1], correct=self.correct)
        return {
            "ce": (1 - self.alpha) * context.supervised,
            "virtual": self.alpha * losses.kd(logits, teacher, temperature=self.temperature),
        }
