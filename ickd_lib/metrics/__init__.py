"""Metrics of networks, memory banks and logit spaces: plain floats for JSON, with shares as fractions, not percent."""

from ickd_lib.metrics.banks import drift, freshness, retrieval
from ickd_lib.metrics.boxes import detection
from ickd_lib.metrics.episodes import few_shot
from ickd_lib.metrics.logit_space import margins, separation
from ickd_lib.metrics.pixels import confusion, segmentation
from ickd_lib.metrics.predictions import accuracy, best_temperature, calibration_error, classification, reliability

__all__ = [
    "accuracy",
    "best_temperature",
    "calibration_error",
    "classification",
    "confusion",
    "detection",
    "drift",
    "few_shot",
    "freshness",
    "margins",
    "reliability",
    "retrieval",
    "segmentation",
    "separation",
]
