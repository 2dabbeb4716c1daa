"""Figures: each function takes data and returns a Figure. No function trains, reads files or depends on Jupyter."""

from ickd_lib.plots import detection, segmentation, theory
from ickd_lib.plots.comparison import bars, class_scores, cost, differences, few_shot, finals, published, scores
from ickd_lib.plots.evaluation import confusion, reliability
from ickd_lib.plots.logit_space import class_correlation, embeddings, separation
from ickd_lib.plots.online import agreement, banks, paradigms
from ickd_lib.plots.pictures import neighbours, retrieved, samples
from ickd_lib.plots.predictions import distributions
from ickd_lib.plots.retrieval import aggregation, by_class, precision, retrieval_time, similarities
from ickd_lib.plots.style import class_colours, method_style, use
from ickd_lib.plots.training import curves, losses

__all__ = [
    "aggregation",
    "agreement",
    "banks",
    "bars",
    "by_class",
    "class_colours",
    "class_correlation",
    "class_scores",
    "confusion",
    "cost",
    "curves",
    "detection",
    "differences",
    "distributions",
    "embeddings",
    "few_shot",
    "finals",
    "losses",
    "method_style",
    "neighbours",
    "paradigms",
    "precision",
    "published",
    "reliability",
    "retrieval_time",
    "retrieved",
    "samples",
    "scores",
    "segmentation",
    "separation",
    "similarities",
    "theory",
    "use",
]
