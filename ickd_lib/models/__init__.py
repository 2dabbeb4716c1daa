"""Networks: the CIFAR zoo, torchvision's and timm's models, and anyone's own, behind one face.

Every network takes float images [B, 3, H, W] in [0, 1], normalises them itself and returns an Output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..runtime import InputError, choose
from . import mobilenet_v2, resnet, resnet_imagenet, shufflenet_v1, shufflenet_v2, vgg, wrn
from .extend import extend
from .external import LIBRARIES
from .inference import predict
from .network import Network, Output
from .weights import load_weights
from .wrapped import wrap

__all__ = ["Network", "Output", "create", "extend", "load_weights", "names", "predict", "wrap"]

# A family is one file, whose NETWORKS make a network of so many classes.
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
    """The names of the CIFAR zoo; `create` knows `torchvision/NAME` and `timm/NAME` as well."""
    return list(ZOO)


def create(
    name: str,
    num_classes: int = 100,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pretrained: bool = False,
) -> Network:
    """A new network, initialised as published from torch's global generator, in training mode on the CPU.

    Args:
        name: one of `names()`, or `torchvision/NAME`, or `timm/NAME`; in any case.
        num_classes: C.
        mean: [3], subtracted from images in [0, 1]; by default 0, or a pretrained model's own.
        std: [3], by which they are then divided; by default 1, or a pretrained model's own.
        pretrained: load torchvision's default weights or timm's; the last layer is a new one where those are
            of another number of classes. For the zoo, see `load_weights`.
    Returns:
        A Network: images [B, 3, H, W] to logits [B, C] and features [B, D]. Zoo networks take any size from 4
        pixels on; of torchvision's and timm's, those made for one size alone resize images to it. Maps are to be
        had of the zoo, and of torchvision's and timm's ResNets; for others, see `wrap`.
    Raises:
        InputError: the name is unknown, its library is not installed, its weights cannot be had, or mean, std or
            num_classes are no such numbers.
    """
    library, slash, model = str(name).partition("/")
    if slash:
        library = choose(library, LIBRARIES, what="model library")
        return LIBRARIES[library](model, num_classes, mean, std, pretrained)
    name = choose(name, ZOO, what="model")
    if pretrained:
        raise InputError(f"{name} comes without weights; train it, or load_weights(create({name!r}), path)")
    network = ZOO[name](num_classes)
    network.name = name
    network.set_normalisation((0, 0, 0) if mean is None else mean, (1, 1, 1) if std is None else std)
    return network
