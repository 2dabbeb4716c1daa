"""Similarity of classes in a network's logit space."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def class_correlation(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Compute the mean Pearson correlation between the logits of samples of each pair of classes.

    With z̃ a logit vector minus its mean and at unit length, and m_c the mean of z̃ over class c, entry (c, d) is
    ⟨m_c, m_d⟩. On the diagonal the pairs include each sample with itself.

    Args:
        logits: logits of the samples, shape [N, C']; C' may differ from C.
        labels: class of each sample, shape [N].
        classes: number C of classes.
    Returns:
        float64, shape [C, C]; NaN in the row and the column of a class without samples.
    """
    logits = logits.double()
    unit = F.normalize(logits - logits.mean(1, keepdim=True), dim=1)
    sums = unit.new_zeros(classes, unit.shape[1]).index_add_(0, labels, unit)
    means = sums / labels.bincount(minlength=classes)[:, None]
    return means @ means.T


def correlation_numbers(matrices: Mapping[str, Tensor], *, reference: str = "teacher") -> dict[str, dict[str, float]]:
    """Summarise matrices of `class_correlation`.

    Args:
        matrices: for each network, the result of `class_correlation`, shape [C, C].
        reference: name of one of the networks.
    Returns:
        For each network the mean of the diagonal (`own`), the mean of the other entries (`others`), and the mean
        absolute difference of the other entries from those of the reference (`distance`). Entries that are NaN do not
        count.
    """
    base = matrices[reference]
    apart = ~torch.eye(len(base), dtype=torch.bool, device=base.device)
    return {
        name: {
            "own": matrix.diagonal().nanmean().item(),
            "others": matrix[apart].nanmean().item(),
            "distance": (matrix - base)[apart].abs().nanmean().item(),
        }
        for name, matrix in matrices.items()
    }
