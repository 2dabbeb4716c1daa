"""Settings with which methods were published on CIFAR-100, by teacher and student, and the published accuracies."""

from __future__ import annotations

from typing import NamedTuple

from ickd_lib import methods
from ickd_lib.training.recipe import Recipe

_SMALL_RATE = ("MobileNetV2", "ShuffleV1", "ShuffleV2")  # a learning rate of 0.05 is too high for these

_CKD = {  # weight and temperature, if not 100 and 1
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
_DKD = {  # weight of NCKD, if not 8
    ("resnet56", "resnet20"): 2.0,
    ("resnet110", "resnet32"): 2.0,
    ("wrn_40_2", "wrn_16_2"): 6.0,
    ("wrn_40_2", "wrn_40_1"): 6.0,
    ("vgg13", "vgg8"): 6.0,
    ("vgg13", "MobileNetV2"): 6.0,
}

_PAIRS = (
    ("resnet56", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("vgg13", "vgg8"),
    ("resnet32x4", "ShuffleV1"),
    ("resnet32x4", "ShuffleV2"),
    ("ResNet50", "MobileNetV2"),
    ("wrn_40_2", "ShuffleV1"),
)
# Top-1 test accuracy of each pair, %, by method and epochs. From the READMEs of RepDistiller (teacher, student, KD,
# CRD), mdistiller (DKD), DIST_KD, WKD and logit-standardization-KD (its own rows and MLKD), and ReviewKD's paper.
_ACCURACY: dict[tuple[str, int], tuple[float | None, ...]] = {
    ("teacher", 240): (72.34, 74.31, 79.42, 75.61, 75.61, 74.64, 79.42, 79.42, 79.34, 75.61),
    ("ce", 240): (69.06, 71.14, 72.50, 73.26, 71.98, 70.36, 70.50, 71.82, 64.60, 70.50),
    ("kd", 240): (70.66, 73.08, 73.33, 74.92, 73.54, 72.98, 74.07, 74.45, 67.35, 74.83),
    ("crd", 240): (71.16, 73.48, 75.51, 75.48, 74.14, 73.94, 75.11, 75.65, 69.11, 76.05),
    ("ReviewKD", 240): (71.89, 73.89, 75.63, 76.12, 75.09, None, 77.45, 77.78, None, 77.14),
    ("dkd", 240): (71.97, 74.11, 76.32, 76.24, 74.81, 74.68, 76.45, 77.07, 70.35, 76.70),
    ("dist", 240): (71.75, None, 76.31, None, 74.43, None, 76.34, 77.35, 68.66, None),
    ("lskd", 240): (71.43, 74.17, 76.62, 76.11, 74.37, 74.36, None, 75.56, 69.02, None),
    ("dkd(standardised=True)", 240): (72.32, 74.29, 77.01, 76.39, 74.89, 74.81, None, 77.37, 70.45, None),
    ("WKD-L", 240): (None, None, 76.53, None, None, None, None, None, None, 76.72),
    ("WKD-F", 240): (None, None, 76.77, None, None, None, None, None, None, 77.36),
    ("WKD-L and -F", 240): (None, None, 77.28, None, None, None, None, None, None, 77.50),
    ("mlkd", 480): (72.19, 74.11, 77.08, 76.63, 75.35, 75.18, None, 78.44, 71.04, None),
    ("mlkd(standardised=True)", 480): (72.33, 74.32, 78.28, 76.95, 75.56, 75.22, None, 78.76, 71.19, None),
}


class Published(NamedTuple):
    """The published settings of a method: its name with its weights, the recipe, and the `augment` of the data."""

    method: str
    recipe: Recipe
    augment: str


def published(method: str, teacher: str, student: str) -> Published:
    """Return the published settings of a method for a pair of networks on CIFAR-100.

    The settings of CKD are those of arXiv 2404.14109 (480 epochs, cosine schedule), of REFILLED those of arXiv
    2205.01915 (200 + 200 epochs at batch 128; its dropout of 0.3 is left out), and of MLKD those of Jin et al. 2023
    (480 epochs, strong augmentation). All other methods have the common protocol: 240 epochs at batch 64, with ×0.1 at
    epochs 150, 180 and 210. DKD has its authors' weights for the pair.

    Args:
        method: name of a method; arguments in the name take precedence over the published ones. Combined methods have
            no published settings, so the result is the common protocol.
        teacher, student: names of models of the CIFAR zoo.
    Raises:
        InputError: no method has this name.
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


def published_accuracy(teacher: str, student: str) -> dict[tuple[str, int], float]:
    """Return the accuracies published for a pair of networks on CIFAR-100, by method and epochs.

    Methods of this library have the names that `published` gives them, others the names in their papers; "ce" is the
    student alone. 240 epochs are the common protocol, 480 that of MLKD with its strong augmentation.

    Returns:
        For each method and number of epochs, the top-1 test accuracy in percent; empty for an unknown pair.
    """
    if (teacher, student) not in _PAIRS:
        return {}
    at = _PAIRS.index((teacher, student))
    own = {*methods.names()}
    found = {}
    for (name, epochs), row in _ACCURACY.items():
        base = name.partition("(")[0]
        title = published(name, teacher, student).method if base in own else name
        if (accuracy := row[at]) is not None:
            found[title, epochs] = accuracy
    return found
