"""Losses between logits on several levels: those of each sample, and similarities of the samples or the classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib.losses._shared import unit_length
from ickd_lib.losses.logits import kd


def mlkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_strong: Tensor,
    teacher_strong: Tensor,
    *,
    temperature: float = 4.0,
    standardised: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the three terms of multi-level logit distillation (Jin et al. 2023, "Multi-Level Logit Distillation").

    Each term is a sum over the temperatures τ, 3, 5, 2 and 6. As in the official code, the terms of the first view are
    multiplied by the shares of `uncertain` samples and classes, and the instance term of the second view is computed at
    τ, 3 and 5 only. At 2 and 6, that of the first view is added a second time instead, without the factor.

    Args:
        student_logits, teacher_logits: logits of the first view, shape [B, C].
        student_strong, teacher_strong: logits of the second, strongly augmented view, shape [B, C].
        temperature: τ.
        standardised: whether to `standardise` all logits in the instance term (Sun et al. 2024).
    Returns:
        Three scalars: the instance term, from `kd`, on both views; the batch term, from `batch_correlation`, and the
        class term, from `class_correlation`, on the first view.
    """
    samples, classes = uncertain(teacher_logits)
    levels = []
    for level, second in ((temperature, True), (3.0, True), (5.0, True), (2.0, False), (6.0, False)):
        instance = kd(student_logits, teacher_logits, temperature=level, standardised=standardised)
        again = instance
        if second:
            again = kd(student_strong, teacher_strong, temperature=level, standardised=standardised)
        between_samples = batch_correlation(student_logits, teacher_logits, temperature=level)
        between_classes = class_correlation(student_logits, teacher_logits, temperature=level)
        levels.append(torch.stack([samples * instance + again, samples * between_samples, classes * between_classes]))
    instance, batch, class_ = torch.stack(levels).sum(0).unbind()
    return instance, batch, class_


def uncertain(teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of the samples and of the classes for which the teacher's confidence is at most the median.

    The confidence in a sample is the largest probability of the sample, that in a class is the sum of its probabilities
    over the samples. Both shares are about one half, and above it where confidences are equal. The official codes of
    MLKD and SKD select these samples and classes by masks, but apply the masks to losses that are means already.

    Args:
        teacher_logits: shape [B, C].
    Returns:
        Two scalars.
    """
    probabilities = F.softmax(teacher_logits.detach(), -1)
    confidences = probabilities.amax(1), probabilities.sum(0)
    samples, classes = ((one <= one.median()).to(one.dtype).mean() for one in confidences)
    return samples, classes


def batch_correlation(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Compute |P^S P^Sᵀ - P^T P^Tᵀ|² / B, the batch term of MLKD at one temperature, where |·| is the Frobenius norm.

    Args:
        student_logits, teacher_logits: shape [B, C].
        temperature: τ of the softened probabilities P, [B, C].
    Returns:
        A scalar.
    """
    student, teacher = (F.softmax(logits / temperature, -1) for logits in (student_logits, teacher_logits.detach()))
    return (student @ student.T - teacher @ teacher.T).square().sum() / len(student)


def class_correlation(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Compute |P^Sᵀ P^S - P^Tᵀ P^T|² / C, the class term of MLKD at one temperature; see `batch_correlation`."""
    student, teacher = (F.softmax(logits / temperature, -1) for logits in (student_logits, teacher_logits.detach()))
    return (student.T @ student - teacher.T @ teacher).square().sum() / student.shape[1]


def skd_gram(student_logits: Tensor, teacher_logits: Tensor, *, tikhonov: float = 0.1) -> Tensor:
    """Compute the Gram term of streamlined KD (SKD, CVPR 2026), with the formulas of its official code.

    With the logits scaled to unit length, ẑ [B, C], D = (ẑ^S ẑ^Sᵀ - ẑ^T ẑ^Tᵀ) / C is the difference of the Gram
    matrices, and Σ the covariance of the columns of D over its rows. The loss is the mean of √(d (Σ + λI)⁻¹ dᵀ) over
    the rows d of D, their Mahalanobis length with Tikhonov regularisation.

    Args:
        student_logits, teacher_logits: shape [B, C].
        tikhonov: λ.
    Returns:
        A scalar: the mean over B.
    """
    student, teacher = unit_length(student_logits), unit_length(teacher_logits.detach())
    difference = (student @ student.T - teacher @ teacher.T) / student.shape[1]
    centred = difference - difference.mean(0)
    covariance = centred.T @ centred / max(len(difference) - 1, 1)
    regularised = covariance + tikhonov * torch.eye(len(difference), dtype=student.dtype, device=student.device)
    # `cholesky_ex` does not read on the host whether it succeeded; for λ above 0 it does.
    whitened = torch.cholesky_solve(difference.T, torch.linalg.cholesky_ex(regularised).L).T
    squares = (difference * whitened).sum(1)
    return squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt().mean()  # where the row is 0, the gradient is 0
