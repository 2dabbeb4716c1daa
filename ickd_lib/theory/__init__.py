"""Distillation as learned label smoothing, and the role of in-context samples in it: exact computations.

    smoothing    KD at temperature 1 is label smoothing with a learned smoothing distribution (Yuan et al. 2020,
                 "Revisiting Knowledge Distillation via Label Smoothing Regularization"); as the temperature grows, its
                 gradient tends to that of logit matching (Hinton et al. 2015)
    tangent      the student's tangent kernel (Jacot et al. 2018), which determines to first order the effect of each
                 sample's soft label on the logits of every other sample
    contexts     the part of that effect that comes from the nearest samples, compared with random samples
    aggregation  the weighted mean of the neighbours' targets is a kernel regression (Nadaraya 1964, Watson 1964). Its
                 squared error is a variance plus a squared bias, and averaging reduces the variance less where the
                 neighbours' errors are correlated
    toy          data with a known posterior and three kinds of teachers, for which that error can be measured
    reports      tables and sentences about these results

The abstract of IC-KD (Zhu, Li, Wang 2025, arXiv 2501.07040) calls distillation a learned label smoothing and in-context
samples a crucial contributor to it. The ways in which these statements are tested here are this project's reading.
"""

from ickd_lib.theory.aggregation import (
    aggregate,
    aggregation_errors,
    break_even,
    divergences,
    neighbour_weights,
    predicted_error,
)
from ickd_lib.theory.contexts import (
    ContextShares,
    by_similarity,
    context_shares,
    cumulative_shares,
    mean_interval,
    residuals,
    shuffled,
)
from ickd_lib.theory.reports import (
    TITLES,
    divergence_table,
    headline,
    share_findings,
    share_panels,
    share_rows,
    share_table,
    smallest_errors,
    takeaways,
)
from ickd_lib.theory.smoothing import (
    identity_gaps,
    kd_gradient,
    matching_gaps,
    matching_gradient,
    smoothed_targets,
    soft_cross_entropy,
)
from ickd_lib.theory.tangent import (
    actual_change,
    first_order_errors,
    influence,
    largest_step,
    predicted_change,
    shares,
    tangent_kernel,
)
from ickd_lib.theory.toy import ToyTeacher, correlated_errors, gaussian_similarity, mixture, toy_teachers

__all__ = [
    "TITLES",
    "ContextShares",
    "ToyTeacher",
    "actual_change",
    "aggregate",
    "aggregation_errors",
    "break_even",
    "by_similarity",
    "context_shares",
    "correlated_errors",
    "cumulative_shares",
    "divergence_table",
    "divergences",
    "first_order_errors",
    "gaussian_similarity",
    "headline",
    "identity_gaps",
    "influence",
    "kd_gradient",
    "largest_step",
    "matching_gaps",
    "matching_gradient",
    "mean_interval",
    "mixture",
    "neighbour_weights",
    "predicted_change",
    "predicted_error",
    "residuals",
    "share_findings",
    "share_panels",
    "share_rows",
    "share_table",
    "shares",
    "shuffled",
    "smallest_errors",
    "smoothed_targets",
    "soft_cross_entropy",
    "takeaways",
    "tangent_kernel",
    "toy_teachers",
]
