"""Methods without a teacher: from the labels alone, or from the student's own outputs."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from ickd_lib import losses, models
from ickd_lib.methods.base import Method, WithLabels
from ickd_lib.methods.context import Context
from ickd_lib.methods.registry import register
from ickd_lib.methods.two_classes import note_others
from ickd_lib.models import Network
from ickd_lib.runtime.arguments import Bound, NotNegative, Positive, Share


@register("ce")
class CrossEntropy(Method):
    """Training with the task's own loss alone (for classification, cross-entropy with the labels)."""

    separable = True
    unlabelled = True

    def forward(self, context: Context) -> dict[str, Tensor]:
        return {"ce": context.supervised}


Probability = Annotated[float, Bound(lambda value: 0.001 <= value <= 0.999999, "from 0.001 to 0.999999")]


@register("finetune")
class FineTune(CrossEntropy):
    """Cross-entropy for a pretrained network: the classifier is trained first, then all layers.

    The statistics of batch normalisation follow the new images from the beginning.

    head: share of the training in which only the classifier is trained. The schedule of the learning rate begins anew
        after it.
    rate: learning rate of all other layers after it, relative to that of the classifier.
    """

    def __init__(self, *, head: Share = 0.2, rate: Positive = 0.1) -> None:
        super().__init__()
        self.restarts = (head,)
        self.embedding_rates = (0.0, rate)


@register("ls")
class LabelSmoothing(Method):
    """Cross-entropy with smoothed labels, Szegedy et al. 2016 (arXiv 1512.00567).

    alpha: weight of the uniform distribution in the targets.
    """

    pixelwise = True
    separable = True
    paper = "Szegedy et al. 2016, arXiv 1512.00567"

    def __init__(self, *, alpha: Share = 0.1) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, context: Context) -> dict[str, Tensor]:
        return {"ls": losses.label_smoothing(context.student.logits, context.student.targets, alpha=self.alpha)}


@register("cskd")
class CSKD(WithLabels):
    """Self-distillation from the student's prediction for a random image of the same class, Yun et al. 2020.

    The paper (arXiv 2003.13964) calls this class-wise self-distillation. The student's softened prediction for an image
    is matched to its own prediction for a random image of the same class. As in the authors' code, that may be another
    view of the image itself.

    ce, kd: weights of the two terms.
    temperature: temperature of the predictions.
    """

    needs = frozenset({"partner"})
    separable = True
    paper = "Yun et al. 2020, arXiv 2003.13964"
    code = "alinlab/cs-kd"
    version = 2

    def __init__(self, *, ce: NotNegative = 1.0, kd: NotNegative = 1.0, temperature: Positive = 4.0) -> None:
        super().__init__(ce=ce)
        self.kd, self.temperature = kd, temperature

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.partner is not None
        same = losses.kd(context.student.logits, context.partner.logits, temperature=self.temperature)
        return {"kd": self.kd * same}


@register("pskd")
class PSKD(Method):
    """Self-distillation from the student's prediction for the image in the epoch before, Kim et al. 2021.

    The paper (arXiv 2006.12000) calls this progressive self-distillation. The targets mix the labels with the student's
    own prediction for each sample in the epoch before. In epoch e of n, counted from 1, the weight of that prediction
    is alpha · e / n. In the first epoch, which has no epoch before, the targets are the labels.

    alpha: weight of that prediction in the last epoch.
    """

    needs = frozenset({"earlier"})
    paper = "Kim et al. 2021, arXiv 2006.12000"
    code = "lgcnsai/PS-KD-Pytorch"
    version = 2

    def __init__(self, *, alpha: Share = 0.8) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, context: Context) -> dict[str, Tensor]:
        assert context.earlier is not None
        alpha = self.alpha * (context.epoch + 1) / context.epochs * (context.epoch > 0)
        soft = losses.cross_entropy(context.student.logits, context.earlier.output.logits.detach().softmax(1))
        return {
            "ce": (1 - alpha) * context.supervised,
            "earlier": alpha * soft,
        }


@register("tfkd")
class TfKD(Method):
    """Regularisation by a virtual teacher with a fixed probability of the label, Tf-KD_reg, Yuan et al. 2020.

    Source: arXiv 1909.11723. The loss is (1 - alpha) CE + alpha · multiplier · KL / C, with C classes; the KL term has
    no τ² (`losses.tfkd`). The defaults are the authors' for ResNet18 on CIFAR-100. The paper's second method, in which
    the teacher is the same network trained before (Tf-KD_self), is `kd` with that teacher.

    alpha: weight of the virtual teacher.
    temperature: τ, by which the virtual teacher's probabilities are divided before a softmax.
    multiplier: further factor of the virtual teacher's term.
    correct: the virtual teacher's probability of the label; the other classes share the rest equally.
    """

    pixelwise = True
    separable = True
    paper = "Yuan et al. 2020, arXiv 1909.11723"
    code = "yuanli2333/Teacher-free-Knowledge-Distillation"
    version = 2

    def __init__(
        self,
        *,
        alpha: Share = 0.1,
        temperature: Positive = 20.0,
        multiplier: NotNegative = 100.0,
        correct: Probability = 0.99,
    ) -> None:
        super().__init__()
        self.alpha, self.temperature = alpha, temperature
        self.multiplier, self.correct = multiplier, correct

    def forward(self, context: Context) -> dict[str, Tensor]:
        virtual = losses.tfkd(
            context.student.logits, context.student.labels, temperature=self.temperature, correct=self.correct
        )
        return {
            "ce": (1 - self.alpha) * context.supervised,
            "virtual": self.alpha * self.multiplier * virtual,
        }


@register("uskd")
class USKD(WithLabels):
    """Self-distillation with soft labels that follow from the student's own outputs, USKD, Yang et al. 2023.

    The paper (arXiv 2303.13005) calls this universal self-distillation. The soft label of the sample's class follows
    from the student's confidence. Those of the other classes follow Zipf's law, in an order that the student's logits
    determine together with weak logits. The latter are a trained linear layer on the maps of the stage before the last,
    averaged over the positions (in a network with one stage, on the maps of that stage); see `losses.uskd`. With mixup
    and cutmix the class of an image is the one with the larger share; the authors' code uses both.

    alpha, beta: weights of the terms of the sample's class and of the other classes.
    mu: weight of the weak logits' cross-entropy. (Published for ImageNet: alpha 1, beta 0.1, mu 0.005.)
    """

    needs = frozenset({"maps"})
    paper = "Yang et al. 2023, arXiv 2303.13005"
    code = "yzd-v/cls_KD"

    def __init__(
        self, *, ce: NotNegative = 1.0, alpha: NotNegative = 0.1, beta: NotNegative = 0.1, mu: NotNegative = 0.1
    ) -> None:
        super().__init__(ce=ce)
        self.alpha, self.beta, self.mu = alpha, beta, mu

    def adapt(self, student: Network, teacher: Network | None, size: tuple[int, int]) -> Network:
        self.channels, *_ = models.map_shapes(student, size)[-2:][0]
        return student

    def setup(self, student_dim: int, teacher_dim: int, num_classes: int, rows: int) -> None:
        self.weak = nn.Linear(self.channels, num_classes)
        if num_classes == 2 and self.beta:
            note_others(self, "others", instead="tfkd")

    def teach(self, context: Context) -> dict[str, Tensor]:
        student = context.student
        weak = self.weak(student.maps[-2:][0].mean((2, 3)))[student.image]
        target, others, supervision = losses.uskd(student.logits, weak, student.labels)
        return {"target": self.alpha * target, "others": self.beta * others, "weak": self.mu * supervision}
