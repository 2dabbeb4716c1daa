"""Methods that compare features, so that the teacher may have any classes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ickd_lib import losses
from ickd_lib.methods.base import Context, WithLabels, positive, within
from ickd_lib.methods.registry import register


@register("rkd")
class RKD(WithLabels):
    """Relational distillation of the distances and angles in a batch, Park et al. 2019 (arXiv 1904.05068).

    distance, angle: weights of the two terms.
    """

    needs = frozenset({"teacher", "features"})
    label_space = "any"
    paper = "Park et al. 2019, arXiv 1904.05068"
    code = "megvii-research/mdistiller"

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
    paper = "Passalis & Tefas 2018, arXiv 1803.10837"
    code = "megvii-research/mdistiller"

    def __init__(self, *, ce: float = 1.0, pkt: float = 30000.0) -> None:
        super().__init__(ce=ce)
        self.pkt = pkt

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        return {"pkt": self.pkt * losses.pkt(context.student.features, context.teacher.features)}


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


@register("refilled")
class REFILLED(WithLabels):
    """REFILLED: relationship matching, then local classifiers, Ye, Lu, Zhan 2022 (arXiv 2205.01915).

    Phase 1 trains the embedding alone: for the semi-hard tuples of the batch, the student's comparison of distances
    is matched to the teacher's. Phase 2 trains all layers with cross-entropy and with a classifier that the teacher's
    class means induce among the classes of the batch. The paper trains 200 + 200 epochs.

    embedding, local: weights of the two terms (published: 1000 and 100 without τ², which are 62.5 and 25 with it).
    rate: learning rate of the embedding in phase 2, relative to the classifier's.
    share: share of the training that phase 1 takes; with 0 or 1 there is only one phase.
    margin: largest difference of distances at which a negative counts as semi-hard.
    embedding_temperature, local_temperature: τ of the two terms.
    """

    needs = frozenset({"teacher", "features", "bank"})
    label_space = "any"

    def __init__(
        self,
        *,
        ce: float = 1.0,
        embedding: float = 62.5,
        local: float = 25.0,
        rate: float = 0.1,
        share: float = 0.5,
        margin: float = 0.2,
        embedding_temperature: float = 4.0,
        local_temperature: float = 2.0,
    ) -> None:
        super().__init__(ce=ce)
        self.embedding, self.local, self.margin = embedding, local, positive("margin", margin)
        self.embedding_temperature = positive("embedding_temperature", embedding_temperature)
        self.local_temperature = positive("local_temperature", local_temperature)
        self.restarts, self.embedding_rates = (within("share", share, 0, 1),), (1.0, within("rate", rate, 0, 1))

    def forward(self, context: Context) -> dict[str, Tensor]:
        if context.phase > 0:
            return super().forward(context)
        assert context.teacher is not None
        matched = losses.refilled_embedding(
            context.student.features,
            context.teacher.features,
            context.student.labels,
            temperature=self.embedding_temperature,
            margin=self.margin,
        )
        return {"embedding": self.embedding * matched}

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None and context.bank is not None
        local = losses.refilled_local(
            context.student.logits,
            context.teacher.features,
            context.bank.class_means(),
            context.student.labels,
            temperature=self.local_temperature,
        )
        return {"local": self.local * local}
