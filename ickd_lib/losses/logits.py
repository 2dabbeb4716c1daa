"""Losses between the logits of a teacher and of a student that know the same classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib.losses._shared import kl, masked_log_softmax


def standardise(logits: Tensor) -> Tensor:
    """(z - mean) / (std + 1e-7) over the classes, std with ddof = 1: only the logits' relations are left.

    Sun et al. 2024, "Logit Standardization in Knowledge Distillation", algorithm 1. Shapes: [B, C]; returns [B, C].
    """
    return (logits - logits.mean(-1, keepdim=True)) / (logits.std(-1, keepdim=True) + 1e-7)


def kd(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0, standardised: bool = False
) -> Tensor:
    """τ² KL(σ(z^T/τ) ‖ σ(z^S/τ)), Hinton et al. 2015.

    Args:
        student_logits, teacher_logits: shape [B, C].
        standardised: whether both pass `standardise` first.
    Returns:
        A scalar: the mean over B.
    """
    student, teacher = _sides(student_logits, teacher_logits, standardised)
    return kl(F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1), temperature).mean()


def ckd(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """InfoNCE from each sample's teacher to all students of the batch, Zhu et al. 2024 (arXiv 2404.14109).

    -log e^{<t_i, s_i>/τ} / Σ_j e^{<t_i, s_j>/τ}, with t and s the logits at unit length.

    Args:
        student_logits, teacher_logits: shape [B, C].
    Returns:
        A scalar: the mean over the B teachers i.
    """
    student, teacher = F.normalize(student_logits, dim=-1), F.normalize(teacher_logits.detach(), dim=-1)
    own = torch.arange(len(student), device=student.device)
    return F.cross_entropy(teacher @ student.T / temperature, own)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 4.0,
    standardised: bool = False,
) -> tuple[Tensor, Tensor]:
    """Decoupled KD, Zhao et al. 2022: with p_y the target class's probability at temperature τ,
    KD is TCKD + (1 - p^T_y) NCKD of each sample, and these are weighted apart instead.

    Args:
        student_logits, teacher_logits: shape [B, C], C at least 2.
        labels: shape [B].
        standardised: whether both pass `standardise` first.
    Returns:
        TCKD: τ² KL between the pairs [p_y, 1 - p_y]; NCKD: τ² KL over the other classes, made to sum to 1.
        Two scalars: means over B.
    """
    student, teacher = _sides(student_logits, teacher_logits, standardised)
    others = torch.ones_like(student, dtype=torch.bool).scatter(1, labels[:, None], False)

    def target(logits: Tensor) -> Tensor:
        each = F.log_softmax(logits / temperature, -1)
        rest = each.masked_fill(~others, -torch.inf).logsumexp(1, keepdim=True)  # log(1 - p) would lose a small rest
        return torch.cat([each.gather(1, labels[:, None]), rest], 1)

    def non_target(logits: Tensor) -> Tensor:
        return masked_log_softmax(logits / temperature, others)

    tckd = kl(target(student), target(teacher), temperature).mean()
    return tckd, kl(non_target(student), non_target(teacher), temperature).mean()


def dist(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> tuple[Tensor, Tensor]:
    """τ² (1 - Pearson's correlation) of the softened probabilities, Huang et al. 2022 (DIST).

    Args:
        student_logits, teacher_logits: shape [B, C].
    Returns:
        Inter-class: over each sample's classes, the mean over B; intra-class: over each class's samples, the mean
        over C. Two scalars. A constant row or column correlates with nothing.
    """
    student = F.softmax(student_logits / temperature, -1)
    teacher = F.softmax(teacher_logits.detach() / temperature, -1)

    def apart(dim: int) -> Tensor:
        one, other = student - student.mean(dim, keepdim=True), teacher - teacher.mean(dim, keepdim=True)
        return temperature**2 * (1 - F.cosine_similarity(one, other, dim=dim, eps=1e-8).mean())

    return apart(1), apart(0)


def mlkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
    standardised: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Multi-level logit distillation, Jin et al. 2023, with p = σ(z/τ) as rows of a matrix [B, C].

    Args:
        student_logits, teacher_logits: shape [B, C].
        standardised: whether both pass `standardise` on their way into the KL term (Sun et al. 2024).
    Returns:
        Instances: τ² KL(p^T ‖ p^S), the mean over B; batch: |p^S p^Sᵀ - p^T p^Tᵀ|² / B; classes:
        |p^Sᵀ p^S - p^Tᵀ p^T|² / C, with |.| Frobenius' norm. Three scalars: means over the temperatures.
    """
    samples, classes = student_logits.shape
    levels = []
    for temperature in temperatures:
        s, t = (F.softmax(z / temperature, -1) for z in (student_logits, teacher_logits.detach()))
        each = kd(student_logits, teacher_logits, temperature=temperature, standardised=standardised)
        between_samples = (s @ s.T - t @ t.T).square().sum() / samples
        between_classes = (s.T @ s - t.T @ t).square().sum() / classes
        levels.append(torch.stack([each, between_samples, between_classes]))
    instance, batch, class_ = torch.stack(levels).mean(0).unbind()
    return instance, batch, class_


def _sides(student_logits: Tensor, teacher_logits: Tensor, standardised: bool) -> tuple[Tensor, Tensor]:
    """The student's logits and the teacher's, detached; both standardised if asked."""
    student, teacher = student_logits, teacher_logits.detach()
    return (standardise(student), standardise(teacher)) if standardised else (student, teacher)
