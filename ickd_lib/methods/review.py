"""Knowledge review, in which each map of the teacher is compared with a fusion of several maps of the student."""

from __future__ import annotations

from torch import Tensor, nn

from ickd_lib import losses, models
from ickd_lib.methods.base import WithLabels
from ickd_lib.methods.context import Context
from ickd_lib.methods.registry import register
from ickd_lib.models import Network, projectors
from ickd_lib.runtime.arguments import NotNegative
from ickd_lib.tasks import Samples


@register("reviewkd")
class ReviewKD(WithLabels):
    """Knowledge review: fused maps of the student match each map of the teacher, Chen et al. 2021 (arXiv 2104.09044).

    From the deepest stage on, each map of the student is fused with the result of the deeper stages by an attention
    (ABF), brought to the shape of the teacher's map, and compared with it by the hierarchical context loss (HCL). In
    classification, the pooled features count as the deepest map. The teacher's maps are those before the ReLU, where
    these are known. If the networks have unequal numbers of maps, these are paired from the deepest on. The default
    weight was published for ResNet32x4 and ResNet8x4; it is 0.6 for ResNet56 and ResNet20.

    For detectors, the maps are the levels of the pyramid. The authors use P2 to P6 there, with a constant weight
    (warmup=0): 1 for ResNet101 and ResNet50, 1.2 for ResNet101 and ResNet18, 2 for ResNet50 and MobileNetV2. CKD was
    published for detection as `ckd(ckd=0.1)+reviewkd(reviewkd=1, warmup=0)`. Its authors use the same weights of
    `reviewkd` as above, except for detectors that also predict masks (0.8 for ResNet18, 1 for MobileNetV2).

    reviewkd: weight of the term.
    warmup: number of epochs over which the weight rises; in epoch e, counted from 1, it is multiplied by
        min(e / warmup, 1). With 0 it is constant.
    """

    needs = frozenset({"teacher", "features", "maps"})
    label_space = "any"
    separable = True
    paper = "Chen et al. 2021, arXiv 2104.09044"
    code = "megvii-research/mdistiller"

    def __init__(self, *, ce: NotNegative = 1.0, reviewkd: NotNegative = 5.0, warmup: NotNegative = 20.0) -> None:
        super().__init__(ce=ce)
        self.reviewkd, self.warmup = reviewkd, warmup

    def adapt(self, student: Network, teacher: Network | None, size: tuple[int, int]) -> Network:
        assert teacher is not None
        self.pooled = student.task == "classification"  # in other tasks, features are those of regions, not of images
        shapes = [models.map_shapes(one, size) for one in (student, teacher)]
        self.pairs = min(map(len, shapes))
        self.channels = [[channels for channels, *_ in found[: -self.pairs - 1 : -1]] for found in shapes]
        return student

    def setup(self, student_dim: int, teacher_dim: int, num_classes: int, rows: int) -> None:
        # Another method may have changed the number of features after `adapt`.
        have, want = (
            [features] * self.pooled + channels
            for features, channels in zip((student_dim, teacher_dim), self.channels, strict=True)
        )
        hidden = min(512, have[0])
        self.fusions = nn.ModuleList(
            projectors.Fusion(inputs, hidden, outputs, fuse=level > 0)
            for level, (inputs, outputs) in enumerate(zip(have, want, strict=True))
        )

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
        """Return the compared maps, the deepest first; in classification, the features precede them as a 1x1 map."""
        return [samples.features[:, :, None, None]] * self.pooled + [*maps[: -self.pairs - 1 : -1]]


@register("hcl")
class HCL(WithLabels):
    """The loss of knowledge review without its fusion: maps of the same level are matched, Chen et al. 2021.

    Source: arXiv 2104.09044; see `losses.hierarchical_context`. It is meant for the pyramids of detectors, as a cheap
    addition to a loss between logits, such as `ckd(ckd=0.1)+hcl`. The authors, and those of CKD (Zhu et al. 2024), fuse
    the levels of the student before this loss, which is the method `reviewkd`. The default weight is theirs for
    ResNet101 and ResNet50. Maps are paired from the shallowest on. Where two maps differ in the number of channels, a
    trained 1x1 convolution brings the student's to the teacher's number; where they differ in size, the larger one is
    averaged down to the smaller one.

    hcl: weight of the term.
    """

    needs = frozenset({"teacher", "maps"})
    label_space = "any"
    separable = True
    paper = "Chen et al. 2021, arXiv 2104.09044"
    code = "megvii-research/mdistiller"

    def __init__(self, *, ce: NotNegative = 1.0, hcl: NotNegative = 1.0) -> None:
        super().__init__(ce=ce)
        self.hcl = hcl

    def adapt(self, student: Network, teacher: Network | None, size: tuple[int, int]) -> Network:
        assert teacher is not None
        shapes = zip(models.map_shapes(student, size), models.map_shapes(teacher, size), strict=False)
        self.projectors = nn.ModuleList(
            nn.Identity() if have == want else nn.Conv2d(have, want, 1) for (have, *_), (want, *_) in shapes
        )
        return student

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        levels = zip(self.projectors, context.student.maps, context.teacher.maps, strict=False)
        pairs = [losses.same_size(projector(student), teacher) for projector, student, teacher in levels]
        students, teachers = zip(*pairs, strict=True)
        return {"hcl": self.hcl * losses.hierarchical_context(students, teachers)}
