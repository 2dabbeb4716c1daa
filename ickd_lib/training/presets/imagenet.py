"""Settings with which methods were published on ImageNet-1K. Networks are named without library and tag."""

from __future__ import annotations

from ickd_lib.training.presets.protocols import IMAGENET, IMAGENET_120, IMAGENET_512, Settings
from ickd_lib.training.recipe import Recipe

R34_R18 = ("resnet34", "resnet18")
R50_R18 = ("resnet50", "resnet18")
R50_MN1 = ("resnet50", "mobilenetv1_100")
R50_MN2 = ("resnet50", "mobilenet_v2")

_MDISTILLER = "configurations of megvii-research/mdistiller"
_CLS_KD = "configurations of yzd-v/cls_KD"

SETTINGS: dict[str, Settings] = {
    "ce": Settings(
        "schedule of the baselines of yzd-v/cls_KD", IMAGENET, pairs={"resnet18": {}, "mobilenetv1_100": {}}
    ),
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
        "strategy B1 of arXiv 2205.10536",
        IMAGENET,
        weights={"inter": 2.0, "intra": 2.0, "temperature": 1.0},
        pairs={R34_R18: {}, R50_MN1: {}},
    ),
    "lskd": Settings(
        "README and configuration of sunshangquan/logit-standardization-KD",
        IMAGENET_512,
        pairs={R34_R18: {"ce": 1.0, "kd": 9.0, "temperature": 2.0}},
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
        pairs={key: {"alpha": 1.0, "beta": 0.1, "mu": 0.005} for key in ("resnet18", "mobilenetv1_100")},
    ),
    "ctkd": Settings(
        "script of zhengli97/CTKD",
        IMAGENET_120,
        pairs={R34_R18: {"of": "kd(ce=1.0, kd=1.0)", "epochs": 5}},
    ),
    "wkd_l": Settings(
        "configurations of JiamingLv/WKD",
        IMAGENET,
        weights={"temperature": 2.0},
        pairs={R34_R18: {"gamma": 30.0, "sharpness": 1.0}, R50_MN1: {"gamma": 25.0, "sharpness": 2.0}},
    ),
    "skd": Settings(
        "weights of HyunJunSik/StreamLined; it trains at batch 64 with strongly augmented copies of the images, which "
        "cannot be expressed, so the protocol is that of nkd",
        IMAGENET,
        weights={"temperature": 1.0},
        pairs={R34_R18: {}, R50_MN1: {}},
        official=False,
    ),
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
