"""Functions that several losses use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def require(what: str, given: str, known: tuple[str, ...]) -> None:
    """Raise ValueError if an argument is none of the known names."""
    if given not in known:
        raise ValueError(f"{what}={given!r} is unknown; give {' or '.join(map(repr, known))}")


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute τ² KL(teacher ‖ student) of each row.

    Args:
        student, teacher: log-probabilities at the temperature, shape [B, C].
        temperature: τ.
    Returns:
        The divergence of each row, shape [B].
    """
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


def log_softmax(logits: Tensor) -> Tensor:
    """Compute the log-softmax of each row.

    On a CPU, the rows become columns where there are many rows with few classes, such as the pixels of images, because
    PyTorch then computes the loss and its gradient two to four times faster.

    Args:
        logits: shape [..., C].
    Returns:
        The same shape.
    """
    if logits.device.type == "cpu" and logits.ndim == 2 and len(logits) >= 512 and logits.shape[1] < 16:
        return F.log_softmax(logits.T.contiguous(), 0).T
    return F.log_softmax(logits, -1)


def masked_log_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Compute the log-softmax of each row over the entries where the mask is true.

    The other entries of the result are 0, so that `kl` and its gradient are 0 there.

    Args:
        scores: shape [B, C].
        mask: boolean, broadcastable to [B, C], with at least one true entry in every row.
    Returns:
        Shape [B, C].
    """
    return log_softmax(scores.masked_fill(~mask, -torch.inf)).masked_fill(~mask, 0)


def unit_length(vectors: Tensor) -> Tensor:
    """Scale vectors [..., D] to unit length; those of length 0 stay 0 and have the gradient 0.

    `F.normalize` has the gradient 1e12 there, which destroys a network whose last layer is initialised with zeros.
    """
    length = vectors.norm(dim=-1, keepdim=True)
    return vectors / length.masked_fill(length == 0, torch.inf)


def distances(features: Tensor) -> Tensor:
    """Compute the Euclidean distances of all pairs of rows.

    A matrix product is not used, because small distances would be lost to rounding. Where a distance is 0, its gradient
    is 0.

    Args:
        features: shape [B, D].
    Returns:
        Shape [B, B].
    """
    return torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
