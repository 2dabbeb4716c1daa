"""The losses of in-context distillation, IC-KD (Zhu, Li, Wang 2025, arXiv 2501.07040).

The abstract of the paper describes the idea; the formulas here are this project's reading of it.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ickd_lib.losses._shared import kl, log_softmax, masked_log_softmax, require, unit_length


def aggregation_weights(similarity: Tensor, mask: Tensor, *, temperature: float | None = 0.1) -> Tensor:
    """Compute the weights of each query's in-context samples: the softmax of similarity / temperature.

    Args:
        similarity: cosine similarity of each in-context sample to its query, shape [B, k].
        mask: true where the in-context sample is valid, shape [B, k].
        temperature: τ_a; with None all valid samples have the same weight.
    Returns:
        Weights, shape [B, k]. Each row sums to 1, or is 0 where it has no valid sample.
    """
    score = torch.zeros_like(similarity) if temperature is None else similarity / temperature
    return F.softmax(score.masked_fill(~mask, -torch.inf), dim=-1).masked_fill(~mask, 0)


def aggregate(
    logits: Tensor, weights: Tensor, *, temperature: float = 4.0, average: str = "logits"
) -> tuple[Tensor, Tensor]:
    """Average the teacher's predictions over the in-context samples of each query.

    Args:
        logits: the teacher's logits of each in-context sample, shape [B, k, C].
        weights: from `aggregation_weights`, shape [B, k].
        temperature: τ.
        average: "logits" averages the logits, z̄ = Σ w z^T; "probabilities" averages σ(z^T/τ) with the weights w.
    Returns:
        The aggregated logits z̄ [B, C] and log σ(z̄/τ) [B, C]. With "probabilities", σ(z̄/τ) is the average of the
        probabilities, and the mean of z̄ over the classes is that of the averaged logits.
    Raises:
        ValueError: `average` is neither of the two.
    """
    require("average", average, ("logits", "probabilities"))
    logits, weights = logits.detach(), weights.detach()[..., None]
    mean = (weights * logits).sum(1)
    if average == "logits":
        return mean, F.log_softmax(mean / temperature, -1)
    log_probabilities = F.log_softmax(logits / temperature, -1)
    target = (log_probabilities + weights.clamp(min=1e-30).log()).logsumexp(1)
    offset = (mean - temperature * target).mean(-1, keepdim=True)  # a softmax does not determine it, but cosines do
    return temperature * target + offset, F.log_softmax(target, -1)


def corrected(logits: Tensor, labels: Tensor) -> Tensor:
    """Exchange the logit of the label and the largest logit, so that the most probable class is the label.

    Logits whose largest one is that of the label are not changed. The confidence stays that of the teacher.

    Source: the probability shift of Wen, Lai & Qian 2019, arXiv 1911.07471.

    Args:
        logits: shape [..., C].
        labels: class of each vector of logits, from -1 to C - 1, shape [...]. Where it is -1, nothing is changed.
    Returns:
        shape [..., C].
    """
    largest, at = logits.max(-1, keepdim=True)
    label = labels.clamp(min=0)[..., None]
    exchanged = logits.scatter(-1, at, logits.gather(-1, label)).scatter(-1, label, largest)
    return torch.where(labels[..., None] >= 0, exchanged, logits)


def picd(
    student_logits: Tensor,
    positive_logits: Tensor,
    weights: Tensor,
    *,
    temperature: float = 4.0,
    average: str = "logits",
    gate: Tensor | None = None,
    query: Tensor | None = None,
) -> Tensor:
    """Compute the loss of positive in-context distillation, τ² KL(σ(z̄/τ) ‖ σ(z^S/τ)).

    The target z̄ is the `aggregate` of the teacher's logits of the query's same-class in-context samples.

    Args:
        student_logits: shape [B, C], or [P, C] with `query`.
        positive_logits: the teacher's logits of each query's positives, shape [B, k, C].
        weights: from `aggregation_weights`, shape [B, k]. The loss of a query without a valid positive, a row of zeros,
            is 0.
        temperature, average: as for `aggregate`.
        gate: a factor for each query's divergence, as `entropy_gate` returns it, shape [B]; None for 1.
        query: the query, from 0 to B - 1, to whose target each row of `student_logits` is matched, shape [P], for
            segmentation, where the pixels of a region share a target; None if row i has query i.
    Returns:
        A scalar: the mean over all rows of `student_logits`, whatever the gate.
    """
    _, target = aggregate(positive_logits, weights, temperature=temperature, average=average)
    missing = weights.sum(1) == 0
    if query is not None:
        target, missing = target[query], missing[query]
        gate = None if gate is None else gate[query]
    divergence = kl(log_softmax(student_logits / temperature), target, temperature)
    divergence = divergence.masked_fill(missing, 0)
    return (divergence if gate is None else divergence * gate.detach()).mean()


def entropy_gate(teacher_logits: Tensor, *, strength: float = 1.0) -> Tensor:
    """Compute a factor for each sample that falls with the teacher's certainty: 1 - g + g H(σ(z^T)) / log C.

    H is the entropy. The factor is 1 where the teacher's prediction is uniform, and 1 - g where it is certain.

    Args:
        teacher_logits: the teacher's logits of each sample, z^T, shape [B, C].
        strength: g, from 0 (all factors are 1) to 1.
    Returns:
        Shape [B].
    """
    log_probabilities = F.log_softmax(teacher_logits.detach(), -1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    return 1 - strength + strength * entropy / math.log(teacher_logits.shape[1])


def residual_target(
    teacher_logits: Tensor, aggregated: Tensor, own_logits: Tensor, mask: Tensor, *, residual: float
) -> Tensor:
    """Compute a target of KD that contains the effect of the in-context samples: z^T + λ (z̄ - z^T_row).

    The difference between the aggregate and the sample's own row, which are both of images without augmentation, is
    added to the logits of the augmented image, so that the target still depends on the augmentation.

    Args:
        teacher_logits: the teacher's logits of the augmented image, z^T, shape [B, C].
        aggregated: the aggregate of the positives, z̄, from `aggregate`, shape [B, C].
        own_logits: logits in the sample's own row of the bank, z^T_row, shape [B, C].
        mask: true where a sample has a valid positive; elsewhere the target is z^T, shape [B].
        residual: λ; with 0 the target is z^T.
    Returns:
        Shape [B, C], without gradient.
    """
    difference = (aggregated - own_logits).masked_fill(~mask[:, None], 0)
    return (teacher_logits + residual * difference).detach()


def nicd(
    student_logits: Tensor,
    anchor_logits: Tensor,
    negative_logits: Tensor,
    mask: Tensor,
    *,
    kappa: float = 0.1,
    form: str = "infonce",
    margin: float = 0.2,
    normalised: bool = False,
) -> Tensor:
    """Compute the loss of negative in-context distillation.

    Its minimisation raises the cosine of the student's logits with the anchor, c_0 = cos(z^S, a), relative to their
    cosines with the teacher's logits of the negatives, c_j = cos(z^S, z^T_j):
    "infonce" is -log e^{c_0/κ} / (e^{c_0/κ} + Σ_j e^{c_j/κ}), and
    "hinge" is the mean over j of max(0, c_j - c_0 + margin).

    Args:
        student_logits: shape [B, C].
        anchor_logits: the teacher's logits of the sample itself, or the aggregate z̄ where the teacher does not run,
            shape [B, C].
        negative_logits: the teacher's logits of each sample's negatives, of different classes, shape [B, k, C].
        mask: true where the negative is valid, shape [B, k]. The loss of a row without a valid negative is 0.
        kappa: κ, the temperature of "infonce".
        form: "infonce" or "hinge".
        margin: the difference c_0 - c_j from which on a negative adds nothing to "hinge".
        normalised: whether `negative_logits` already have unit length, for instance because a bank stores them so. On a
            CPU the loss then takes half the time for 100 classes and a quarter for 1,000. The result agrees with that
            of the default up to rounding, not bit for bit.
    Returns:
        A scalar: the mean over all B samples, computed in float32 from logits of a lower precision.
    Raises:
        ValueError: `form` is neither of the two.
    """
    require("form", form, ("infonce", "hinge"))
    student_logits, anchor, negatives = _of_one_type(student_logits, anchor_logits.detach(), negative_logits.detach())
    student = unit_length(student_logits)
    positive = (student * unit_length(anchor)).sum(-1, keepdim=True)
    negative = _cosines(student, negatives, normalised)
    if form == "hinge":
        excess = (negative - positive + margin).clamp(min=0).masked_fill(~mask, 0)
        return (excess.sum(1) / mask.sum(1).clamp(min=1)).mean()
    scores = torch.cat([positive, negative.masked_fill(~mask, -torch.inf)], 1) / kappa
    return -F.log_softmax(scores, dim=1)[:, 0].mean()


def relational_nicd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    negative_logits: Tensor,
    mask: Tensor,
    *,
    positive_logits: Tensor | None = None,
    positive_mask: Tensor | None = None,
    kappa: float = 0.1,
    kappa_teacher: float = 0.03,
    normalised: bool = False,
) -> Tensor:
    """Compute the relational form of negative in-context distillation, whose target is soft.

    The pool R of a sample i contains i itself, its positives (where given) and its negatives. The loss is
    KL( softmax_{j∈R} cos(z^T_i, z^T_j) / κ_T ‖ softmax_{j∈R} cos(z^S_i, z^T_j) / κ ), where z^T_i is the teacher's
    output for i and all other z^T_j are rows of the bank. For κ_T → 0, the target is i alone and the loss is that of
    `nicd` over the same pool.

    Args:
        student_logits: z^S_i, shape [B, C].
        teacher_logits: z^T_i, the teacher's logits of the sample itself, shape [B, C].
        negative_logits, mask, normalised: as for `nicd`. The loss of a row whose pool is i alone is 0.
        positive_logits: the teacher's logits of each sample's positives, of any length, shape [B, k, C]; None leaves
            them out of the pool.
        positive_mask: true where the positive is valid, shape [B, k].
        kappa: κ, the temperature of the student.
        kappa_teacher: κ_T, the temperature of the teacher.
    Returns:
        A scalar: the mean over all B samples, computed in float32 from logits of a lower precision.
    """
    student, teacher = map(unit_length, _of_one_type(student_logits, teacher_logits.detach()))
    scores = [(student * teacher).sum(-1, keepdim=True)]
    targets = [(teacher * teacher).sum(-1, keepdim=True)]
    valid = [mask.new_ones(len(mask), 1)]
    pool = [(negative_logits, mask, normalised)]
    if positive_logits is not None and positive_mask is not None:
        pool.append((positive_logits, positive_mask, False))
    for logits, allowed, unit in pool:
        logits = logits.detach().to(student.dtype)
        logits = logits if unit else F.normalize(logits, dim=-1)
        scores.append(_cosines(student, logits, True))
        targets.append(_cosines(teacher, logits, True))
        valid.append(allowed)
    allowed = torch.cat(valid, 1)
    target = masked_log_softmax(torch.cat(targets, 1) / kappa_teacher, allowed)
    return kl(masked_log_softmax(torch.cat(scores, 1) / kappa, allowed), target, 1.0).mean()


def _cosines(queries: Tensor, logits: Tensor, normalised: bool) -> Tensor:
    """Compute the cosine of each query, of unit length, [B, C], with its own k vectors of logits, [B, k, C]: [B, k]."""
    if normalised:
        # On a CPU, a row vector times a matrix is faster than a matrix times a column, mainly in the backward pass.
        return (queries[:, None] @ logits.mT).squeeze(1)
    return (F.normalize(logits, dim=-1) @ queries[..., None]).squeeze(-1)


def _of_one_type(*tensors: Tensor) -> list[Tensor]:
    """Convert tensors to one type, which products need: float32, or float64 if one of them has it."""
    kind = functools.reduce(torch.promote_types, (one.dtype for one in tensors), torch.float32)
    return [one.to(kind) for one in tensors]
