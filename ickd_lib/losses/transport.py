"""Losses that transport the probability of one class to another, at a cost that follows from how similar they are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib.losses.logits import target_term


def wkd_l(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    cost: Tensor,
    *,
    temperature: float = 8.0,
    regularisation: float = 0.05,
    iterations: int = 10,
) -> tuple[Tensor, Tensor]:
    """Compute the two terms of Wasserstein distillation of logits, WKD-L (Lv et al. 2024, arXiv 2412.08139).

    The second term is the distance of optimal transport between the softened probabilities of the classes other than
    the label, rescaled to sum to 1. Transport is computed by Sinkhorn's iterations with the kernel e^{-cost/λ}; the
    gradient passes through all iterations.

    Args:
        student_logits, teacher_logits: shape [B, C], with C at least 2.
        labels: class of each sample, shape [B].
        cost: cost of transport between two classes, shape [C, C]; see `prototype_cost`.
        temperature: τ of the second term.
        regularisation: λ.
        iterations: number of Sinkhorn's iterations, at least 1.
    Returns:
        Two scalars, each the mean over B: `target_term`, and the distance.
    """
    label = torch.zeros_like(student_logits, dtype=torch.bool).scatter(1, labels[:, None], True)

    def others(logits: Tensor) -> Tensor:
        return F.softmax((logits / temperature).masked_fill(label, -torch.inf), -1)

    student, teacher = others(student_logits), others(teacher_logits.detach())
    cost = cost.detach().clamp(min=0).to(student.dtype) + 1e-8
    kernel = torch.exp(-cost / regularisation)
    # The label has probability 0 on both sides, so that all samples can have the same kernel.
    rows = torch.full_like(student, 1 / (student.shape[1] - 1)).masked_fill(label, 0)
    for _ in range(iterations):
        columns = teacher / (rows @ kernel + 1e-8)
        rows = student / (columns @ kernel.T + 1e-8)
    distance = (rows @ (kernel * cost) * columns).sum(1).mean()
    return target_term(student_logits, teacher_logits, labels), distance


def prototype_cost(prototypes: Tensor, *, sharpness: float = 1.0) -> Tensor:
    """Compute the cost of transport between classes from their prototypes, 1 - e^{-s (1 - cos)}.

    Args:
        prototypes: a vector for each class, shape [C, D]; for WKD-L, the weights of the teacher's classifier.
        sharpness: s.
    Returns:
        Shape [C, C], without gradient.
    """
    unit = F.normalize(prototypes.detach(), dim=-1)
    return 1 - torch.exp(-sharpness * (1 - unit @ unit.T))
