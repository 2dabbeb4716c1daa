"""Methods that transport probability between classes."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from ickd_lib import losses, models
from ickd_lib.methods.base import WithLabels
from ickd_lib.methods.context import Context
from ickd_lib.methods.registry import register
from ickd_lib.models import Network
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import Count, NotNegative, Positive, Share


@register("wkd_l")
class WKDL(WithLabels):
    """Optimal transport between the networks' probabilities of the classes other than the label, WKD-L, Lv et al. 2024.

    Source: arXiv 2412.08139. The term of the label is `losses.target_term`. Transport between two classes is cheap if
    the weights of the teacher's classifier for them are similar. The defaults were published for ResNet32x4 and
    ResNet8x4; for WRN-40-2 and ShuffleNetV1, they are gamma 200, temperature 6.

    gamma: γ, the weight of the transport term; the term of the label has weight 1.
    temperature: τ of the transport term.
    sharpness: s of the cost of transport, 1 - e^{-s (1 - cos)}.
    regularisation, iterations: λ of the Sinkhorn iterations, and their number.
    decay: share of the epochs after which γ begins to fall (published: 150 of 240), as a half cosine that reaches 0 in
        the last epoch; with 1 it is constant.
    """

    needs = frozenset({"teacher", "classifiers"})
    separable = True
    paper = "Lv et al. 2024, arXiv 2412.08139"
    code = "JiamingLv/WKD"

    def __init__(
        self,
        *,
        ce: NotNegative = 1.0,
        gamma: NotNegative = 600.0,
        temperature: Positive = 8.0,
        sharpness: Positive = 1.0,
        regularisation: Positive = 0.05,
        iterations: Count = 10,
        decay: Share = 0.625,
    ) -> None:
        super().__init__(ce=ce)
        self.gamma, self.temperature = gamma, temperature
        self.sharpness, self.regularisation = sharpness, regularisation
        self.iterations, self.decay = iterations, decay

    def adapt(self, student: Network, teacher: Network | None, size: tuple[int, int]) -> Network:
        """Check that the teacher has prototypes, and return the student.

        Raises:
            InputError: the layer that computes the teacher's logits is not a linear layer, or a convolution of one
                position, with a row of weights for each logit.
        """
        assert teacher is not None
        layer = models.classifier(teacher, size=size)[1]
        background = teacher.task == "detection"
        weight = getattr(layer, "weight", None)
        if weight is None or weight.flatten(1).shape != (teacher.num_classes + background, teacher.features_dim):
            raise InputError(
                f"wkd_l needs the weights of the teacher's linear classifier, but its last layer is {layer}; "
                "choose a teacher that ends with a linear layer"
            )
        return student

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None and context.classifiers is not None
        prototypes = cast(nn.Linear, context.classifiers[1]).weight.flatten(1)
        target, distance = losses.wkd_l(
            context.student.logits,
            context.teacher.logits,
            context.student.labels,
            losses.prototype_cost(prototypes, sharpness=self.sharpness),
            temperature=self.temperature,
            regularisation=self.regularisation,
            iterations=self.iterations,
        )
        return {"target": target, "transport": context.fall(self.decay) * self.gamma * distance}
