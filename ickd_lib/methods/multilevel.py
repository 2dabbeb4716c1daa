"""Methods that compare logits on several levels: each sample, the batch, the classes."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ickd_lib import losses
from ickd_lib.methods.base import WithLabels
from ickd_lib.methods.context import Context
from ickd_lib.methods.registry import register
from ickd_lib.methods.two_classes import note_standardised
from ickd_lib.runtime.arguments import NotNegative, Positive


@register("mlkd")
class MLKD(WithLabels):
    """Multi-level logit distillation: samples, batch and classes, with two views of each image, Jin et al. 2023 (CVPR).

    The second view is strongly augmented. Each term is a sum over five temperatures; as in the official code, only
    cross-entropy and the term of each sample use both views (`losses.mlkd`). With logit standardisation (Sun et al.
    2024), the published settings are "mlkd(instance=9, batch=9, classes=9, temperature=2, standardised=True)".

    ce: weight of cross-entropy, of which the term is the sum over both views.
    instance, batch, classes: weights of the terms of each sample, of the batch and of the classes.
    temperature: first of the five temperatures; the others are 3, 5, 2 and 6.
    standardised: whether the logits in the term of each sample are standardised (z-score) first.
    """

    needs = frozenset({"teacher", "strong"})
    label_space = "shared"
    paper = "Jin, Wang & Lin 2023, CVPR"
    code = "Jin-Ying/Multi-Level-Logit-Distillation"
    version = 2

    def __init__(
        self,
        *,
        ce: NotNegative = 0.1,
        instance: NotNegative = 0.9,
        batch: NotNegative = 0.9,
        classes: NotNegative = 0.9,
        temperature: Positive = 4.0,
        standardised: bool = False,
    ) -> None:
        super().__init__(ce=ce)
        self.weights = {"instance": instance, "batch": batch, "classes": classes}
        self.temperature, self.standardised = temperature, standardised

    def setup(self, student_dim: int, teacher_dim: int, num_classes: int, rows: int) -> None:
        if num_classes == 2 and self.standardised and self.weights["instance"]:
            note_standardised(self, "the term instance has")

    def forward(self, context: Context) -> dict[str, Tensor]:
        assert context.strong is not None
        return super().forward(replace(context, supervised=context.supervised + context.strong.supervised))

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.strong is not None
        second = replace(context, student=context.strong.student, teacher=context.strong.teacher)
        levels = losses.mlkd(
            *context.shared_logits(),
            *second.shared_logits(),
            temperature=self.temperature,
            standardised=self.standardised,
        )
        return {name: w * level for (name, w), level in zip(self.weights.items(), levels, strict=True)}


@register("skd")
class SKD(WithLabels):
    """Streamlined distillation: KD and a whitened distance between similarities in the batch (SKD, CVPR 2026).

    The formulas are those of the official code, in which both terms are multiplied by the share of samples (kd) or
    classes (gram) for which the teacher's confidence is at most the median (`losses.uncertain`).

    kd, gram: weights of the two terms. The published ones are equal; for ResNet32x4 and ResNet8x4 they are 0.5, beside
        ce=0.5.
    temperature: τ of the KD term; 1 on ImageNet.
    tikhonov: λ, added to the variances before the distance is whitened.
    """

    needs = frozenset({"teacher"})
    label_space = "shared"
    paper = "Streamlined Knowledge Distillation 2026, CVPR"
    code = "HyunJunSik/StreamLined"

    def __init__(
        self,
        *,
        ce: NotNegative = 0.1,
        kd: NotNegative = 0.9,
        gram: NotNegative = 0.9,
        temperature: Positive = 4.0,
        tikhonov: Positive = 0.1,
    ) -> None:
        super().__init__(ce=ce)
        self.kd, self.gram = kd, gram
        self.temperature, self.tikhonov = temperature, tikhonov

    def teach(self, context: Context) -> dict[str, Tensor]:
        student, teacher = context.shared_logits()
        samples, classes = losses.uncertain(teacher)
        return {
            "kd": self.kd * samples * losses.kd(student, teacher, temperature=self.temperature),
            "gram": self.gram * classes * losses.skd_gram(student, teacher, tikhonov=self.tikhonov),
        }
