"""Methods that compare features or maps, so that the teacher may have any classes."""

from __future__ import annotations

from torch import Tensor

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
