"""Settings with which methods were published on CIFAR-100."""

from __future__ import annotations

from typing import Any

from ickd_lib.training.presets.protocols import COMMON, COMMON_SMALL, FIFTHS, Key, Settings, drops
from ickd_lib.training.recipe import Recipe

R56_R20 = ("resnet56", "resnet20")
R110_R20 = ("resnet110", "resnet20")
R110_R32 = ("resnet110", "resnet32")
R32X4_R8X4 = ("resnet32x4", "resnet8x4")
R32X4_SN1 = ("resnet32x4", "ShuffleV1")
R32X4_SN2 = ("resnet32x4", "ShuffleV2")
R32X4_W16_2 = ("resnet32x4", "wrn_16_2")
R32X4_W40_2 = ("resnet32x4", "wrn_40_2")
R50_MN2 = ("ResNet50", "MobileNetV2")
V13_V8 = ("vgg13", "vgg8")
V13_MN2 = ("vgg13", "MobileNetV2")
W40_2_W16_2 = ("wrn_40_2", "wrn_16_2")
W40_2_W40_1 = ("wrn_40_2", "wrn_40_1")
W40_2_SN1 = ("wrn_40_2", "ShuffleV1")
W40_2_MN2 = ("wrn_40_2", "MobileNetV2")
W40_2_R8X4 = ("wrn_40_2", "resnet8x4")

_MDISTILLER = "configurations of megvii-research/mdistiller"
_LOGS = "names of the logs of sunshangquan/logit-standardization-KD"
_OWN = "the authors' settings could not be obtained; the weights are this project's, the protocol is that of kd"


def _common(source: str, **others: Any) -> Settings:
    return Settings(source, COMMON, small=COMMON_SMALL, **others)


# Weight and base temperature of KD with logit standardisation, as logged.
_LSKD: dict[Key, tuple[float, float]] = {
    R56_R20: (9.0, 2.0),
    R110_R20: (12.0, 4.0),
    R110_R32: (9.0, 2.0),
    R32X4_R8X4: (9.0, 2.0),
    R32X4_SN2: (9.0, 2.0),
    R32X4_W16_2: (9.0, 3.0),
    R32X4_W40_2: (9.0, 3.0),
    R50_MN2: (1.0, 3.0),
    V13_V8: (9.0, 3.0),
    V13_MN2: (9.0, 3.0),
    W40_2_W16_2: (9.0, 2.0),
    W40_2_W40_1: (9.0, 2.0),
    W40_2_MN2: (9.0, 3.0),
    W40_2_R8X4: (9.0, 2.0),
}
# Weight, base temperature and β of DKD with logit standardisation, as logged; the weight multiplies α = 1 and β.
_LSDKD: dict[Key, tuple[float, float, float]] = {
    R56_R20: (18.0, 3.0, 2.0),
    R110_R20: (15.0, 2.0, 2.0),
    R110_R32: (15.0, 2.0, 2.0),
    R32X4_R8X4: (9.0, 2.0, 8.0),
    R32X4_SN2: (9.0, 2.0, 8.0),
    R32X4_W16_2: (9.0, 2.0, 2.0),
    R32X4_W40_2: (9.0, 2.0, 8.0),
    R50_MN2: (15.0, 2.0, 2.0),
    V13_V8: (15.0, 2.0, 2.0),
    V13_MN2: (9.0, 3.0, 2.0),
    W40_2_W16_2: (12.0, 2.0, 2.0),
    W40_2_W40_1: (12.0, 2.0, 2.0),
    W40_2_MN2: (15.0, 2.0, 2.0),
    W40_2_R8X4: (18.0, 2.0, 2.0),
}
# Weight of MLKD with logit standardisation, as logged, or as in the README.
_LSMLKD: dict[Key, float] = {
    R56_R20: 9.0,
    R110_R20: 9.0,
    R110_R32: 9.0,
    R32X4_R8X4: 9.0,
    R32X4_SN2: 6.0,
    R32X4_W16_2: 9.0,
    R32X4_W40_2: 9.0,
    R50_MN2: 9.0,
    V13_V8: 6.0,
    V13_MN2: 6.0,
    W40_2_W16_2: 9.0,
    W40_2_W40_1: 9.0,
    W40_2_R8X4: 9.0,
}
_DKD: dict[Key, float] = {  # β
    R56_R20: 2.0,
    R110_R32: 2.0,
    R32X4_R8X4: 8.0,
    R32X4_SN1: 8.0,
    R32X4_SN2: 8.0,
    R50_MN2: 8.0,
    V13_V8: 6.0,
    V13_MN2: 6.0,
    W40_2_W16_2: 6.0,
    W40_2_W40_1: 6.0,
    W40_2_SN1: 8.0,
}
_CKD: dict[Key, tuple[float, float, int]] = {  # weight, temperature and batch size
    R56_R20: (10.0, 1.0, 64),
    R110_R32: (10.0, 1.0, 64),
    R32X4_R8X4: (100.0, 1.0, 64),
    R32X4_SN1: (100.0, 1.0, 32),
    R32X4_SN2: (100.0, 1.0, 64),
    R50_MN2: (100.0, 1.0, 32),
    V13_V8: (100.0, 1.0, 64),
    V13_MN2: (50.0, 2.0, 32),
    W40_2_W16_2: (100.0, 1.0, 64),
    W40_2_W40_1: (50.0, 2.0, 32),
    W40_2_SN1: (100.0, 1.0, 32),
}
_CATKD: dict[Key, tuple[float, int, bool]] = {  # weight, resolution, and whether the maps are normalised
    R56_R20: (0.7, 2, False),
    R110_R32: (1.8, 2, False),
    R32X4_R8X4: (15.0, 2, False),
    R32X4_SN1: (600.0, 4, True),
    R32X4_SN2: (600.0, 4, True),
    R50_MN2: (40.0, 2, True),
    V13_V8: (4.5, 2, False),
    V13_MN2: (15.0, 2, True),
    W40_2_W16_2: (12.0, 2, False),
    W40_2_W40_1: (1.5, 2, False),
    W40_2_SN1: (80.0, 4, True),
}
_REVIEWKD: dict[Key, float] = {
    R56_R20: 0.6,
    R110_R32: 1.0,
    R32X4_R8X4: 5.0,
    R32X4_SN1: 5.0,
    R32X4_SN2: 8.0,
    W40_2_W16_2: 5.0,
    W40_2_W40_1: 5.0,
    W40_2_SN1: 5.0,
}

