"""Methods that compare the logits of student and teacher, sample by sample or over the batch."""

from __future__ import annotations

from torch import Tensor

from ickd_lib import losses
from ickd_lib.methods.base import WithLabels
from ickd_lib.methods.context import Context
from ickd_lib.methods.registry import register
from ickd_lib.methods.two_classes import note_others, note_standardised
from ickd_lib.runtime.arguments import Natural, NotNegative, Positive


@register("kd")
class KD(WithLabels):
    """Distillation of the teacher's softened logits, Hinton et al. 2015 (arXiv 1503.02531), beside cross-entropy.

    If teacher and student share only some classes, the logits of these are compared.

    ce, kd: weights of the two terms.
    temperature: τ of both softmaxes.
    standardised: whether the logits are standardised (z-score) first, Sun et al. 2024 (arXiv 2403.01427).
    """

    needs = frozenset({"teacher"})
    label_space = "shared"
    pixelwise = True
    separable = True
    unlabelled = True
    paper = "Hinton, Vinyals & Dean 2015, arXiv 1503.02531"
    code = "megvii-research/mdistiller"

    def __init__(
        self, *, ce: NotNegative = 0.1, kd: NotNegative = 0.9, temperature: Positive = 4.0, standardised: bool = False
    ) -> None:
        super().__init__(ce=ce)
        self.kd, self.temperature, self.standardised = kd, temperature, standardised

    def setup(self, student_dim: int, teacher_dim: int, num_classes: int, rows: int) -> None:
        if num_classes == 2 and self.standardised and self.kd:
            note_standardised(self, "the term kd has")

    def teach(self, context: Context) -> dict[str, Tensor]:
        student, teacher = context.shared_logits()
        same = losses.kd(student, teacher, temperature=self.temperature, standardised=self.standardised)
        return {"kd": self.kd * same}


@register("lskd")
class LSKD(KD):
    """KD with logit standardisation at its published weights, Sun et al. 2024 (arXiv 2403.01427).

    The arguments are those of KD. For DKD and MLKD with logit standardisation, see their argument `standardised`.
    """

    paper = "Sun et al. 2024, arXiv 2403.01427"
    code = "sunshangquan/logit-standardization-KD"

    def __init__(
        self, *, ce: NotNegative = 0.1, kd: NotNegative = 9.0, temperature: Positive = 2.0, standardised: bool = True
    ) -> None:
        super().__init__(ce=ce, kd=kd, temperature=temperature, standardised=standardised)


@register("dkd")
class DKD(WithLabels):
    """Decoupled distillation: separate weights for the target class and for the other classes, Zhao et al. 2022.

    Source: arXiv 2203.08679, eq. 7. With logit standardisation (Sun et al. 2024), both published weights are multiplied
    by another weight for the pair of networks, and the temperature is lower: "dkd(tckd=9, nckd=72, temperature=2,
    standardised=True)" for ResNet32x4 and ResNet8x4.

    tckd, nckd: weights of the term for the target class against the rest, and of the term for the other classes among
        themselves (α and β in the paper; β was published as 2 to 8, depending on the pair: `training.published`).
    temperature: τ of both terms.
    warmup: number of epochs over which both weights rise; in epoch e, counted from 1, they are multiplied by
        min(e / warmup, 1). With 0 they are constant.
    standardised: as for KD.
    """

    needs = frozenset({"teacher"})
    pixelwise = True
    separable = True
    paper = "Zhao et al. 2022, arXiv 2203.08679"
    code = "megvii-research/mdistiller"
    version = 2

    def __init__(
        self,
        *,
        ce: NotNegative = 1.0,
        tckd: NotNegative = 1.0,
        nckd: NotNegative = 8.0,
        temperature: Positive = 4.0,
        warmup: Natural = 20,
        standardised: bool = False,
    ) -> None:
        super().__init__(ce=ce)
        self.tckd, self.nckd, self.temperature = tckd, nckd, temperature
        self.warmup, self.standardised = warmup, standardised

    def setup(self, student_dim: int, teacher_dim: int, num_classes: int, rows: int) -> None:
        if num_classes == 2 and self.standardised:
            note_standardised(self, "the terms tckd and nckd have")
        elif num_classes == 2 and self.nckd:
            note_others(self, "nckd")

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        target, others = losses.dkd(
            context.student.logits,
            context.teacher.logits,
            context.student.labels,
            temperature=self.temperature,
            standardised=self.standardised,
        )
        rise = context.rise(self.warmup)
        return {"tckd": rise * self.tckd * target, "nckd": rise * self.nckd * others}


