"""Data in, Figure out. Nothing here trains, reads files or knows Jupyter."""

from ickd_lib.plots import theory
from ickd_lib.plots.online import agreement, banks, paradigms
from ickd_lib.plots.retrieval import (
    aggregation,
    by_class,
    distributions,
    neighbours,
    precision,
    retrieval_time,
    samples,
    similarities,
)
from ickd_lib.plots.separation import class_correlation, embeddings, separation
from ickd_lib.plots.style import class_colours, method_style, use
from ickd_lib.plots.training import bars, cost, curves, differences, few_shot, finals, losses, published, scores

__all__ = [
    "aggregation",
    "agreement",
    "banks",
    "bars",
    "by_class",
    "class_colours",
    "class_correlation",
    "cost",
    "curves",
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
    "retrieval_time",
    "samples",
    "scores",
    "separation",
    "similarities",
    "theory",
    "use",
]
