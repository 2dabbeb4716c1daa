"""The settings under which methods were published on CIFAR-100, by teacher and student."""

from __future__ import annotations

from typing import NamedTuple

from ickd_lib import methods
from ickd_lib.training.recipe import Recipe

_SMALL_RATE = ("MobileNetV2", "ShuffleV1", "ShuffleV2")  # diverge at 0.05

_CKD = {  # weight and temperature; for other pairs 100 and 1
    ("resnet56", "resnet20"): "ckd(ckd=10.0)",
    ("resnet110", "resnet32"): "ckd(ckd=10.0)",
    ("vgg13", "MobileNetV2"): "ckd(ckd=50.0, temperature=2.0)",
    ("wrn_40_2", "wrn_40_1"): "ckd(ckd=50.0, temperature=2.0)",
}
_CKD_HALF_BATCH = {
    ("resnet32x4", "ShuffleV1"),
    ("wrn_40_2", "ShuffleV1"),
    ("ResNet50", "MobileNetV2"),
    ("vgg13", "MobileNetV2"),
    ("wrn_40_2", "wrn_40_1"),
}
_DKD = {  # the weight of NCKD; 8 for other pairs
    ("resnet56", "resnet20"): 2.0,
    ("resnet110", "resnet32"): 2.0,
    ("wrn_40_2", "wrn_16_2"): 6.0,
    ("wrn_40_2", "wrn_40_1"): 6.0,
    ("vgg13", "vgg8"): 6.0,
    ("vgg13", "MobileNetV2"): 6.0,
}


class Published(NamedTuple):
    """How a method was published: its name with its weights, the recipe, and the data's `augment`."""

    method: str
    recipe: Recipe
    augment: str


def published(method: str, teacher: str, student: str) -> Published:
    """The published settings of a method for a pair of networks on CIFAR-100.

    CKD: arXiv 2404.14109 (480 epochs, cosine).  REFILLED: arXiv 2205.01915 (200 + 200 epochs, batch 128; its dropout of
    0.3 is left out).  MLKD: Jin et al. 2023 (480 epochs, strong augmentation).  DKD: its authors' weights under the
    protocol of all others, 240 epochs at batch 64 with ×0.1 at 150, 180 and 210.

    Args:
        method: a method's name; arguments in the name win over the published ones. Two methods at once have none and
            get the protocol of all others.
        teacher, student: names of the zoo.
    Raises:
        InputError: the method is unknown.
    """
    pair, lr = (teacher, student), 0.01 if student in _SMALL_RATE else 0.05
    if isinstance(methods.create(method), methods.Combined):
        return Published(method, Recipe(lr=lr), "crop")
    given = methods.parse(method)[1]
    name = methods.create(method).config["name"]
    if name == "ckd":
        batch_size = 32 if pair in _CKD_HALF_BATCH else 64
        weights, recipe = _CKD.get(pair, name), Recipe(epochs=480, batch_size=batch_size, lr=lr, schedule="cosine")
    elif name == "refilled":
        weights = name
        recipe = Recipe(epochs=400, batch_size=128, lr=0.1, schedule="tenth+fifths", nesterov=True)
    elif name == "dkd":
        weights, recipe = f"dkd(nckd={_DKD.get(pair, 8.0)})", Recipe(lr=lr)
    else:
        weights, recipe = name, Recipe(epochs=480 if name == "mlkd" else 240, lr=lr)
    chosen = methods.create(name, **(methods.parse(weights)[1] | given))
    return Published(methods.describe(chosen), recipe, "randaugment" if name == "mlkd" else "crop")
