"""Losses between the logits of a student and of a teacher that have the same classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib.losses._shared import kl, log_softmax, masked_log_softmax, unit_length


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
    return kl(log_softmax(student / temperature), log_softmax(teacher / temperature), temperature).mean()


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
    student, teacher = unit_length(student_logits), unit_length(teacher_logits.detach())
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
        log_probabilities = log_softmax(logits / temperature)
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
        is 0; 1e-8 in the denominator lowers those of nearly constant ones.
    """
    student = F.softmax(student_logits / temperature, -1)
    teacher = F.softmax(teacher_logits.detach() / temperature, -1)

    def decorrelation(dim: int) -> Tensor:
        one, other = student - student.mean(dim, keepdim=True), teacher - teacher.mean(dim, keepdim=True)
        # Probabilities of 0 and 1 in a column make the norms tiny. 1e-8 is added to their product, as in the official
        # code; `F.cosine_similarity` would bound the product from below instead.
        norms = one.norm(dim=dim) * other.norm(dim=dim)
        return temperature**2 * (1 - ((one * other).sum(dim) / (norms + 1e-8)).mean())

    return decorrelation(1), decorrelation(0)


def nkd(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float = 3.0
) -> tuple[Tensor, Tensor]:
    """Compute the two terms of normalised KD (Yang et al. 2023, arXiv 2303.13005, eq. 6).

    Args:
        student_logits, teacher_logits: shape [B, C], with C at least 2.
        labels: class of each sample, shape [B].
        temperature: τ of the second term.
    Returns:
        Two scalars, each the mean over B. The first is `target_term`. The second is τ² times the cross-entropy between
        the teacher's and the student's probabilities of the other classes at τ, rescaled to sum to 1.
    """
    student, teacher = student_logits, teacher_logits.detach()
    others = torch.ones_like(student, dtype=torch.bool).scatter(1, labels[:, None], False)
    predicted, soft = (masked_log_softmax(logits / temperature, others) for logits in (student, teacher))
    cross_entropy = -(soft.exp() * predicted).sum(1).mean()  # `predicted` is 0 at the label
    return target_term(student, teacher, labels), temperature**2 * cross_entropy


def target_term(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean of -p^T_y log p^S_y, the cross-entropy of the label weighted by the teacher's probability of it.

    It is the first term of `nkd` and of `wkd_l`.

    Args:
        student_logits, teacher_logits: shape [B, C].
        labels: class of each sample, shape [B].
    Returns:
        A scalar: the mean over B.
    """
    confidence = F.softmax(teacher_logits.detach(), -1).gather(1, labels[:, None])
    return -(confidence * F.log_softmax(student_logits, -1).gather(1, labels[:, None])).mean()


def ttm(student_logits: Tensor, teacher_logits: Tensor, *, exponent: float = 0.1, weighted: bool = False) -> Tensor:
    """Compute the loss of transformed teacher matching (Zheng & Yang 2024, arXiv 2402.11148).

    The teacher's probabilities are raised to the power γ and rescaled to sum to 1, q = p^γ / Σ p^γ, which equals a
    softmax at temperature 1/γ. The student's softmax has no temperature. The loss is KL(q ‖ p^S), without a factor τ².

    Args:
        student_logits, teacher_logits: shape [B, C].
        exponent: γ.
        weighted: whether each sample has the weight Σ p^γ, which is large where the teacher is uncertain (WTTM).
    Returns:
        A scalar: the mean over B.
    """
    powers = exponent * F.log_softmax(teacher_logits.detach(), -1)
    divergence = kl(F.log_softmax(student_logits, -1), F.log_softmax(powers, -1), 1.0)
    return (divergence * powers.exp().sum(-1)).mean() if weighted else divergence.mean()


def lwf(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 2.0) -> Tensor:
    """Compute the loss of learning without forgetting (Li & Hoiem 2016, arXiv 1606.09282, eq. 2).

    It is the cross-entropy between the teacher's and the student's softened probabilities, without a factor τ². As in
    the code of FACIL, 1e-5 / C is added to the student's probabilities, which are then rescaled to sum to 1.

    Args:
        student_logits, teacher_logits: shape [B, C], of the classes of the teacher.
        temperature: τ.
    Returns:
        A scalar: the mean over B.
    """
    student, teacher = (F.softmax(logits / temperature, -1) for logits in (student_logits, teacher_logits.detach()))
    floor = 1e-5 / student.shape[-1]
    return -(teacher * ((student + floor) / (1 + 1e-5)).log()).sum(-1).mean()


def _prepare(student_logits: Tensor, teacher_logits: Tensor, standardised: bool) -> tuple[Tensor, Tensor]:
    """Detach the teacher's logits, and standardise both networks' logits if `standardised` is true."""
    student, teacher = student_logits, teacher_logits.detach()
    return (standardise(student), standardise(teacher)) if standardised else (student, teacher)
