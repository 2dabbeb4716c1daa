"""Detectors that are made of users' own modules, if these are built as torchvision's are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..runtime import InputError
from .detection import Detector
from .inspection import require_precision
from .one_stage import CentreSampled, OneStage
from .two_stage import TwoStage


def wrap_detection(
    module: nn.Module,
    *,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resizes: bool = True,
    name: str | None = None,
) -> Detector:
    """Make a Detector of any module that is built as torchvision's two-stage detectors, RetinaNet or FCOS are.

    The Detector contains the module itself, not a copy.

    Args:
        module: a torchvision GeneralizedRCNN (such as FasterRCNN or MaskRCNN), RetinaNet or FCOS. As in torchvision,
            the `num_classes` that it was built with includes the background, and its labels begin at 1.
        num_classes: C, the number of classes without the background, compared with the module's; None accepts any.
        mean: [3], subtracted from images in [0, 1]; None takes the module's own.
        std: [3], by which the difference is divided; None takes the module's own.
        resizes: whether the module's transform resizes images. If False, they are only padded to one size.
        name: the network's name in error messages and run folders; by default the module's class.
    Raises:
        InputError: the module is none of these; the layer that computes the logits (`cls_score` of a box predictor,
            `cls_logits` of a classification head) is missing; C is not `num_classes`; the module has weights in float16
            or bfloat16.
    """
    name = name or type(module).__name__
    require_precision(module, name)
    network = _kind(module, name)(module, resizes=resizes)
    if num_classes not in (None, network.num_classes):
        raise InputError(
            f"{name} has {network.num_classes} classes without the background, not num_classes={num_classes}"
        )
    network.name = name
    network.training = module.training
    own: Any = module.transform
    network.set_normalisation(own.image_mean if mean is None else mean, own.image_std if std is None else std)
    like: Any = network.get_submodule(network.classifier_name).weight
    network.mean, network.std = network.mean.to(like), network.std.to(like)
    return network


def _kind(module: nn.Module, name: str) -> type[TwoStage] | type[OneStage]:
    """Return the class for a module, if it has the layer that this class takes the logits from."""
    from torchvision.models.detection import FCOS, RetinaNet
    from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

    if isinstance(module, GeneralizedRCNN):
        predictor: Any = getattr(module.roi_heads, "box_predictor", None)
        if not isinstance(getattr(predictor, "cls_score", None), nn.Linear):
            raise InputError(f"the box predictor of {name} has no linear layer cls_score, which computes the logits")
        return TwoStage
    if isinstance(module, (RetinaNet, FCOS)):
        head: Any = getattr(module.head, "classification_head", None)
        if not isinstance(getattr(head, "cls_logits", None), nn.Conv2d):
            raise InputError(
                f"{name} has no convolution head.classification_head.cls_logits, which computes the logits"
            )
        return CentreSampled if isinstance(module, FCOS) else OneStage
    raise InputError(
        f"{name} is not a torchvision GeneralizedRCNN (a two-stage detector such as FasterRCNN), RetinaNet or FCOS; "
        "wrap one, or create one by name, such as resnet8-fpn or torchvision/fasterrcnn_resnet50_fpn"
    )
