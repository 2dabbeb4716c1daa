"""In-context distillation: the teacher's view of the samples around each one.

Zhu, Li, Wang 2025 (arXiv 2501.07040), of which the abstract names the idea and these formulas are this project's
reading.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib.losses._shared import kl


def aggregation_weights(similarity: Tensor, mask: Tensor, *, temperature: float | None = 0.1) -> Tensor:
    """Softmax of the similarities over each query's valid in-context samples; uniform for temperature None.

    Args:
        similarity: cosine to the query, shape [B, k].
        mask: true where the sample is valid, shape [B, k].
    Returns:
        Weights, shape [B, k]: a row sums to 1, or is 0 where it has no valid sample.
    """
    score = torch.zeros_like(similarity) if temperature is None else similarity / temperature
    return F.softmax(score.masked_fill(~mask, -torch.inf), dim=-1).masked_fill(~mask, 0)


def aggregate(
    logits: Tensor, weights: Tensor, *, temperature: float = 4.0, average: str = "logits"
) -> tuple[Tensor, Tensor]:
    """The in-context samples' joint prediction of each query.

    Args:
        logits: the teacher's, of each in-context sample, shape [B, k, C].
        weights: shape [B, k].
        average: "logits", z̄ = Σ w z^T; or "probabilities", Σ w σ(z^T/τ).
    Returns:
        z̄ [B, C] (for probabilities τ log of their average, which gives them back at temperature τ), and the
        target's log-probabilities at `temperature` [B, C].
    """
    logits, weights = logits.detach(), weights.detach()[..., None]
    if average == "logits":
        mean = (weights * logits).sum(1)
        return mean, F.log_softmax(mean / temperature, -1)
    log_probabilities = F.log_softmax(logits / temperature, -1)
    target = (log_probabilities + weights.clamp(min=1e-30).log()).logsumexp(1)
    return temperature * target, F.log_softmax(target, -1)


def picd(
    student_logits: Tensor,
    positive_logits: Tensor,
    weights: Tensor,
    *,
    temperature: float = 4.0,
    average: str = "logits",
) -> Tensor:
    """Positive in-context distillation: τ² KL(σ(z̄/τ) ‖ σ(z^S/τ)) to the same-class samples' aggregate z̄.

    Args:
        student_logits: shape [B, C].
        positive_logits: the teacher's logits of each query's positives, shape [B, k, C].
        weights: `aggregation_weights`, shape [B, k]; a row of zeros (no valid positive) adds nothing.
    Returns:
        A scalar: the mean over all B samples.
    """
    _, target = aggregate(positive_logits, weights, temperature=temperature, average=average)
    each = kl(F.log_softmax(student_logits / temperature, -1), target, temperature)
    return each.masked_fill(weights.sum(1) == 0, 0).mean()


def nicd(
    student_logits: Tensor,
    anchor_logits: Tensor,
    negative_logits: Tensor,
    mask: Tensor,
    *,
    kappa: float = 0.1,
    form: str = "infonce",
    margin: float = 0.2,
) -> Tensor:
    """Negative in-context distillation: the student's sample is drawn to its anchor and away from its negatives.

    With c_0 = cos(z^S, a) and c_j = cos(z^S, z^T_j) for the negatives j,
    "infonce" is -log e^{c_0/κ} / (e^{c_0/κ} + Σ_j e^{c_j/κ}), and
    "hinge" is the mean over j of max(0, c_j - c_0 + margin).

    Args:
        student_logits: shape [B, C].
        anchor_logits: the teacher's logits of the sample itself, or z̄ where there is none, shape [B, C].
        negative_logits: the teacher's logits of different-class samples, shape [B, k, C].
        mask: true where the negative is valid, shape [B, k]; a row without any adds nothing.
    Returns:
        A scalar: the mean over all B samples.
    """
    student = F.normalize(student_logits, dim=-1)
    positive = (student * F.normalize(anchor_logits.detach(), dim=-1)).sum(-1, keepdim=True)
    negative = (F.normalize(negative_logits.detach(), dim=-1) @ student[..., None]).squeeze(-1)
    if form == "hinge":
        excess = (negative - positive + margin).clamp(min=0).masked_fill(~mask, 0)
        return (excess.sum(1) / mask.sum(1).clamp(min=1)).mean()
    scores = torch.cat([positive, negative.masked_fill(~mask, -torch.inf)], 1) / kappa
    return -F.log_softmax(scores, dim=1)[:, 0].mean()
