"""Networks: the CIFAR zoo, the models of torchvision and timm, and users' own modules, with one interface.

Every network takes float images [B, 3, H, W] in [0, 1], normalises them itself and returns an Output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..runtime import InputError, choose
from . import mobilenet_v2, projectors, resnet, resnet_imagenet, shufflenet_v1, shufflenet_v2, vgg, wrn
from .extension import extend
from .external import LIBRARIES
from .inference import predict
from .inspection import classifier, map_shapes, unpooled_size
from .network import Network, Output, frozen
from .reused import Reused
from .weights import load_weights
from .wrapped import wrap

__all__ = [
    "Network",
    "Output",
    "Reused",
    "classifier",
    "create",
    "extend",
    "frozen",
    "load_weights",
    "map_shapes",
    "names",
    "predict",
    "projectors",
    "unpooled_size",
    "wrap",
]

# Each file of the zoo defines one family. Its NETWORKS maps a name to a function that takes the number of classes.
ZOO: dict[str, Callable[[int], Network]] = {
    **resnet.NETWORKS,
    **resnet_imagenet.NETWORKS,
    **wrn.NETWORKS,
    **vgg.NETWORKS,
    **mobilenet_v2.NETWORKS,
    **shufflenet_v1.NETWORKS,
    **shufflenet_v2.NETWORKS,
}


def names() -> list[str]:
    """List the names of the CIFAR zoo; `create` also accepts `torchvision/NAME` and `timm/NAME`."""
    return list(ZOO)


def create(
    name: str,
    num_classes: int = 100,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pretrained: bool = False,
) -> Network:
    """Create a network in training mode on the CPU.

    Its weights are initialised as in its publication, from torch's global generator.

    Args:
        name: one of `names()`, or `torchvision/NAME`, or `timm/NAME`, in upper or lower case.
        num_classes: C.
        mean: [3], subtracted from images in [0, 1]; by default 0, or a pretrained model's own.
        std: [3], by which the difference is divided; by default 1, or a pretrained model's own.
        pretrained: load the default weights of torchvision or timm. The last layer is initialised anew if these
            weights have another number of classes. For zoo networks use `load_weights`.
    Returns:
        A Network: images [B, 3, H, W] to logits [B, C] and features [B, D]. Zoo networks accept any size from 4
        pixels on; models of torchvision and timm that accept one size only resize images to it. Zoo networks and the
        ResNets of torchvision and timm have feature maps; for other models name them in `wrap`.
    Raises:
        InputError: the name is unknown; its library is not installed; its weights cannot be loaded; mean or std are
            not three numbers (std above 0); or num_classes is below 1.
    """
    library, slash, model = str(name).partition("/")
    if slash:
        library = choose(library, LIBRARIES, what="model library")
        return LIBRARIES[library](model, num_classes, mean, std, pretrained)
    name = choose(name, ZOO, what="model")
    if pretrained:
        raise InputError(f"{name} has no pretrained weights; train it, or use load_weights(create({name!r}), path)")
    network = ZOO[name](num_classes)
    network.name = name
    network.set_normalisation((0, 0, 0) if mean is None else mean, (1, 1, 1) if std is None else std)
    return network