# The drops of MLKD stay at 150, 180 and 210 epochs, whatever its length is.
_MLKD = Recipe(**drops(480, 150, 180, 210), lr=0.025)
_LONG = drops(960, 150, 180, 210)

SETTINGS: dict[str, Settings] = {
    "ce": _common(_MDISTILLER),
    "kd": _common(_MDISTILLER, weights={"ce": 0.1, "kd": 0.9, "temperature": 4.0}),
    "fitnet": _common(_MDISTILLER),
    "at": _common(_MDISTILLER),
    "sp": _common(_MDISTILLER),
    "rkd": _common(_MDISTILLER),
    "pkt": _common(_MDISTILLER),
    "vid": _common(_MDISTILLER),
    "crd": _common("scripts of HobbitLong/RepDistiller"),
    "crd+kd": _common("scripts of HobbitLong/RepDistiller", written="crd+kd(kd=1.0)"),
    "dkd": _common(_MDISTILLER, pairs={pair: {"nckd": nckd} for pair, nckd in _DKD.items()}),
    "dist": _common("strategy A1 of arXiv 2205.10536, which is that of CRD"),
    "ctkd": _common("script of zhengli97/CTKD"),
    "lskd": _common(_LOGS, pairs={pair: {"kd": kd, "temperature": tau} for pair, (kd, tau) in _LSKD.items()}),
    "kd(standardised=True)": _common(
        _LOGS, weights={"ce": 0.1}, pairs={pair: {"kd": kd, "temperature": tau} for pair, (kd, tau) in _LSKD.items()}
    ),
    "dkd(standardised=True)": _common(
        _LOGS,
        pairs={
            pair: {"tckd": weight, "nckd": weight * nckd, "temperature": tau}
            for pair, (weight, tau, nckd) in _LSDKD.items()
        },
    ),
    "mlkd": Settings(
        "configurations of Jin-Ying/Multi-Level-Logit-Distillation, with the 480 epochs of its issue 2",
        _MLKD,
        small=0.01,
        pairs={pair: {} for pair in _DKD},
        recipes={
            R32X4_SN2: _LONG,
            **{key: {"lr": 0.0025} for key in (R50_MN2, V13_MN2, W40_2_SN1)},
        },
    ),
    "mlkd(standardised=True)": Settings(
        "logs, configurations and README of sunshangquan/logit-standardization-KD",
        _MLKD,
        small=0.01,
        weights={"temperature": 2.0},
        pairs={pair: dict.fromkeys(("instance", "batch", "classes"), weight) for pair, weight in _LSMLKD.items()},
        recipes={R32X4_SN2: _LONG, V13_V8: {"lr": 0.01}},
    ),
    "ckd": Settings(
        "configurations of ZhouXinzzzzz/CKD",
        Recipe(epochs=480, schedule="cosine"),
        small=COMMON_SMALL,
        pairs={pair: {"ckd": ckd, "temperature": tau} for pair, (ckd, tau, _) in _CKD.items()},
        recipes={pair: {"batch_size": batch_size} for pair, (_, _, batch_size) in _CKD.items()},
    ),
    "ttm": _common("README of zkxufo/TTM", pairs={V13_V8: {"ttm": 45.0, "exponent": 0.1}}),
    "wttm+crd": _common(
        "README of zkxufo/TTM", pairs={V13_V8: {}}, written="wttm(wttm=4.0, exponent=0.2)+crd(crd=0.8)"
    ),
    "nkd": Settings(
        "configurations of yzd-v/cls_KD",
        FIFTHS,
        pairs={("ResNet34", "ResNet18"): {"gamma": 3.5, "temperature": 3.0}},
    ),
    "uskd": Settings(
        "configurations of yzd-v/cls_KD", FIFTHS, pairs={"ResNet18": {"alpha": 0.1, "beta": 0.1, "mu": 0.1}}
    ),
    "wkd_l": _common(
        "configurations of JiamingLv/WKD, but their cost of transport is computed from the teacher's outputs for all "
        "training images (CKA), and here from the weights of its classifier",
        pairs={
            R32X4_R8X4: {"gamma": 600.0, "temperature": 8.0},
            W40_2_SN1: {"gamma": 200.0, "temperature": 6.0},
        },
        official=False,
    ),
    "wkd_f": _common(
        "the copy of a configuration of JiamingLv/WKD in Changhy26/WKL, which could not be compared with the original",
        pairs={R32X4_R8X4: {"wkd_f": 0.08, "mean": 4.0}},
        official=False,
    ),
    "skd": _common(
        "weights of HyunJunSik/StreamLined; its training on two copies of the images, one of them with RandAugment and "
        "Cutout, for 250 epochs cannot be expressed, so the protocol is that of kd",
        pairs={
            **{key: {} for key in (R56_R20, R110_R32, W40_2_W16_2, W40_2_W40_1, V13_V8)},
            R32X4_R8X4: {"ce": 0.5, "kd": 0.5, "gram": 0.5},
        },
        official=False,
    ),
    "simkd": _common("README of DefangChen/SimKD"),
    "catkd": _common(
        "configurations of GzyAftermath/CAT-KD",
        pairs={
            pair: {"catkd": weight, "resolution": resolution, "normalised": normalised}
            for pair, (weight, resolution, normalised) in _CATKD.items()
        },
    ),
    "reviewkd": Settings(
        "scripts of dvlab-research/ReviewKD",
        Recipe(batch_size=128, lr=0.1, nesterov=True),
        small=0.02,
        weights={"warmup": 20},
        pairs={pair: {"reviewkd": weight} for pair, weight in _REVIEWKD.items()},
    ),
    "refilled": Settings(
        "arXiv 2205.01915, without its dropout of 0.3",
        Recipe(epochs=400, batch_size=128, lr=0.1, schedule="tenth+fifths", nesterov=True),
    ),
    "cskd": Settings(
        "README of alinlab/cs-kd", Recipe(**drops(200, 100, 150), batch_size=128, lr=0.1, weight_decay=1e-4)
    ),
    "pskd": Settings(
        "README of lgcnsai/PS-KD-Pytorch", Recipe(**drops(300, 150, 225), batch_size=128, lr=0.1, nesterov=True)
    ),
    "tfkd": Settings(
        "parameter files of yuanli2333/Teacher-free-Knowledge-Distillation",
        Recipe(**drops(200, 60, 120, 160), schedule="fifths", batch_size=128, lr=0.1, warmup=1.0),
        pairs={
            "ResNet18": {"alpha": 0.1, "temperature": 20.0, "multiplier": 100.0},
            "MobileNetV2": {"alpha": 0.95, "temperature": 40.0, "multiplier": 1.0},
            "ShuffleV2": {"alpha": 0.95, "temperature": 10.0, "multiplier": 1.0},
        },
    ),
    "dml": Settings(
        "section 4.1 of arXiv 1706.00384, with the weight decay of arXiv 1605.07146, which it follows",
        Recipe(**drops(200, 60, 120, 180), lr=0.1, nesterov=True),
    ),
    "crd_bank": _common("a variant of this project, at the settings of crd", official=False),
    **{name: _common(_OWN, official=False) for name in ("ickd", "picd", "nicd", "ickd_online", "ickd_self")},
}

REFUSED = {
    "kdcl": "the authors of kdcl published no code, and they train each student with an augmentation of its own",
    "ls": "no settings of ls are published for CIFAR-100; its paper trains on ImageNet",
    "lwf": "the settings of lwf are published for class-incremental training, not for a pair of networks",
    "wttm": "the settings of wttm are published together with CRD only; write wttm+crd",
}
