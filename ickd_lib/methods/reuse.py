"""A method in which the student takes over the teacher's classifier."""

from __future__ import annotations

from torch import Tensor

from ickd_lib import losses, models, runtime
from ickd_lib.methods.base import WithLabels
from ickd_lib.methods.context import Context
from ickd_lib.methods.maps import linear_classifier, unpooled
from ickd_lib.methods.registry import register
from ickd_lib.models import Network
from ickd_lib.runtime.arguments import Count, NotNegative


@register("simkd")
class SimKD(WithLabels):
    """The teacher's classifier on the student's projected map, which is matched to the teacher's map, Chen et al. 2022.

    Source: arXiv 2203.14001. The projected map is compared with the map that the teacher averages to its features, and
    the teacher's classifier, which is frozen, computes the logits. The network that is trained, evaluated and stored
    therefore consists of the student, the projector and this classifier (`models.Reused`), and is larger than the
    student. Where a teacher has layers between its last stage and its average (WRN, MobileNetV2, ShuffleNetV2), the map
    after these layers is compared, because that is what the classifier takes; the authors' scripts have no such
    teachers.

    simkd: weight of the mean squared difference of the maps.
    factor: the projector has D / factor hidden channels, where D is the teacher's number of features.
    """

    needs = frozenset({"teacher", "features", "maps", "pooled features"})
    separable = True
    paper = "Chen et al. 2022, arXiv 2203.14001"
    code = "DefangChen/SimKD"

    def __init__(self, *, ce: NotNegative = 0.0, simkd: NotNegative = 1.0, factor: Count = 2) -> None:
        super().__init__(ce=ce)
        self.simkd, self.factor = simkd, factor

    def adapt(self, student: Network, teacher: Network | None, size: tuple[int, int]) -> Network:
        """Return the student with a projector and a copy of the teacher's classifier.

        Raises:
            InputError: the teacher does not end with a linear layer of its features.
        """
        assert teacher is not None
        classifier = linear_classifier(teacher, "simkd", size)
        network = models.Reused(
            student,
            channels=models.map_shapes(student, size)[-1][0],
            features=teacher.features_dim,
            size=models.unpooled_size(teacher, size),
            factor=self.factor,
            bias=classifier.bias is not None,
            teacher=teacher.name,
        )
        network.classifier.load_state_dict(classifier.state_dict())
        larger, smaller = (sum(p.numel() for p in one.parameters()) for one in (network, student))
        runtime.notice(
            f"simkd adds a projector and the classifier of {teacher.name} to {student.name}: "
            f"{larger:,} parameters instead of {smaller:,}"
        )
        return network

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        return {"simkd": self.simkd * losses.hint(unpooled(context.student), unpooled(context.teacher))}
