"""Losses between the logits of a student and of a teacher that have the same classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib.losses._shared import kl, masked_log_softmax


def standardise(logits: Tensor) -> Tensor:
    """Standardise each row of logits: (z - mean) / (std + 1e-7) over the classes, with ddof = 1 in the std.

    This removes the offset and the scale of the logits and keeps the relations between them (Sun et al. 2024, "Logit
    Standardization in Knowledge Distillation", algorithm 1).

    Args:
        logits: shape [B, C].
    Returns:
        Shape [B, C].
    """
    return (logits - logits.mean(-1, keepdim=True)) / (logits.std(-1, keepdim=True) + 1e-7)


def kd(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0, standardised: bool = False
) -> Tensor:
    """Compute the loss of knowledge distillation, τ² KL(σ(z^T/τ) ‖ σ(z^S/τ)) (Hinton et al. 2015).

    Args:
        student_logits, teacher_logits: shape [B, C].
        temperature: τ.
        standardised: whether to `standardise` the logits of both networks first.
    Returns:
        A scalar: the mean over B.
    """
    student, teacher = _prepare(student_logits, teacher_logits, standardised)
    return kl(F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1), temperature).mean()


def ckd(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Compute the sample-wise contrastive loss of CKD (Zhu et al. 2024, arXiv 2404.14109).

    It is InfoNCE between the teacher's logits of each sample and the student's logits of the whole batch,
    -log e^{<t_i, s_i>/τ} / Σ_j e^{<t_i, s_j>/τ}, with the logits t and s scaled to unit length.

    Args:
        student_logits, teacher_logits: shape [B, C].
        temperature: τ.
    Returns:
        A scalar: the mean over i.
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
    """Compute the two terms of decoupled KD, TCKD and NCKD (Zhao et al. 2022).

    With p_y the probability of the label at temperature τ, the KD loss of a sample is TCKD + (1 - p^T_y) NCKD.
    In decoupled KD, each of the two terms has a weight of its own instead.

    Args:
        student_logits, teacher_logits: shape [B, C], with C at least 2.
        labels: class of each sample, shape [B].
        temperature: τ.
        standardised: whether to `standardise` the logits of both networks first.
    Returns:
        Two scalars, each the mean over B. TCKD is τ² KL between the teacher's and the student's [p_y, 1 - p_y]. NCKD is
        τ² KL between their probabilities of the other classes, rescaled to sum to 1.
    """
    student, teacher = _prepare(student_logits, teacher_logits, standardised)
    others = torch.ones_like(student, dtype=torch.bool).scatter(1, labels[:, None], False)

    def target(logits: Tensor) -> Tensor:
        log_probabilities = F.log_softmax(logits / temperature, -1)
        # The sum over the other classes keeps its precision where p_y is close to 1 and log(1 - p_y) would not.
        rest = log_probabilities.masked_fill(~others, -torch.inf).logsumexp(1, keepdim=True)
        return torch.cat([log_probabilities.gather(1, labels[:, None]), rest], 1)

    def non_target(logits: Tensor) -> Tensor:
        return masked_log_softmax(logits / temperature, others)

    tckd = kl(target(student), target(teacher), temperature).mean()
    return tckd, kl(non_target(student), non_target(teacher), temperature).mean()


def dist(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> tuple[Tensor, Tensor]:
    """Compute the two terms of DIST, τ² (1 - Pearson's correlation) of the softened probabilities (Huang et al. 2022).

    Args:
        student_logits, teacher_logits: shape [B, C].
        temperature: τ.
    Returns:
        Two scalars. The inter-class term correlates the classes of each sample and is the mean over B. The intra-class
        term correlates the samples in each class and is the mean over C. The correlation of a constant row or column
        is 0.
    """
    student = F.softmax(student_logits / temperature, -1)
    teacher = F.softmax(teacher_logits.detach() / temperature, -1)

    def decorrelation(dim: int) -> Tensor:
        one, other = student - student.mean(dim, keepdim=True), teacher - teacher.mean(dim, keepdim=True)
        return temperature**2 * (1 - F.cosine_similarity(one, other, dim=dim, eps=1e-8).mean())

    return decorrelation(1), decorrelation(0)


def mlkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
    standardised: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the three terms of multi-level logit distillation (Jin et al. 2023).

    Below, p = σ(z/τ) is the matrix [B, C] of softened probabilities and |·| is the Frobenius norm.

    Args:
        student_logits, teacher_logits: shape [B, C].
        temperatures: values of τ over which each term is averaged.
        standardised: whether to `standardise` both networks' logits in the KL term (Sun et al. 2024).
    Returns:
        Three scalars: the instance term τ² KL(p^T ‖ p^S), the mean over B; the batch term |p^S p^Sᵀ - p^T p^Tᵀ|² / B;
        and the class term |p^Sᵀ p^S - p^Tᵀ p^T|² / C.
    """
    samples, classes = student_logits.shape
    levels = []
    for temperature in temperatures:
        s, t = (F.softmax(z / temperature, -1) for z in (student_logits, teacher_logits.detach()))
        instance = kd(student_logits, teacher_logits, temperature=temperature, standardised=standardised)
        between_samples = (s @ s.T - t @ t.T).square().sum() / samples
        between_classes = (s.T @ s - t.T @ t).square().sum() / classes
        levels.append(torch.stack([instance, between_samples, between_classes]))
    instance, batch, class_ = torch.stack(levels).mean(0).unbind()
    return instance, batch, class_


def _prepare(student_logits: Tensor, teacher_logits: Tensor, standardised: bool) -> tuple[Tensor, Tensor]:
    """Detach the teacher's logits, and standardise both networks' logits if `standardised` is true."""
    student, teacher = student_logits, teacher_logits.detach()
    return (standardise(student), standardise(teacher)) if standardised else (student, teacher)
