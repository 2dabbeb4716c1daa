"""Published accuracies by data set, method and pair of networks."""

from __future__ import annotations

Row = tuple[float | None, ...]

CIFAR100_PAIRS = (
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
    ("vgg13", "MobileNetV2"),
)
# Top-1 test accuracy of each pair, %, by method, with the number of epochs. From the READMEs of RepDistiller (teacher,
# student, KD to CRD), mdistiller (DKD), DIST_KD, CTKD and logit-standardization-KD (CTKD; its own rows and MLKD), TTM,
# WKD, SimKD, PACKD and StreamLined (SKD), and from ReviewKD's paper. LDRLD and RLD are from others' notes on their
# papers (arXiv 2507.15911 and 2408.07703).
CIFAR100: dict[str, tuple[int, Row]] = {
    "teacher": (240, (72.34, 74.31, 79.42, 75.61, 75.61, 74.64, 79.42, 79.42, 79.34, 75.61, 74.64)),
    "ce": (240, (69.06, 71.14, 72.50, 73.26, 71.98, 70.36, 70.50, 71.82, 64.60, 70.50, 64.60)),
    "kd": (240, (70.66, 73.08, 73.33, 74.92, 73.54, 72.98, 74.07, 74.45, 67.35, 74.83, 67.37)),
    "fitnet": (240, (69.21, 71.06, 73.50, 73.58, 72.24, 71.02, 73.59, 73.54, 63.16, 73.73, 64.14)),
    "at": (240, (70.55, 72.31, 73.44, 74.08, 72.77, 71.43, 71.73, 72.73, 58.58, 73.32, 59.40)),
    "sp": (240, (69.67, 72.69, 72.94, 73.83, 72.43, 72.68, 73.48, 74.56, 68.08, 74.52, 66.30)),
    "vid": (240, (70.38, 72.61, 73.09, 74.11, 73.30, 71.23, 73.38, 73.40, 67.57, 73.61, 65.56)),
    "rkd": (240, (69.61, 71.82, 71.90, 73.35, 72.22, 71.48, 72.28, 73.21, 64.43, 72.21, 64.52)),
    "pkt": (240, (70.34, 72.61, 73.64, 74.54, 73.45, 72.88, 74.10, 74.69, 66.52, 73.89, 67.13)),
    "crd": (240, (71.16, 73.48, 75.51, 75.48, 74.14, 73.94, 75.11, 75.65, 69.11, 76.05, 69.73)),
    "reviewkd": (240, (71.89, 73.89, 75.63, 76.12, 75.09, None, 77.45, 77.78, None, 77.14, None)),
    "dkd": (240, (71.97, 74.11, 76.32, 76.23, 74.81, 74.68, 76.45, 77.07, 70.35, 76.70, 69.71)),
    "dist": (240, (71.75, None, 76.31, None, 74.43, None, 76.34, 77.35, 68.66, None, None)),
    "ctkd": (240, (71.19, 73.52, 73.39, 75.45, 73.93, 73.52, None, 75.37, 68.67, None, 68.50)),
    "lskd": (240, (71.43, 74.17, 76.62, 76.11, 74.37, 74.36, None, 75.56, 69.02, None, 68.61)),
    "dkd(standardised=True)": (
        240,
        (72.32, 74.29, 77.01, 76.39, 74.89, 74.81, None, 77.37, 70.45, None, 69.98),
    ),
    "ttm": (240, (71.83, 73.97, 76.17, 76.23, 74.32, 74.33, 74.18, 76.57, 69.24, 75.39, 68.98)),
    "wttm": (240, (71.92, 74.13, 76.06, 76.37, 74.58, 74.44, 74.37, 76.55, 69.59, 75.42, 69.16)),
    "wttm+crd": (240, (72.20, 74.52, 76.65, 76.61, 74.94, 74.71, 75.82, 77.04, 70.84, 76.86, 70.30)),
    "wkd_l": (240, (None, None, 76.53, None, None, None, None, None, None, 76.72, None)),
    "wkd_f": (240, (None, None, 76.77, None, None, None, None, None, None, 77.36, None)),
    "wkd_l+wkd_f": (240, (None, None, 77.28, None, None, None, None, None, None, 77.50, None)),
    "simkd": (240, (None, None, 78.08, None, None, None, None, None, None, None, None)),
    "skd": (250, (None, None, 78.33, None, None, None, None, None, None, None, None)),
    "mlkd": (480, (72.19, 74.11, 77.08, 76.63, 75.35, 75.18, None, 78.44, 71.04, None, 70.57)),
    "mlkd(standardised=True)": (
        480,
        (72.33, 74.32, 78.28, 76.95, 75.56, 75.22, None, 78.76, 71.19, None, 70.94),
    ),
    "LDRLD": (240, (None, None, 77.20, None, None, None, None, None, None, None, None)),
    "RLD": (240, (None, None, 76.64, None, None, None, None, None, None, None, None)),
    "PACKD": (240, (None, None, 77.09, None, None, None, None, None, None, None, None)),
}

IMAGENET_PAIRS = (("resnet34", "resnet18"), ("resnet50", "MobileNetV1"))
# From the READMEs of mdistiller (KD, DKD, KD+DOT), TTM (teacher, CRD, ReviewKD, WTTM), DIST_KD, CTKD, cls_KD (student,
# NKD, USKD), WKD and StreamLined (SKD). LDRLD and RLD as above. Other papers state other accuracies of the student
# alone: 69.76 and 70.13 in DIST_KD. Those of CKD and IC-KD could not be obtained.
IMAGENET: dict[str, tuple[int, Row]] = {
    "teacher": (90, (73.31, 76.16)),
    "ce": (100, (69.90, 69.21)),
    "kd": (100, (71.03, 70.50)),
    "crd": (100, (71.17, 71.37)),
    "reviewkd": (100, (71.61, 72.56)),
    "dkd": (100, (71.70, 72.05)),
    "dist": (100, (72.07, 73.24)),
    "ctkd": (120, (71.32, None)),
    "nkd": (100, (71.96, 72.58)),
    "uskd": (100, (70.79, 70.38)),
    "wttm": (100, (72.19, 73.09)),
    "wkd_l": (100, (72.49, 73.17)),
    "wkd_f": (100, (72.50, 73.12)),
    "wkd_l+wkd_f": (100, (72.76, 73.69)),
    "skd": (100, (71.13, 71.53)),
    "KD+DOT": (100, (71.72, 73.09)),
    "LDRLD": (100, (71.88, 73.12)),
    "RLD": (100, (71.91, 72.75)),
}
