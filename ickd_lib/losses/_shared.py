"""What several losses are made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """τ² KL(teacher ‖ student) of each row, from log-probabilities at temperature τ. [B, C] twice; returns [B]."""
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


def masked_log_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities over the entries where mask is true, 0 at the others: there `kl` and its gradient are 0.

    Shapes: [B, C], and a mask that broadcasts to it with something true in every row; returns [B, C].
    """
    return F.log_softmax(scores.masked_fill(~mask, -torch.inf), -1).masked_fill(~mask, 0)


def distances(features: Tensor) -> Tensor:
    """Euclidean distances of all pairs, exact where they are small, of gradient 0 where 0. [B, D]; returns [B, B]."""
    return torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
