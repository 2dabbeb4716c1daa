"""Methods that compare features or maps, so that the teacher may have any classes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ickd_lib import losses
from ickd_lib.methods.base import Context, WithLabels, positive
from ickd_lib.methods.registry import register


@register("rkd")
class RKD(WithLabels):
    """Relational distillation of the distances and angles in a batch, Park et al. 2019 (arXiv 1904.05068).

    distance, angle: weights of the two terms.
    """

    needs = frozenset({"teacher", "features"})
    label_space = "any"

    def __init__(self, *, ce: float = 1.0, distance: float = 25.0, angle: float = 50.0) -> None:
        super().__init__(ce=ce)
        self.distance, self.angle = distance, angle

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        student, teacher = context.student.features, context.teacher.features
        return {
            "distance": self.distance * losses.rkd_distance(student, teacher),
            "angle": self.angle * losses.rkd_angle(student, teacher),
        }


@register("pkt")
class PKT(WithLabels):
    """Probabilistic transfer of the similarities in a batch, Passalis & Tefas 2018 (arXiv 1803.10837).

    pkt: weight of the term.
    """

    needs = frozenset({"teacher", "features"})
    label_space = "any"

    def __init__(self, *, ce: float = 1.0, pkt: float = 30000.0) -> None:
        super().__init__(ce=ce)
        self.pkt = pkt

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        return {"pkt": self.pkt * losses.pkt(context.student.features, context.teacher.features)}


@register("sp")
class SP(WithLabels):
    """Similarity-preserving distillation of the last stage's maps, Tung & Mori 2019 (arXiv 1907.09682).

    sp: weight of the term.
    """

    needs = frozenset({"teacher", "maps"})
    label_space = "any"

    def __init__(self, *, ce: float = 1.0, sp: float = 3000.0) -> None:
        super().__init__(ce=ce)
        self.sp = sp

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        return {"sp": self.sp * losses.sp(context.student.maps[-1], context.teacher.maps[-1])}


@register("at")
class AT(WithLabels):
    """Attention transfer: the spatial attention maps of all stages, Zagoruyko & Komodakis 2017 (arXiv 1612.03928).

    at: weight of the term.
    """

    needs = frozenset({"teacher", "maps"})
    label_space = "any"

    def __init__(self, *, ce: float = 1.0, at: float = 1000.0) -> None:
        super().__init__(ce=ce)
        self.at = at

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        return {"at": self.at * losses.attention_transfer(context.student.maps, context.teacher.maps)}


@register("crd")
class CRD(WithLabels):
    """Contrastive representation distillation, Tian et al. 2020 (arXiv 1910.10699).

    The student's embedding of a sample is contrasted with the teacher's embedding of the same sample (the positive) and
    with those of samples of other classes (the negatives), all taken from the memory bank. Both embeddings are learned
    linear maps of the features. Of the paper's two directions only the one against the teacher's memory is computed.

    crd: weight of the term.
    negatives: number of rows that are drawn from the bank in each step and shared by the batch.
    dim: number of features of the embeddings.
    temperature: divides the cosine similarities.
    """

    needs = frozenset({"bank"})
    label_space = "any"
    log_normaliser: Tensor

    def __init__(
        self, *, ce: float = 1.0, crd: float = 0.8, negatives: int = 16384, dim: int = 128, temperature: float = 0.07
    ) -> None:
        super().__init__(ce=ce)
        self.crd, self.temperature = crd, positive("temperature", temperature)
        self.negatives, self.dim = positive("negatives", int(negatives)), positive("dim", int(dim))

    def setup(self, student_dim: int, teacher_dim: int, num_classes: int, rows: int) -> None:
        self.student_embedding = nn.Linear(student_dim, self.dim)
        self.teacher_embedding = nn.Linear(teacher_dim, self.dim)
        # The normaliser is estimated in the first step and constant afterwards.
        self.register_buffer("log_normaliser", torch.tensor(math.nan))

    def teach(self, context: Context) -> dict[str, Tensor]:
        bank, labels = context.bank, context.student.labels
        assert bank is not None
        drawn = torch.randint(len(bank), (min(self.negatives, len(bank)),), device=labels.device)
        student = F.normalize(self.student_embedding(context.student.features), dim=1)
        positives = F.normalize(self.teacher_embedding(bank.features[bank.rows(context.student.key)]), dim=1)
        negatives = F.normalize(self.teacher_embedding(bank.features[drawn]), dim=1)
        other = bank.labels[drawn] != labels[:, None]
        with torch.no_grad():
            scores = (student @ negatives.T / self.temperature).masked_fill(~other, -torch.inf)
            estimate = scores.flatten().logsumexp(0) - other.sum().log() + math.log(len(bank))
            self.log_normaliser.copy_(torch.where(self.log_normaliser.isnan(), estimate, self.log_normaliser))
        contrast = losses.crd(
            student,
            positives,
            negatives,
            other,
            rows=len(bank),
            log_normaliser=self.log_normaliser,
            temperature=self.temperature,
        )
        return {"crd": self.crd * contrast}
