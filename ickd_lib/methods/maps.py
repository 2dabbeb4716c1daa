"""Methods that compare feature maps, which may differ in channels and in size.

Maps of networks with unequal numbers of stages are paired from the shallowest stage on, as in the official codes.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from ickd_lib import losses, models
from ickd_lib.methods.base import WithLabels
from ickd_lib.methods.context import Context
from ickd_lib.methods.registry import register
from ickd_lib.models import Network, projectors
from ickd_lib.runtime import InputError
from ickd_lib.runtime.arguments import Bound, Count, NotNegative, Positive, Share
from ickd_lib.tasks import Samples

Variance = Annotated[Positive, Bound(lambda value: value <= 500, "and at most 500")]  # e^500 is a float


@register("sp")
class SP(WithLabels):
    """Similarity-preserving distillation of the last stage's maps, Tung & Mori 2019 (arXiv 1907.09682).

    sp: weight of the term.
    """

    needs = frozenset({"teacher", "maps"})
    label_space = "any"
    paper = "Tung & Mori 2019, arXiv 1907.09682"
    code = "megvii-research/mdistiller"
    version = 2  # with the maps after ReLU of VGGs

    def __init__(self, *, ce: NotNegative = 1.0, sp: NotNegative = 3000.0) -> None:
        super().__init__(ce=ce)
        self.sp = sp

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        return {"sp": self.sp * losses.sp(context.student.maps[-1], context.teacher.maps[-1])}


@register("at")
class AT(WithLabels):
    """Attention transfer: the spatial attention maps of all stages are matched, Zagoruyko & Komodakis 2017.

    Source: arXiv 1612.03928; see `losses.attention_transfer`.

    at: weight of the term.
    """

    needs = frozenset({"teacher", "maps"})
    label_space = "any"
    separable = True
    paper = "Zagoruyko & Komodakis 2017, arXiv 1612.03928"
    code = "megvii-research/mdistiller"
    version = 2  # with the maps after ReLU of VGGs, and pairs of stages from the shallowest on

    def __init__(self, *, ce: NotNegative = 1.0, at: NotNegative = 1000.0) -> None:
        super().__init__(ce=ce)
        self.at = at

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        return {"at": self.at * losses.attention_transfer(context.student.maps, context.teacher.maps)}


@register("fitnet")
class FitNet(WithLabels):
    """Hints: the teacher's map of one stage is regressed from the student's, Romero et al. 2015 (arXiv 1412.6550).

    The regressor is a convolution with batch norm and ReLU (`models.projectors.regressor`), and the hint is a term of
    the loss from the first step on, as in RepDistiller and mdistiller; the paper trains with the hint alone first.

    fitnet: weight of the term.
    stage: number of the stage, from 1.
    """

    needs = frozenset({"teacher", "maps"})
    label_space = "any"
    separable = True
    paper = "Romero et al. 2015, arXiv 1412.6550"
    code = "HobbitLong/RepDistiller"

    def __init__(self, *, ce: NotNegative = 1.0, fitnet: NotNegative = 100.0, stage: Count = 2) -> None:
        super().__init__(ce=ce)
        self.fitnet, self.stage = fitnet, stage

    def adapt(self, student: Network, teacher: Network | None, size: tuple[int, int]) -> Network:
        """Create the regressor, and return the student.

        Raises:
            InputError: one of the networks has fewer stages.
        """
        assert teacher is not None
        shapes = [models.map_shapes(one, size) for one in (student, teacher)]
        for one, found in zip((student, teacher), shapes, strict=True):
            if len(found) < self.stage:
                raise InputError(f"fitnet(stage={self.stage}) needs {self.stage} stages; {one.name} has {len(found)}")
        self.regressor = projectors.regressor(*(found[self.stage - 1] for found in shapes))
        return student

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        student, teacher = (one.maps[self.stage - 1] for one in (context.student, context.teacher))
        return {"fitnet": self.fitnet * losses.hint(self.regressor(student), teacher)}


@register("vid")
class VID(WithLabels):
    """Variational information distillation: likelihood of the teacher's maps given the student's, Ahn et al. 2019.

    Source: arXiv 1904.05835. The likelihood is that of a Gaussian for each value of the teacher's maps. The mean of
    each Gaussian is regressed from the student's map of the same stage by three 1x1 convolutions, and there is one
    variance for each channel. As in the paper and in RepDistiller, the variances are trained; mdistiller leaves them as
    they were at the start.

    vid: weight of the term.
    variance: the variance of every channel at the start.
    epsilon: lower bound of the variances.
    """

    needs = frozenset({"teacher", "maps"})
    label_space = "any"
    separable = True
    paper = "Ahn et al. 2019, arXiv 1904.05835"
    code = "megvii-research/mdistiller"

    def __init__(
        self, *, ce: NotNegative = 1.0, vid: NotNegative = 1.0, variance: Variance = 5.0, epsilon: Positive = 1e-5
    ) -> None:
        super().__init__(ce=ce)
        self.vid, self.epsilon = vid, epsilon
        if variance <= epsilon:
            raise InputError(f"variance={variance} must be above epsilon={epsilon}")
        self.variance = epsilon + (variance - epsilon)

    def adapt(self, student: Network, teacher: Network | None, size: tuple[int, int]) -> Network:
        assert teacher is not None
        shapes = zip(models.map_shapes(student, size), models.map_shapes(teacher, size), strict=False)
        channels = [(have[0], want[0]) for have, want in shapes]
        start = math.log(math.expm1(self.variance - self.epsilon))
        self.regressors = nn.ModuleList(projectors.pointwise(have, want) for have, want in channels)
        self.log_scales = nn.ParameterList(torch.full((want,), start) for _, want in channels)
        return student

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        terms = []
        for regressor, log_scale, student, teacher in zip(
            self.regressors, self.log_scales, context.student.maps, context.teacher.maps, strict=False
        ):
            student, teacher = losses.same_size(student, teacher)
            terms.append(losses.vid(regressor(student), teacher, log_scale, epsilon=self.epsilon))
        return {"vid": self.vid * torch.stack(terms).sum()}


@register("catkd")
class CATKD(WithLabels):
    """Class attention transfer: the class activation maps are matched, CAT-KD, Guo et al. 2023 (arXiv 2304.12777).

    The class activation maps are the outputs of the network's classifier at each position of the map that is averaged
    to the features, so that the average of a class's map is its logit. (The authors convert their networks to have a
    1x1 convolution without bias as the classifier; here it is the linear layer with its bias.) In segmentation they are
    the logits of the pixels. The default weight was published for ResNet32x4 and ResNet8x4; it is 0.7 for ResNet56 and
    ResNet20.

    catkd: weight of the term.
    resolution: height and width to which the maps are averaged.
    normalised: whether the averaged maps are scaled to unit length.
    """

    needs = frozenset({"teacher", "features", "maps", "classifiers"})
    separable = True
    paper = "Guo et al. 2023, arXiv 2304.12777"
    code = "GzyAftermath/CAT-KD"

    def __init__(
        self, *, ce: NotNegative = 1.0, catkd: NotNegative = 15.0, resolution: Count = 2, normalised: bool = False
    ) -> None:
        super().__init__(ce=ce)
        self.catkd, self.resolution = catkd, resolution
        self.normalised = normalised

    def adapt(self, student: Network, teacher: Network | None, size: tuple[int, int]) -> Network:
        """Check the classifiers, and return the student.

        Raises:
            InputError: the last layer of a network, if it is not for segmentation, is not a linear layer of its
                features.
        """
        assert teacher is not None
        for one in (student, teacher):
            if one.task != "segmentation":
                linear_classifier(one, "catkd", size)
        return student

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None and context.classifiers is not None
        student, teacher = (
            activations(one, layer)
            for one, layer in zip((context.student, context.teacher), context.classifiers, strict=True)
        )
        term = losses.class_activation(student, teacher, resolution=self.resolution, normalised=self.normalised)
        return {"catkd": self.catkd * term}


@register("wkd_f")
class WKDF(WithLabels):
    """Wasserstein distance between Gaussians of the networks' last maps, WKD-F, Lv et al. 2024 (arXiv 2412.08139).

    A Gaussian with a diagonal covariance describes the features at the positions of a map. The student's map first goes
    through the regressor of FitNet. The method was built from the paper and is tested against naive loops. The defaults
    are those for ResNet32x4 and ResNet8x4 in a copy of the authors' configuration. (Another copy has the weight 0.006.)

    wkd_f: weight of the term.
    mean: weight of the difference of the means, relative to that of the standard deviations.
    decay: share of the epochs after which the weight begins to fall, as a half cosine that reaches 0 in the last epoch;
        with 1 it is constant.
    """

    needs = frozenset({"teacher", "maps"})
    label_space = "any"
    separable = True
    paper = "Lv et al. 2024, arXiv 2412.08139"

    def __init__(
        self, *, ce: NotNegative = 1.0, wkd_f: NotNegative = 0.08, mean: NotNegative = 4.0, decay: Share = 0.625
    ) -> None:
        super().__init__(ce=ce)
        self.wkd_f, self.mean, self.decay = wkd_f, mean, decay

    def adapt(self, student: Network, teacher: Network | None, size: tuple[int, int]) -> Network:
        assert teacher is not None
        have, want = (models.map_shapes(one, size)[-1] for one in (student, teacher))
        self.regressor = projectors.regressor(have, want)
        return student

    def teach(self, context: Context) -> dict[str, Tensor]:
        assert context.teacher is not None
        regressed = self.regressor(context.student.maps[-1])
        mean, deviation = losses.gaussian_wasserstein(regressed, context.teacher.maps[-1])
        return {"wkd_f": context.fall(self.decay) * self.wkd_f * (self.mean * mean + deviation)}


def unpooled(samples: Samples) -> Tensor:
    """Return the map whose mean over the positions is the features; the features as a 1x1 map if it is unknown."""
    return samples.features[:, :, None, None] if samples.unpooled is None else samples.unpooled


def activations(samples: Samples, classifier: nn.Module | None) -> Tensor:
    """Return a map of each class [B, C, H, W]: the classifier applied at each position of the unpooled features."""
    if samples.pixels is not None:
        return samples.pixels.logits
    assert classifier is not None
    scores: Tensor = classifier(unpooled(samples).movedim(1, -1))
    return scores.movedim(-1, 1)


def linear_classifier(network: Network, method: str, size: tuple[int, int]) -> nn.Linear:
    """Return the linear layer that computes a network's logits from its features.

    Raises:
        InputError: the network ends otherwise.
    """
    layer = models.classifier(network, size=size)[1]
    if isinstance(layer, nn.Linear) and (layer.in_features, layer.out_features) == (
        network.features_dim,
        network.num_classes,
    ):
        return layer
    raise InputError(
        f"{method} needs a linear classifier of the features, but the last layer of {network.name} is {layer}; "
        f"choose a network that ends with a linear layer of its {network.features_dim} features"
    )
