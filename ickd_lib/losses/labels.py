"""Losses of the labels alone."""

from __future__ import annotations

import math

import torch
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


def virtual_teacher(labels: Tensor, num_classes: int, *, correct: float = 0.99) -> Tensor:
    """Logits of a teacher that is always right, Yuan et al. 2020, equation 8: the log of its probabilities.

    Args:
        labels: shape [B].
        num_classes: C.
        correct: its probability of the label, between 0 and 1 exclusive; the other classes share the rest.
    Returns:
        Shape [B, C].
    """
    right = labels[:, None] == torch.arange(num_classes, device=labels.device)
    return torch.where(right, math.log(correct), math.log((1 - correct) / (num_classes - 1)))
