"""Losses that depend on the labels and not on a teacher network."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(student_logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the cross-entropy to the targets.

    Args:
        student_logits: shape [B, C].
        targets: classes [B], or probabilities [B, C] as Mixup and CutMix produce them.
    Returns:
        A scalar: the mean over B.
    """
    return F.cross_entropy(student_logits, targets)


def label_smoothing(student_logits: Tensor, targets: Tensor, *, alpha: float = 0.1) -> Tensor:
    """Compute the cross-entropy to (1 - alpha) · target + alpha · uniform (Szegedy et al. 2016).

    Args:
        student_logits: shape [B, C].
        targets: classes [B], which are made one-hot, or probabilities [B, C].
        alpha: weight of the uniform distribution.
    Returns:
        A scalar: the mean over B.
    """
    return F.cross_entropy(student_logits, targets, label_smoothing=alpha)


def virtual_teacher(labels: Tensor, num_classes: int, *, correct: float = 0.99) -> Tensor:
    """Return the logits of a virtual teacher that is always right (Yuan et al. 2020, equation 8).

    The logits are the logarithms of its probabilities. The label has the probability `correct`, and each other class
    has an equal part of the rest.

    Args:
        labels: class of each sample, shape [B].
        num_classes: number C of classes, at least 2.
        correct: probability of the label, greater than 0 and less than 1.
    Returns:
        Shape [B, C].
    """
    right = labels[:, None] == torch.arange(num_classes, device=labels.device)
    return torch.where(right, math.log(correct), math.log((1 - correct) / (num_classes - 1)))
