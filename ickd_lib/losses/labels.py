"""Losses of the labels alone."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(student_logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy to the targets.

    Args:
        student_logits: shape [B, C].
        targets: classes [B], or probabilities [B, C] as Mixup and CutMix make them.
    Returns:
        A scalar: the mean over B.
    """
    return F.cross_entropy(student_logits, targets)


def label_smoothing(student_logits: Tensor, targets: Tensor, *, alpha: float = 0.1) -> Tensor:
    """Cross-entropy to (1 - alpha) · target + alpha · uniform, Szegedy et al. 2016.

    Args:
        student_logits: shape [B, C].
        targets: classes [B], whose target is one-hot, or probabilities [B, C].
    Returns:
        A scalar: the mean over B.
    """
    return F.cross_entropy(student_logits, targets, label_smoothing=alpha)
