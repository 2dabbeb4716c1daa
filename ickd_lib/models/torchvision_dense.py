"""The networks of torchvision for segmentation and detection. torchvision is imported when one of them is created."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from .detection import Detector
from .fpn import IMAGENET, build, check_options
from .network import Network
from .one_stage import CentreSampled, OneStage
from .segmentation import wrap_segmentation
from .two_stage import TwoStage

IMAGENET_NORMALISATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# For the beginning of a name: the class in this library, and the name of the class in torchvision.
DETECTORS: dict[str, tuple[type[Detector], str]] = {
    "fasterrcnn": (TwoStage, "FasterRCNN"),
    "retinanet": (OneStage, "RetinaNet"),
    "fcos": (CentreSampled, "FCOS"),
}


def segmentation_names(models: Any) -> list[str]:
    """List torchvision's networks for segmentation; `models` is torchvision.models."""
    return models.list_models(module=models.segmentation)


def detection_names(models: Any) -> list[str]:
    """List torchvision's detectors of the kinds Faster R-CNN, RetinaNet and FCOS; `models` is torchvision.models."""
    return [name for name in models.list_models(module=models.detection) if name.startswith(tuple(DETECTORS))]


def segmenter(models: Any, name: str, num_classes: int, pretrained: bool | str) -> Network:
    """Create torchvision's network `name` for segmentation, without its auxiliary head.

    Its maps are the outputs of the four stages of a ResNet, or the maps of a MobileNet that the head uses.
    """
    backbone = IMAGENET if pretrained == "backbone" else None
    module: Any = models.get_model(name, weights=None, weights_backbone=backbone, num_classes=num_classes)
    if pretrained is True:
        state = models.get_model_weights(name).DEFAULT.get_state_dict(progress=True, check_hash=True)
        own = module.state_dict()
        # Last layers for another number of classes, and the auxiliary head, are left out.
        state = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
        module.load_state_dict({**own, **state})
    stages = [key for key in module.backbone if key.startswith("layer")] or list(module.backbone.return_layers)
    return wrap_segmentation(module, logits="classifier", maps=[f"backbone.{stage}" for stage in stages])


def detector(models: Any, name: str, num_classes: int, pretrained: bool | str, options: dict[str, Any]) -> Network:
    """Create torchvision's detector `name`; its last layers are new if the weights are for other numbers of classes."""
    kind, torchvisions = next(value for start, value in DETECTORS.items() if name.startswith(start))
    check_options(name, options, torchvisions)

    def make(**given: Any) -> nn.Module:
        if pretrained is not True:
            backbone = IMAGENET if pretrained else None
            return models.get_model(name, weights=None, weights_backbone=backbone, num_classes=num_classes + 1, **given)
        module = models.get_model(name, weights="DEFAULT", **given)
        renew = _renew_predictor if kind is TwoStage else _renew_logits
        renew(module, num_classes + 1)
        return module

    return build(make, options, kind)


def _renew_predictor(module: Any, columns: int) -> None:
    """Give a two-stage detector a new box predictor, unless it has this number of columns."""
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

    heads = module.roi_heads
    if heads.box_predictor.cls_score.out_features != columns:
        heads.box_predictor = FastRCNNPredictor(heads.box_predictor.cls_score.in_features, columns)


def _renew_logits(module: Any, columns: int) -> None:
    """Give a one-stage detector a new layer for the logits, unless it has this number of columns.

    It is initialised so that each class has the probability 0.01, as in torchvision and Lin et al. 2017 (arXiv
    1708.02002).
    """
    head = module.head.classification_head
    if head.num_classes != columns:
        head.num_classes = columns
        head.cls_logits = nn.Conv2d(head.cls_logits.in_channels, head.num_anchors * columns, 3, padding=1)
        nn.init.normal_(head.cls_logits.weight, std=0.01)
        nn.init.constant_(head.cls_logits.bias, math.log(0.01 / 0.99))
