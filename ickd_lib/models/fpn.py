"""Faster R-CNN with a feature pyramid, on the zoo's networks for small images and on torchvision's ResNets.

Sources: Ren et al. 2015, arXiv 1506.01497; the pyramid is that of Lin et al. 2017, arXiv 1612.03144.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..runtime import choose
from .backbone import Backbone
from .detection import Detector
from .network import Network
from .two_stage import TwoStage

DEPTHS = (18, 34, 50, 101, 152)  # torchvision's ResNets
IMAGENET = "IMAGENET1K_V1"  # the backbone weights from which the training of published detectors starts
CHANNELS, FEATURES, POOLED = 64, 128, 5  # channels of a light pyramid, features of its box head, side of a pooled box
ANCHOR = 3  # side of an anchor of a light detector, in positions of its map
RATIOS = (0.5, 1.0, 2.0)  # height over width of an anchor
# Settings of the light detectors that differ from torchvision's, because a small image has few anchors and objects.
LIGHT = {
    "min_size": None,
    "rpn_pre_nms_top_n_train": 150,
    "rpn_pre_nms_top_n_test": 150,
    "rpn_post_nms_top_n_train": 100,
    "rpn_post_nms_top_n_test": 100,
    "rpn_batch_size_per_image": 64,
    "box_batch_size_per_image": 32,
    "box_detections_per_img": 50,
}


class Pyramid(nn.Module):
    """A network of the zoo and a feature pyramid: normalised images to {"0": [B, 64, H_0, W_0], ..., "pool": …}.

    The last map, "pool", is the one before it at every second position. For CIFAR's ResNets, the maps have strides 4, 8
    and 16 ("pool"); for networks with more stages, they go on to stride 32.

    Args:
        network: a new network of the zoo, whose first convolution is given stride 2 if it keeps the size of the image.
    """

    def __init__(self, network: Network) -> None:
        from torchvision.ops import feature_pyramid_network

        super().__init__()
        self.body = Backbone(network, halved=True)
        self.strides = [*self.body.strides, 2 * self.body.strides[-1]]
        self.out_channels = CHANNELS
        extra = feature_pyramid_network.LastLevelMaxPool()
        self.fpn = feature_pyramid_network.FeaturePyramidNetwork(self.body.channels, CHANNELS, extra_blocks=extra)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(i): one for i, one in enumerate(self.body(x))})


def light(network: Network, num_classes: int, options: dict[str, Any]) -> Detector:
    """Build a Faster R-CNN for images with sides of about 100 pixels, with anchors of at least 12 pixels.

    Args:
        network: a new network of the zoo.
        num_classes: C, without the background.
        options: arguments of torchvision's FasterRCNN. Images are not resized unless `min_size` is one of them.
    """
    from torchvision.models.detection import faster_rcnn
    from torchvision.ops import MultiScaleRoIAlign

    pyramid = Pyramid(network)
    names = [str(i) for i in range(len(pyramid.strides) - 1)]
    sizes = tuple((ANCHOR * stride,) for stride in pyramid.strides)
    # A box is pooled from the map whose anchors have its size: one of 48 pixels from level 4 (stride 16), or from the
    # coarsest map that is not "pool", one of 24 pixels from level 3. One sampling point in each bin is enough, because
    # a bin is about one position of that map.
    pool = MultiScaleRoIAlign(names, POOLED, sampling_ratio=1, canonical_scale=ANCHOR * 2**4, canonical_level=4)
    parts = {
        "rpn_anchor_generator": faster_rcnn.AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
        "box_roi_pool": pool,
        "box_head": faster_rcnn.TwoMLPHead(CHANNELS * POOLED**2, FEATURES),
        "box_predictor": faster_rcnn.FastRCNNPredictor(FEATURES, num_classes + 1),
        "size_divisible": pyramid.strides[-1],
    }
    return build(lambda **given: faster_rcnn.FasterRCNN(pyramid, **given), {**parts, **LIGHT, **options})


def on_imagenet_resnet(name: str, num_classes: int, pretrained: bool, options: dict[str, Any]) -> Detector:
    """Build Faster R-CNN on the pyramid P2 to P6 of a torchvision ResNet, as torchvision builds its own with ResNet50.

    Args:
        name: "resnet18", "resnet34", "resnet50", "resnet101" or "resnet152".
        num_classes: C, without the background.
        pretrained: load the ImageNet weights of the ResNet; its batch norm, stem and first stage are then not trained.
        options: arguments of torchvision's FasterRCNN.
    """
    from torchvision.models.detection import FasterRCNN, backbone_utils
    from torchvision.ops import FrozenBatchNorm2d

    backbone = backbone_utils.resnet_fpn_backbone(
        backbone_name=name,
        weights=IMAGENET if pretrained else None,
        norm_layer=FrozenBatchNorm2d if pretrained else nn.BatchNorm2d,
        trainable_layers=3 if pretrained else 5,
    )
    return build(lambda **given: FasterRCNN(backbone, num_classes + 1, **given), options)


def build(
    make: Callable[..., nn.Module], options: dict[str, Any], kind: Callable[..., Detector] = TwoStage
) -> Detector:
    """Make a detector of torchvision, as a Detector of this kind; with `min_size=None` it does not resize images."""
    resizes = options.get("min_size", 0) is not None
    return kind(make(**{key: value for key, value in options.items() if resizes or key != "min_size"}), resizes=resizes)


def check_options(name: str, options: dict[str, Any], kind: str = "FasterRCNN") -> None:
    """Raise an InputError if an option is not an argument of torchvision's class `kind` that may be given here."""
    from torchvision.models import detection

    known = [*inspect.signature(getattr(detection, kind).__init__).parameters, "size_divisible", "fixed_size"]
    fixed = ("self", "backbone", "num_classes", "image_mean", "image_std", "kwargs")
    known = [one for one in known if one not in fixed]
    for option in options:
        if option not in known:
            choose(option, known, what=f"option of {name}")
