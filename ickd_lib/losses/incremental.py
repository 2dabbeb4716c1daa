"""Losses of incremental learning, in which a network learns new classes and keeps those of its teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def lwf(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 2.0, eps: float = 1e-5) -> Tensor:
    """Compute the distillation term of learning without forgetting (Li & Hoiem 2016, equation 2), as in FACIL.

    It is the cross-entropy between the softened probabilities, without τ². It differs from KL by the entropy of the
    teacher's, a constant.

    Args:
        student_logits, teacher_logits: logits of the old classes, shape [B, K].
        temperature: τ.
        eps: eps / K is added to each of the student's probabilities, which are then normalised again.
    Returns:
        A scalar: the mean over B.
    """
    student = F.softmax(student_logits / temperature, 1) + eps / student_logits.shape[1]
    teacher = F.softmax(teacher_logits.detach() / temperature, 1)
    return -(teacher * (student / (1 + eps)).log()).sum(1).mean()
