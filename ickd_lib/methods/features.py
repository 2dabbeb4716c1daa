"""Methods that compare features or maps, so that the teacher may have any classes."""

from __future__ import annotations

from torch import Tensor

from ickd_lib import losses
from ickd_lib.methods.base import Context, WithLabels
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
