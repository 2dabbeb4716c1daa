"""Networks: the CIFAR zoo, the models of torchvision and timm, and users' own modules, with one interface.

Every network takes float images [B, 3, H, W] in [0, 1], normalises them itself and returns an Output; a detector
returns the outputs for regions. `Network.task` is the task that its outputs are for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import runtime
from ..runtime import InputError, choose
from . import (
    fpn,
    mobilenet_v1,
    mobilenet_v2,
    projectors,
    resnet,
    resnet_imagenet,
    shufflenet_v1,
    shufflenet_v2,
    vgg,
    wrn,
)
from .batchnorm import synchronised
from .detection import Detections, Detector, Regions, TrainingPass
from .extension import extend
from .external import (
    IDENTITY,
    LIBRARIES,
    build,
    known_weights,
    no_options,
    weights_only,
    without_weights,
)
from .folding import folded
from .inference import predict
from .inspection import classifier, map_shapes, unpooled_size
from .network import Network, Output, frozen, require_network
from .own import from_file, is_file
from .registered import REGISTRY, create_registered, register
from .reused import Reused
from .segmentation import FCN, wrap_segmentation
from .torchvision_dense import IMAGENET_NORMALISATION
from .weights import load_weights
from .wrapped import wrap, wrapping
from .wrapped_detection import wrap_detection

__all__ = [
    "LIBRARIES",
    "Detections",
    "Detector",
    "Network",
    "Output",
    "Regions",
    "Reused",
    "TrainingPass",
    "classifier",
    "create",
    "extend",
    "folded",
    "from_file",
    "frozen",
    "is_file",
    "load_weights",
    "map_shapes",
    "names",
    "predict",
    "projectors",
    "register",
    "require_network",
    "synchronised",
    "unpooled_size",
    "without_weights",
    "wrap",
    "wrap_detection",
    "wrap_segmentation",
    "wrapping",
]

# Each file of the zoo defines one family. Its NETWORKS maps a name to a function that takes the number of classes.
ZOO: dict[str, Callable[[int], Network]] = {
    **resnet.NETWORKS,
    **resnet_imagenet.NETWORKS,
    **wrn.NETWORKS,
    **vgg.NETWORKS,
    **mobilenet_v1.NETWORKS,
    **mobilenet_v2.NETWORKS,
    **shufflenet_v1.NETWORKS,
    **shufflenet_v2.NETWORKS,
}


def names(task: str = "classification") -> list[str]:
    """List the names of the CIFAR zoo and of registered networks, or those of the zoo's networks for another task.

    `create` also accepts `torchvision/NAME` and `timm/NAME`.

    Args:
        task: "classification"; "segmentation" (a name of the zoo and `-fcn`); or "detection" (a name of the zoo and
            `-fpn`; `resnet18-fpn`, `resnet34-fpn`, … have torchvision's ResNets).
    Raises:
        InputError: the task is none of these.
    """
    task = choose(task, ("classification", "segmentation", "detection"), what="task")
    if task == "classification":
        return [*ZOO, *REGISTRY]
    if task == "segmentation":
        return [f"{name}-fcn" for name in ZOO]
    small = [f"{name}-fpn" for name in ZOO if name not in resnet_imagenet.NETWORKS]
    return [*small, *(f"resnet{depth}-fpn" for depth in fpn.DEPTHS)]


def create(
    name: str,
    num_classes: int = 100,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pretrained: bool | str = False,
    **options: Any,
) -> Network:
    """Create a network in training mode on the CPU.

    Its weights are initialised as in its publication, from torch's global generator.

    Args:
        name: one of `names()`, `names("segmentation")` or `names("detection")`, or `torchvision/NAME`, or `timm/NAME`,
            in upper or lower case. torchvision's names may be those of its networks for segmentation and detection.
            `register` adds names of your own. `pretrained` and the options may be part of the name, as in
            "resnet18-fpn(pretrained='backbone')", and then take precedence. A pretrained network that is named so keeps
            the mean and std of its weights.
        num_classes: C; of detectors without the background.
        mean: [3], subtracted from images in [0, 1]; by default 0, or a pretrained model's own.
        std: [3], by which the difference is divided; by default 1, or a pretrained model's own.
        pretrained: load the default weights of torchvision or timm; for a classifier of torchvision also the name of
            weights, such as "IMAGENET1K_V1", from which the distillation literature starts. The last layer is
            initialised anew if these weights have another number of classes. For zoo networks use `load_weights`.
            "backbone" loads the ImageNet weights of the backbone of a torchvision network for segmentation or
            detection.
        options: arguments of a registered network; of detectors, those of torchvision's FasterRCNN, RetinaNet or FCOS,
            such as `min_size=600, max_size=1000`; `min_size=None` leaves the size of images, which is the default of
            the zoo's detectors.
    Returns:
        A Network: images [B, 3, H, W] to logits [B, C] and features [B, D], or the maps of these for segmentation; for
        detection see `Detector`. Zoo networks accept any size from 4 pixels on; models of torchvision and timm that
        accept one size only resize images to it. Zoo networks and the ResNets of torchvision and timm have feature
        maps; for other models name them in `wrap`.
    Raises:
        InputError: the name or an option is unknown; its library is not installed; its weights cannot be loaded; mean
            or std are not three numbers (std above 0), or are those of images in [0, 255]; or num_classes is below 1.
    """
    if num_classes < 1:
        raise InputError(f"num_classes={num_classes}; a network needs at least 1")
    plain, given = runtime.parse_call(str(name), "model", "resnet18-fpn(pretrained='backbone')")
    if given:
        if apart := sorted(given.keys() & {"name", "num_classes", "mean", "std"}):
            raise InputError(
                f"{', '.join(apart)} cannot be part of the name {name!r}; give it as an argument of create"
            )
        if given.get("pretrained"):
            mean = std = None
        found = create(plain, num_classes, **({"mean": mean, "std": std, "pretrained": pretrained} | options | given))
        found.name += "(" + ", ".join(f"{key}={value!r}" for key, value in given.items()) + ")"
        return found
    library, slash, model = str(name).partition("/")
    if slash:
        library = choose(library, LIBRARIES, what="model library")
        return LIBRARIES[library](model, num_classes, mean, std, pretrained, options)
    known_weights(pretrained)
    name = choose(name, [*names(), *names("segmentation"), *names("detection")], what="model")
    base, _, head = name.partition("-")
    on_torchvision = head == "fpn" and base not in ZOO
    if pretrained and not (on_torchvision and pretrained == "backbone"):
        advice = ", or load those of its backbone with pretrained='backbone'" if on_torchvision else ""
        raise InputError(
            f"{name} has no pretrained weights; train it, or use load_weights(create({name!r}), path){advice}"
        )
    if name in REGISTRY:
        return create_registered(name, num_classes, mean, std, options)
    network: Network
    if head == "fpn":
        network = build(name, lambda: _detector(name, base, num_classes, bool(pretrained), options))
    else:
        no_options(name, options)
        network = FCN(ZOO[base](1), num_classes) if head else ZOO[base](num_classes)
    network.name = name
    own_mean, own_std = IMAGENET_NORMALISATION if pretrained else IDENTITY
    network.set_normalisation(own_mean if mean is None else mean, own_std if std is None else std)
    return network


@weights_only()
def _detector(name: str, base: str, num_classes: int, pretrained: bool, options: dict[str, Any]) -> Network:
    fpn.check_options(name, options)
    if base in ZOO:
        return fpn.light(ZOO[base](1), num_classes, options)
    return fpn.on_imagenet_resnet(base, num_classes, pretrained, options)
