"""Methods that compare the logits of student and teacher, sample by sample or over the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from ickd_lib import losses
from ickd_lib.methods.base import Context, WithLabels, positive, within
from ickd_lib.methods.registry import register


@register("kd")
class KD(WithLabels):
    """Distillation of the teacher's softened logits, Hinton et al. 2015, beside cross-entropy.

    If teacher and student share only some classes, the logits of these are compared.

    ce, kd: weights of the two terms.
    temperature: τ of both softmaxes.
    standardised: whether the logits are standardised (z-score) first, Sun et al. 2024 (arXiv 2403.01427).
    """

    needs = frozenset({"teacher"})
    label_space = "shared"

    def __init__(
        self, *, ce: float = 0.1, kd: float = 0.9, temperature: float = 4.0, standardised: bool = False
    ) -> None:
        super().__init__(ce=ce)
        self.kd, self.temperature, self.standardised = kd, positive("temperature", temperature), standardised

    def teach(self, context: Context) -> dict[str, Tensor]:
        student, teacher = context.shared_logits()
        same = losses.kd(student, teacher, temperature=self.temperature, standardised=self.standardised)
        return {"kd": self.kd * same}


@register("lskd")
class LSKD(KD):
    """KD with logit standardisation at its published weights, Sun et al. 2024 (arXiv 2403.01427); see KD."""

    def __init__(
        self, *, ce: float = 0.1, kd: float = 9.0, temperature: float = 2.0, standardised: bool = True
    ) -> None:
        super().__init__(ce=ce, kd=kd, temperature=temperature, standardised=standardised)


@register("dkd")
class DKD(WithLabels):
    """Decoupled distillation, Zhao et al. 2022 (arXiv 2203.08679, eq. 7).

    tckd, nckd: weights of the term for the target class against the rest, and of the term for the other classes among
        themselves (α and β in the paper; β was published as 2 to 8, depending on the pair: `training.published`).
    temperature: τ of both terms.
    warmup: share of the training over which both weights rise from 0 (published: 20 of 240 epochs).
    standardised: as for KD.
    """

    needs = frozenset({"teacher"})

    def __init__(
        self,
        *,
        ce: float = 1.0,
        tckd: float = 1.0,
        nckd: float = 8.0,
        temperature: float = 4.0,
        warmup: float = 1 / 12,
        standardised: bool = False,
    ) -> None:
        super().__init__(ce=ce)
        self.tckd, self.nckd, self.temperature = tckd, nckd, positive("temperature", temperature)
        self.warmup, self.standardised = within("warmup", warmup, 0, 1), standardised

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        target, others = losses.dkd(
            context.student.logits,
            context.teacher.logits,
            context.student.labels,
            temperature=self.temperature,
            standardised=self.standardised,
        )
        rise = torch.as_tensor(context.progress / self.warmup).clamp(max=1) if self.warmup else 1.0
        return {"tckd": rise * self.tckd * target, "nckd": rise * self.nckd * others}


@register("dist")
class DIST(WithLabels):
    """Distillation of relations within and between classes, Huang et al. 2022 (arXiv 2205.10536).

    inter, intra: weights of the correlation over the classes of a sample, and over the samples for a class.
    temperature: divides the logits before the softmax.
    """

    needs = frozenset({"teacher"})
    label_space = "shared"

    def __init__(self, *, ce: float = 1.0, inter: float = 2.0, intra: float = 2.0, temperature: float = 4.0) -> None:
        super().__init__(ce=ce)
        self.inter, self.intra, self.temperature = inter, intra, positive("temperature", temperature)

    def teach(self, context: Context) -> dict[str, Tensor]:
        inter, intra = losses.dist(*context.shared_logits(), temperature=self.temperature)
        return {"inter": self.inter * inter, "intra": self.intra * intra}


@register("mlkd")
class MLKD(WithLabels):
    """Multi-level logit distillation, Jin et al. 2023: alignment of each sample, of the batch and of the classes.

    instance, batch, classes: weights of the three terms; each term is a mean over five temperatures.
    standardised: as for KD.
    """

    needs = frozenset({"teacher"})
    label_space = "shared"

    def __init__(
        self,
        *,
        ce: float = 1.0,
        instance: float = 1.0,
        batch: float = 1.0,
        classes: float = 1.0,
        standardised: bool = False,
    ) -> None:
        super().__init__(ce=ce)
        self.weights, self.standardised = {"instance": instance, "batch": batch, "classes": classes}, standardised

    def teach(self, context: Context) -> dict[str, Tensor]:
        levels = losses.mlkd(*context.shared_logits(), standardised=self.standardised)
        return {name: w * level for (name, w), level in zip(self.weights.items(), levels, strict=True)}


@register("ckd")
class CKD(WithLabels):
    """Sample-wise contrastive distillation, Zhu et al. 2024 (arXiv 2404.14109).

    InfoNCE between the logits of teacher and student: the two outputs for the same sample are a positive pair, and the
    student's outputs for all other samples of the batch are the negatives.

    ckd: weight of the term; published as 100, with other values for some pairs (`training.published`).
    temperature: divides the similarities of the logits.
    """

    needs = frozenset({"teacher"})
    label_space = "shared"

    def __init__(self, *, ce: float = 1.0, ckd: float = 100.0, temperature: float = 1.0) -> None:
        super().__init__(ce=ce)
        self.ckd, self.temperature = ckd, positive("temperature", temperature)

    def teach(self, context: Context) -> dict[str, Tensor]:
        return {"ckd": self.ckd * losses.ckd(*context.shared_logits(), temperature=self.temperature)}