@register("dist")
class DIST(WithLabels):
    """Correlation with the teacher's probabilities in each sample and in each class, Huang et al. 2022.

    Source: DIST, arXiv 2205.10536.

    inter, intra: weights of the correlation over the classes of a sample, and over the samples for a class.
    temperature: divides the logits before the softmax.
    """

    needs = frozenset({"teacher"})
    label_space = "shared"
    pixelwise = True
    unlabelled = True
    paper = "Huang et al. 2022, arXiv 2205.10536"
    code = "hunto/image_classification_sota"
    version = 2

    def __init__(
        self, *, ce: NotNegative = 1.0, inter: NotNegative = 2.0, intra: NotNegative = 2.0, temperature: Positive = 4.0
    ) -> None:
        super().__init__(ce=ce)
        self.inter, self.intra, self.temperature = inter, intra, temperature

    def teach(self, context: Context) -> dict[str, Tensor]:
        inter, intra = losses.dist(*context.shared_logits(), temperature=self.temperature)
        return {"inter": self.inter * inter, "intra": self.intra * intra}


@register("ckd")
class CKD(WithLabels):
    """Contrast of the two networks' logits between the samples of a batch, Zhu et al. 2024 (arXiv 2404.14109).

    The loss is InfoNCE between the logits of teacher and student: the two outputs for the same sample are a positive
    pair, and the student's outputs for all other samples of the batch are the negatives.

    ckd: weight of the term; published as 100, with other values for some pairs (`training.published`).
    temperature: divides the similarities of the logits.
    """

    needs = frozenset({"teacher"})
    label_space = "shared"
    unlabelled = True
    paper = "Zhu et al. 2024, arXiv 2404.14109"
    code = "ZhouXinzzzzz/CKD"

    def __init__(self, *, ce: NotNegative = 1.0, ckd: NotNegative = 100.0, temperature: Positive = 1.0) -> None:
        super().__init__(ce=ce)
        self.ckd, self.temperature = ckd, temperature

    def teach(self, context: Context) -> dict[str, Tensor]:
        return {"ckd": self.ckd * losses.ckd(*context.shared_logits(), temperature=self.temperature)}


@register("nkd")
class NKD(WithLabels):
    """Normalised distillation: separate terms for the label and the other classes, Yang et al. 2023 (arXiv 2303.13005).

    The defaults were published for ResNet34 and ResNet18 on CIFAR-100; on ImageNet, they are gamma 1.5, temperature 1.

    gamma: γ, the weight of the term of the other classes; the term of the label has weight 1.
    temperature: τ of the term of the other classes.
    """

    needs = frozenset({"teacher"})
    pixelwise = True
    separable = True
    paper = "Yang et al. 2023, arXiv 2303.13005"
    code = "yzd-v/cls_KD"

    def __init__(self, *, ce: NotNegative = 1.0, gamma: NotNegative = 3.5, temperature: Positive = 3.0) -> None:
        super().__init__(ce=ce)
        self.gamma, self.temperature = gamma, temperature

    def setup(self, student_dim: int, teacher_dim: int, num_classes: int, rows: int) -> None:
        if num_classes == 2 and self.gamma:
            note_others(self, "others")

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        target, others = losses.nkd(
            context.student.logits, context.teacher.logits, context.student.labels, temperature=self.temperature
        )
        return {"target": target, "others": self.gamma * others}


@register("ttm")
class TTM(WithLabels):
    """Transformed teacher matching: KD with a temperature for the teacher only, Zheng & Yang 2024 (arXiv 2402.11148).

    The defaults were published for VGG13 and VGG8.

    ttm: weight of the term.
    exponent: γ, the power of the teacher's probabilities; equal to a temperature 1/γ.
    """

    needs = frozenset({"teacher"})
    label_space = "shared"
    pixelwise = True
    separable = True
    unlabelled = True
    paper = "Zheng & Yang 2024, arXiv 2402.11148"
    code = "zkxufo/TTM"

    def __init__(self, *, ce: NotNegative = 1.0, ttm: NotNegative = 45.0, exponent: Positive = 0.1) -> None:
        super().__init__(ce=ce)
        self.ttm, self.exponent = ttm, exponent

    def teach(self, context: Context) -> dict[str, Tensor]:
        return {"ttm": self.ttm * losses.ttm(*context.shared_logits(), exponent=self.exponent)}


@register("wttm")
class WTTM(WithLabels):
    """Transformed teacher matching with more weight where the teacher is uncertain, Zheng & Yang 2024.

    From the paper of TTM (arXiv 2402.11148). The defaults were published for VGG13 and VGG8 beside CRD, as
    "wttm+crd(crd=0.8)".

    wttm: weight of the term.
    exponent: γ, as for TTM; the weight of a sample is the sum of the teacher's probabilities raised to γ.
    """

    needs = frozenset({"teacher"})
    label_space = "shared"
    pixelwise = True
    separable = True
    unlabelled = True
    paper = "Zheng & Yang 2024, arXiv 2402.11148"
    code = "zkxufo/TTM"

    def __init__(self, *, ce: NotNegative = 1.0, wttm: NotNegative = 4.0, exponent: Positive = 0.2) -> None:
        super().__init__(ce=ce)
        self.wttm, self.exponent = wttm, exponent

    def teach(self, context: Context) -> dict[str, Tensor]:
        matched = losses.ttm(*context.shared_logits(), exponent=self.exponent, weighted=True)
        return {"wttm": self.wttm * matched}
