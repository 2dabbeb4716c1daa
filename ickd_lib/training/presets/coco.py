"""Settings with which methods were published for detectors on COCO.

The authors count iterations. With 8 images in each, their 180,000 iterations are about 12 epochs. The learning rate
drops after 120,000 and 160,000 iterations, which are 2/3 and 8/9 of them.
"""

from __future__ import annotations

from ickd_lib.training.presets.protocols import Settings
from ickd_lib.training.recipe import Recipe

R101_R18 = ("resnet101-fpn", "resnet18-fpn")
R101_R50 = ("resnet101-fpn", "resnet50-fpn")
WARMUP = 1000 * 8 / 118_287  # in epochs: 1,000 iterations with 8 images, the default of detectron2

ONCE = Recipe(epochs=12, batch_size=8, lr=0.01, weight_decay=1e-4, milestones=(2 / 3, 8 / 9), warmup=WARMUP)
TWICE = Recipe(epochs=24, batch_size=8, lr=0.01, weight_decay=1e-4, milestones=(2 / 3, 8 / 9), warmup=WARMUP)

_MDISTILLER = "configurations of megvii-research/mdistiller, 180,000 iterations"

SETTINGS: dict[str, Settings] = {
    "ce": Settings(
        "the recipe of dkd's students; the authors' teachers are detectron2's, which were trained three times as long",
        ONCE,
        official=False,
    ),
    "kd": Settings(
        "no settings of kd are published for COCO; the recipe is that of dkd, and all weights and temperatures are 1",
        ONCE,
        weights={"ce": 1.0, "kd": 1.0, "temperature": 1.0},
        official=False,
    ),
    "dkd": Settings(
        _MDISTILLER,
        ONCE,
        weights={"tckd": 1.0, "nckd": 0.25, "temperature": 1.0, "warmup": 0},
        pairs={R101_R18: {}, R101_R50: {}},
    ),
    "reviewkd": Settings(
        _MDISTILLER,
        ONCE,
        weights={"warmup": 0},
        pairs={R101_R18: {"reviewkd": 1.2}, R101_R50: {"reviewkd": 1.0}},
    ),
    "ckd": Settings(
        "the weight of ZhouXinzzzzz/CKD, whose authors published it with reviewkd only, and the recipe of dkd",
        ONCE,
        weights={"ckd": 0.1, "temperature": 1.0},
        pairs={R101_R18: {}, R101_R50: {}},
        official=False,
    ),
    # The 360,000 iterations are 12 epochs with 4 images in each, for ResNet18, and 24 with 8 images, for ResNet50.
    "ckd+reviewkd": Settings(
        "configurations of ZhouXinzzzzz/CKD, 360,000 iterations",
        TWICE,
        written="ckd(ckd=0.1, temperature=1.0)+reviewkd(reviewkd={reviewkd}, warmup=0)",
        pairs={R101_R18: {"reviewkd": 1.2}, R101_R50: {"reviewkd": 1.0}},
        recipes={R101_R18: {"epochs": 12, "batch_size": 4, "warmup": WARMUP / 2}},
    ),
}
REFUSED: dict[str, str] = {}
