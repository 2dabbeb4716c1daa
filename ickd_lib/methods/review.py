"""Knowledge review, in which each map of the teacher is compared with the fused maps of several of the student's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ickd_lib import losses, models
from ickd_lib.methods.base import Context, WithLabels, within
from ickd_lib.methods.registry import register
from ickd_lib.models import Network, projectors
from ickd_lib.tasks import Samples


@register("reviewkd")
class ReviewKD(WithLabels):
    """Knowledge review: fused maps of the student match each map of the teacher, Chen et al. 2021 (arXiv 2104.09044).

    From the deepest stage on, each map of the student is fused with the result of the deeper stages by an attention
    (ABF), brought to the shape of the teacher's map, and compared with it by the hierarchical context loss (HCL). The
    pooled features count as the deepest map. The teacher's maps are those before the ReLU. In networks with unequal
    numbers of stages, maps are paired from the deepest stage on. The default weight was published for ResNet32x4 and
    ResNet8x4; it is 0.6 for ResNet56 and ResNet20.

    reviewkd: weight of the term.
    warmup: number of epochs over which the weight rises; in epoch e, counted from 1, it is multiplied by
        min(e / warmup, 1). With 0 it is constant.
    """

    needs = frozenset({"teacher", "features", "maps"})
    label_space = "any"
    paper = "Chen et al. 2021, arXiv 2104.09044"
    code = "megvii-research/mdistiller"

    def __init__(self, *, ce: float = 1.0, reviewkd: float = 5.0, warmup: float = 20.0) -> None:
        super().__init__(ce=ce)
        self.reviewkd, self.warmup = reviewkd, within("warmup", warmup, 0, torch.inf)

    def adapt(self, student: Network, teacher: Network | None, size: tuple[int, int]) -> Network:
        assert teacher is not None
        self.pairs = min(len(student.stages), len(teacher.stages))
        have, want = (
            [one.features_dim, *(shape[0] for shape in models.map_shapes(one, size)[: -self.pairs - 1 : -1])]
            for one in (student, teacher)
        )
        hidden = min(512, student.features_dim)
        self.fusions = nn.ModuleList(
            projectors.Fusion(inputs, hidden, outputs, fuse=level > 0)
            for level, (inputs, outputs) in enumerate(zip(have, want, strict=True))
        )
        return student

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        student = self._levels(context.student, context.student.maps)
        teacher = self._levels(context.teacher, context.teacher.preactivations or context.teacher.maps)
        rise = context.rise(self.warmup)
        return {"reviewkd": rise * self.reviewkd * losses.hierarchical_context(self.fused(student, teacher), teacher)}

    def fused(self, student: list[Tensor], teacher: list[Tensor]) -> list[Tensor]:
        """Return the student's fused maps in the shapes of the teacher's; all lists begin with the deepest map."""
        results, deeper = [], None
        for fusion, own, target in zip(self.fusions, student, teacher, strict=True):
            result, deeper = fusion(own, deeper, target.shape[2:])
            results.append(result)
        return results

    def _levels(self, samples: Samples, maps: tuple[Tensor, ...]) -> list[Tensor]:
        """Return the pooled features, as a map of one position, and the compared maps, the deepest first."""
        return [samples.features[:, :, None, None], *maps[: -self.pairs - 1 : -1]]
