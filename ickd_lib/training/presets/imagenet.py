"""Settings with which methods were published on ImageNet-1K. Networks are named without library and tag."""

from __future__ import annotations

from dataclasses import replace

from ickd_lib.training.presets.protocols import IMAGENET, IMAGENET_120, IMAGENET_512, Settings
from ickd_lib.training.recipe import Recipe

R34_R18 = ("resnet34", "resnet18")
R50_R18 = ("resnet50", "resnet18")
R50_MN1 = ("resnet50", "MobileNetV1")
R50_MN2 = ("resnet50", "mobilenet_v2")

_MDISTILLER = "configurations of megvii-research/mdistiller"
_CLS_KD = "configurations of yzd-v/cls_KD"
_WKD = "the copies of the configurations of JiamingLv/WKD in hanna6666/wassterin_dill"
_OWN = (
    "the paper states its settings nowhere that could be obtained, so the weights are this project's defaults, which "
    "were chosen on CIFAR-100, and the protocol is that of kd"
)

SETTINGS: dict[str, Settings] = {
    "ce": Settings("schedule of the baselines of yzd-v/cls_KD", IMAGENET, pairs={"resnet18": {}, "MobileNetV1": {}}),
    "kd": Settings(
        _MDISTILLER, IMAGENET_512, pairs={key: {"ce": 0.5, "kd": 0.5, "temperature": 1.0} for key in (R34_R18, R50_MN1)}
    ),
    "at": Settings(_MDISTILLER, IMAGENET_512, pairs={R34_R18: {}, R50_MN1: {}}),
    "crd": Settings(_MDISTILLER, IMAGENET, pairs={R34_R18: {}, R50_MN1: {}}),
    "reviewkd": Settings(
        _MDISTILLER, IMAGENET, weights={"warmup": 1}, pairs={R34_R18: {"reviewkd": 1.0}, R50_MN1: {"reviewkd": 8.0}}
    ),
    "dkd": Settings(
        _MDISTILLER,
        IMAGENET_512,
        weights={"temperature": 1.0, "warmup": 1},
        pairs={R34_R18: {"nckd": 0.5}, R50_MN1: {"nckd": 2.0}},
    ),
    "dist": Settings(
        "strategy B1 of arXiv 2205.10536, in the first author's resnet_dist.yaml of hunto/LocalMamba",
        replace(IMAGENET, nesterov=True, decay_norms_and_biases=False),
        weights={"inter": 2.0, "intra": 2.0, "temperature": 1.0},
        pairs={R34_R18: {}, R50_MN1: {}},
    ),
    "lskd": Settings(
        "README and configuration of sunshangquan/logit-standardization-KD",
        IMAGENET_512,
        pairs={key: {"ce": 1.0, "kd": 9.0, "temperature": 2.0} for key in (R34_R18, R50_MN1)},
        stand_ins={
            R50_MN1: "sunshangquan/logit-standardization-KD has no configuration for this pair, so the settings are "
            "those for ResNet34 and ResNet18"
        },
    ),
    "mlkd": Settings(
        "configuration of Jin-Ying/Multi-Level-Logit-Distillation, as copied in sunshangquan/logit-standardization-KD",
        Recipe(epochs=100, batch_size=512, lr=0.1, weight_decay=1e-4, milestones=IMAGENET.milestones),
        pairs={R34_R18: {"ce": 0.5, "instance": 0.5, "batch": 0.5, "classes": 0.5, "temperature": 1.0}},
    ),
    "ckd": Settings(
        "configurations of ZhouXinzzzzz/CKD",
        Recipe(epochs=200, batch_size=512, lr=0.2, weight_decay=1e-4, schedule="cosine"),
        pairs={key: {"ckd": 10.0, "temperature": 1.0} for key in (R34_R18, R50_MN1)},
    ),
    "nkd": Settings(
        _CLS_KD,
        IMAGENET,
        pairs={key: {"gamma": 1.5, "temperature": 1.0} for key in (R34_R18, R50_MN1)},
        recipes={R50_MN1: {"clip_grad_norm": 5.0}},
    ),
    "uskd": Settings(
        _CLS_KD,
        IMAGENET,
        pairs={key: {"alpha": 1.0, "beta": 0.1, "mu": 0.005} for key in ("resnet18", "MobileNetV1")},
    ),
    "ctkd": Settings(
        "script of zhengli97/CTKD",
        IMAGENET_120,
        pairs={R34_R18: {"of": "kd(ce=1.0, kd=1.0)", "epochs": 5}},
    ),
    "wkd_l": Settings(
        f"{_WKD}, but their cost of transport is computed from the teacher's outputs for all training images (CKA), "
        "and here from the weights of its classifier",
        IMAGENET,
        weights={"temperature": 2.0, "regularisation": 0.05, "iterations": 10, "decay": 0.0},
        pairs={R34_R18: {"gamma": 30.0, "sharpness": 1.0}, R50_MN1: {"gamma": 25.0, "sharpness": 2.0}},
        official=False,
    ),
    "wkd_f": Settings(
        f"{_WKD}, but their map is divided into 4 x 4 parts with a Gaussian each, after a regressor with a bottleneck",
        IMAGENET,
        weights={"mean": 2.0},
        pairs={R34_R18: {"wkd_f": 0.02, "decay": 0.0}, R50_MN1: {"wkd_f": 0.005, "decay": 0.3}},
        official=False,
    ),
    "skd": Settings(
        "weights of HyunJunSik/StreamLined; it trains at batch 64 with strongly augmented copies of the images, which "
        "cannot be expressed, so the protocol is that of nkd",
        IMAGENET,
        weights={"temperature": 1.0},
        pairs={R34_R18: {}, R50_MN1: {}},
        official=False,
    ),
    **{
        name: Settings(_OWN, IMAGENET_512, pairs={R34_R18: {}, R50_MN1: {}}, official=False)
        for name in ("ickd", "picd", "nicd")
    },
    "simkd": Settings("README of DefangChen/SimKD", IMAGENET_120, pairs={R50_R18: {}}),
    # The batch size of 2 in the first configuration is a remnant of a test; its learning rate is that of the second.
    "catkd": Settings(
        "configurations of GzyAftermath/CAT-KD",
        IMAGENET_512,
        pairs={
            R34_R18: {"catkd": 0.5, "resolution": 4, "normalised": False},
            R50_MN2: {"catkd": 10.0, "resolution": 2, "normalised": True},
        },
    ),
}

REFUSED = {
    "wttm": "wttm was trained on ImageNet with torchdistill, by settings that its authors did not publish",
    "pskd": "the settings of pskd are published for ResNet152 and larger networks only",
    "refilled": "no settings of refilled are published for ImageNet; its papers train on CIFAR-100 and CUB-200",
}
